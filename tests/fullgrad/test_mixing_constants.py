"""A model that mixes samples through constants, which autograd does not follow, is refused like any other that mixes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fg_lightning import FullGrad, full_gradients
from tests.helpers.network_around import EXACT, Between, images

Inner = Callable[[Tensor], Tensor]


BATCH = images(5)
LARGE = 0.8 * float(Between(torch.tanh).stem(BATCH).detach().square().sum())


def only_if_large(x: Tensor) -> Tensor:
    return 3 * x if bool(x.square().sum() > LARGE) else x


MIXING: dict[str, tuple[Inner, str]] = {
    "detached statistics": (lambda x: x - 5 * x.mean(0).detach(), "detach"),
    "statistics of .data": (lambda x: x * x.data.abs().sum(), "data"),
    "a scale as a number": (lambda x: x * float(x.detach().exp().sum()), "detach"),
    "item": (lambda x: x * x.detach().exp().sum().item(), "detach"),
    "a mask of the batch": (lambda x: x * (x > x.mean()), "gt"),
    "an index of the batch": (lambda x: x * (1 + x.sum((1, 2, 3)).argmax()), "argmax"),
    "control flow": (only_if_large, "gt"),
    "NumPy": (lambda x: x * float(abs(x.detach().numpy()).sum()), "detach"),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_through_a_constant_is_refused(name: str) -> None:
    function, operation = MIXING[name]
    model = Between(function)
    with pytest.raises(ValueError, match=f"mixes the samples of a batch, first in a constant made by {operation} in"):
        full_gradients(model, BATCH, 1)
    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        FullGrad(model).attribute(BATCH, 1)
    assert full_gradients(model, BATCH[:1], 1).completeness_error.max() < EXACT


SEPARATE: dict[str, Inner] = {
    "a mask of entries": lambda x: torch.where(x > 0, x, 0.1 * x),
    "a mask of each sample": lambda x: x * (x > x.mean((1, 2, 3), keepdim=True)),
    "a detached scale of each sample": lambda x: x / x.detach().abs().amax((1, 2, 3), keepdim=True),
    "the largest of each sample": lambda x: x + x.flatten(1).topk(3).values.sum(1)[:, None, None, None],
    "numbers that only show": lambda x: x if float(x.detach().sum()) < float("inf") else -x,
}


@pytest.mark.parametrize("name", SEPARATE)
def test_constants_that_keep_samples_apart_run_together(name: str) -> None:
    model = Between(SEPARATE[name])
    together = full_gradients(model, BATCH, 1)
    assert together.unbatched_by is None
    assert together.completeness_error.max() < EXACT
    alone = torch.cat([full_gradients(model, image[None], 1).input_gradient for image in BATCH])
    torch.testing.assert_close(together.input_gradient, alone, rtol=1e-9, atol=1e-12)  # float64 rounding


def test_a_random_mask_is_not_taken_for_mixing() -> None:
    model = Between(lambda x: x * (torch.rand_like(x) > x.detach().sigmoid()))
    assert full_gradients(model, BATCH, 1).unbatched_by is None


def test_a_model_of_one_batch_size_is_not_taken_for_mixing() -> None:
    def refuses(x: Tensor) -> Tensor:
        if len(x) != len(BATCH):
            raise ValueError("another batch size")
        return x * (x > 0)

    assert full_gradients(Between(refuses), BATCH, 1).unbatched_by is None


def test_the_model_runs_a_second_time_only_if_it_makes_constants() -> None:
    runs: list[int] = []

    def counted(function: Inner) -> Inner:
        def run(x: Tensor) -> Tensor:
            runs.append(len(x))
            return function(x)

        return run

    full_gradients(Between(counted(torch.tanh)), BATCH, 1)
    assert runs == [len(BATCH)]
    runs.clear()
    explain = FullGrad(Between(counted(lambda x: x * (x > 0))))
    for _ in range(3):
        explain.attribute(BATCH, 1)
    n = len(BATCH)
    half = (n + 1) // 2
    assert runs == [n, half, n - half, n, half, n - half, n]  # the third map is not checked
