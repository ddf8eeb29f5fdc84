"""The user is told which terms are missing, and once that a map is incomplete."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fg_lightning import FullGrad, SimpleFullGrad, SmoothFullGrad, full_gradients
from fg_lightning.fullgrad.decomposition import is_check_due
from fg_lightning.fullgrad.operations import OPERATIONS
from tests.helpers.network_around import EXACT, Between, images


def by_data(u: Tensor) -> None:
    u.data.mul_(2)


def test_a_rule_that_fails_is_named_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(call: Any) -> Any:
        raise TypeError("arguments of an unexpected kind")

    monkeypatch.setitem(OPERATIONS, "tanh", OPERATIONS["tanh"]._replace(bias=fails))
    terms = full_gradients(Between(torch.tanh), images(), 1)
    assert terms.missing_ops == ("tanh in the model itself",)
    assert terms.unbatched_by is None


def test_a_layout_rule_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise IndexError("a dimension that is not there")

    monkeypatch.setitem(OPERATIONS, "tanh", OPERATIONS["tanh"]._replace(layout=fails))
    terms = full_gradients(Between(torch.tanh), images(), 1)
    assert terms.unbatched_by is None
    assert terms.completeness_error.max() < EXACT


def test_a_device_without_values_is_said() -> None:
    model = Between(torch.tanh)
    with pytest.raises(ValueError, match="device 'meta'"):
        full_gradients(model, images().to("meta"), 1)
    with pytest.raises(ValueError, match="device 'meta'"):
        full_gradients(model.to("meta"), images(), 1)


def test_a_complex_output_is_said_and_explained_by_a_function() -> None:
    class Complex(Between):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return torch.complex(y, y.exp())

    model = Complex(torch.tanh)
    with pytest.raises(ValueError, match=r"must be real.*abs"):
        full_gradients(model, images(), 1)
    terms = full_gradients(model, images(), lambda output: output.abs()[:, 0])
    assert terms.completeness_error.max() < EXACT
    assert terms.unbatched_by is None


def test_a_batch_that_cannot_be_run_alone_is_not_said_to_be_mixed() -> None:
    model = Between(lambda u: (u.logcumsumexp(0) * 0 + u).view(2, 8, 4, 4))  # made for two images
    with pytest.raises(ValueError, match=r"cannot be told apart behind logcumsumexp.*cannot run on one image alone: shape"):
        full_gradients(model, images(), 1)


# --- FullGrad warns --------------------------------------------------------------------------------------------------------------


def written(u: Tensor) -> Tensor:
    by_data(u)
    return u


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_of_terms_that_do_not_add_up_is_warned_about_once(dtype: torch.dtype) -> None:
    model, x = Between(written).to(dtype), images().to(dtype)
    with pytest.warns(UserWarning, match=r"miss .*% of the output.*mul past autograd.*without .data"):
        FullGrad(model).attribute(x, 1)
    for _ in range(3):  # a second warning would be an error
        FullGrad(model).attribute(x, 1)
        FullGrad(model).attribute_with_terms(x, 1)
    with pytest.warns(UserWarning, match="not complete"):
        FullGrad(Between(written).to(dtype)).attribute_with_terms(x[:1], 1)
    with pytest.warns(UserWarning, match="not complete"):
        SmoothFullGrad(Between(written).to(dtype), num_samples=2).attribute(x, 1)


def test_what_becomes_incomplete_later_is_warned_about() -> None:
    from itertools import count

    calls = count()
    method = FullGrad(Between(lambda u: written(u) if next(calls) > 6 else u))
    for _ in range(7):
        method.attribute(images(), 1)
    with pytest.warns(UserWarning, match="not complete"):
        method.attribute(images(), 1)


def test_a_gradient_that_is_not_finite_is_warned_about() -> None:
    class Norm(Between):
        def forward(self, x: Tensor) -> Tensor:
            zero = self.stem(x).relu() * 0
            return super().forward(x) + zero.square().sum((1, 2, 3)).sqrt()[:, None]

    with pytest.warns(UserWarning, match=r"gradients of \d of \d images are not finite.*For a root, add a small number"):
        FullGrad(Norm(torch.tanh)).attribute(images(), 1)


def test_some_gradients_that_are_not_finite_are_warned_about() -> None:
    class Branch(Between):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            root = (self.stem(x).relu().sum((1, 2, 3)) * torch.arange(len(x))).sqrt()
            return y + torch.where(torch.arange(len(x)) == 0, 1.0, root)[:, None]

    with pytest.warns(UserWarning, match=r"gradients of 1 of \d images are not finite.*torch\.where"):
        FullGrad(Branch(torch.tanh)).attribute(images(), 1)


def hooked(hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor]:
    """tanh behind a hook on the gradient, as gradient scaling and reversal are written."""

    def inner(u: Tensor) -> Tensor:
        u = u * 1
        if u.requires_grad:
            u.register_hook(hook)
        return u.tanh()

    return inner


def test_a_gradient_hook_is_named_where_it_changes_the_gradient() -> None:
    scaled = full_gradients(Between(hooked(lambda gradient: gradient * 0.1)), images(), 1)
    assert scaled.completeness_error.max() > 0.01
    assert scaled.missing_ops == ("a gradient hook (register_hook) in the model itself",)


def test_a_gradient_hook_that_only_looks_is_called_and_not_named() -> None:
    seen: list[torch.Size] = []
    for hook in (lambda gradient: seen.append(gradient.shape), lambda gradient: gradient.clone()):
        terms = full_gradients(Between(hooked(hook)), images(), 1)
        assert terms.completeness_error.max() < EXACT
        assert not terms.missing_ops
    assert len(seen) == 1


def test_rounding_and_what_is_complete_are_not_warned_about() -> None:
    class Cancelling(Between):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y - y.detach() + y * 1e-6  # float32 terms of size 1 that leave a millionth

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FullGrad(Cancelling(torch.tanh).float()).attribute(images().float(), 1)
        SimpleFullGrad(Between(written)).attribute(images(), 1)  # is not complete by its definition
        with torch.autocast("cpu", torch.bfloat16):
            FullGrad(Between(torch.tanh).float(), autocast=True).attribute(images().float(), 1)


def test_the_sum_is_checked_in_ever_fewer_runs_of_a_network() -> None:
    model, other = nn.Identity(), nn.Identity()
    due = [run for run in range(1, 17) if is_check_due(model, "exact")]
    assert due == [1, 2, 4, 8, 16]
    assert is_check_due(model, "locally_affine")
    assert is_check_due(other, "exact")
