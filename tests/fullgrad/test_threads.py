"""Two threads may explain at once, and torch is as it was for both."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import pytest
import torch
import torch._functorch.apis as functorch_apis
import torch._functorch.eager_transforms as eager_transforms
from torch import Tensor, nn
from torch.autograd.function import FunctionMeta
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import CheckpointFunction

from fg_lightning import full_gradients


class Between(nn.Module):
    """Does something else in the middle of its forward."""

    def __init__(self, something: Callable[[], Any]) -> None:
        super().__init__()
        self.head = nn.Linear(108, 3)
        self.something = something

    def forward(self, x: Tensor) -> Tensor:
        self.something()
        return self.head(x.flatten(1))


def patched() -> list[Any]:
    """What of torch is not itself while a model is met."""
    return [
        vars(CheckpointFunction).get("apply"),
        vars(FunctionMeta).get("__getattribute__"),
        *(value for name, value in vars(checkpoints).items() if name.startswith("_checkpoint_without_reentrant_generator")),
        *(vars(functorch_apis)["vmap_impl"], eager_transforms.grad_impl),
    ]


def test_threads_leave_torch_as_it_was() -> None:
    first_in, second_in, first_out = Event(), Event(), Event()
    x, before, errors = torch.rand(2, 3, 6, 6), patched(), {}

    def first() -> None:
        model = Between(lambda: (first_in.set(), second_in.wait(0.3)))  # until the second is in as well, if it ever comes in
        errors["first"] = full_gradients(model, x, 0).completeness_error.max()
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        errors["second"] = full_gradients(Between(lambda: (second_in.set(), first_out.wait(10))), x, 0).completeness_error.max()

    threads = [Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(now is then for now, then in zip(patched(), before, strict=True))
    assert max(errors["first"], errors["second"]) < 1e-4  # float32


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_of_other_threads_go_on_being_checkpoints(use_reentrant: bool) -> None:
    runs: list[Tensor] = []

    def train() -> None:
        z = torch.ones(3, requires_grad=True)
        checkpoints.checkpoint(lambda z: (runs.append(z), z.exp())[1], z, use_reentrant=use_reentrant).sum().backward()

    def in_another_thread() -> None:
        thread = Thread(target=train)
        thread.start()
        thread.join()

    full_gradients(Between(in_another_thread), torch.rand(2, 3, 6, 6), 0)
    assert len(runs) == 2  # once more in the backward pass
