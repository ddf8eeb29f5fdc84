"""Writes that autograd does not see are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fg_lightning import full_gradients
from tests.helpers.network_around import EXACT, Between, images


def by_data(u: Tensor) -> None:
    u.data.mul_(2)


def by_detach(u: Tensor) -> None:
    u.detach().add_(1.0)


def by_copy(u: Tensor) -> None:
    u.data.copy_(u.detach().tanh())


def by_assignment(u: Tensor) -> None:
    u.data = u.data * 2


def by_an_array(u: Tensor) -> None:
    array = u.detach().numpy()
    array *= 2


def by_an_index(u: Tensor) -> None:
    u.data[:, 1] = 1.0


def by_a_view(u: Tensor) -> None:
    u.view(-1).data.mul_(2)


def by_out(u: Tensor) -> None:
    torch.mul(u.detach(), 2, out=u.data)


def by_a_list(u: Tensor) -> None:
    torch._foreach_mul_([u.data], 2.0)


WRITES = [by_data, by_detach, by_copy, by_assignment, by_an_array, by_an_index, by_a_view, by_out, by_a_list]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_past_autograd_is_named(write: Callable[[Tensor], None], n: int) -> None:
    def inner(u: Tensor) -> Tensor:
        write(u)
        return u

    terms = full_gradients(Between(inner), images(n), 1)
    assert len(terms.missing_ops) == 1
    assert "past autograd" in terms.missing_ops[0]
    assert terms.completeness_error.min() > 1e-3
    assert terms.unbatched_by is None


def test_a_write_past_autograd_into_what_an_operation_keeps_is_named() -> None:
    def inner(u: Tensor) -> Tensor:
        y = u.sin()
        array = u.data.numpy()
        np.multiply(array, 2, out=array)
        return y

    assert "NumPy" in full_gradients(Between(inner), images(), 1).missing_ops[0]


def test_a_write_into_a_part_of_a_buffer_is_named() -> None:
    def inner(u: Tensor) -> Tensor:
        buffer = u.new_zeros(len(u), 16, *u.shape[2:])
        buffer[:, :8] = u
        buffer.detach()[:, 8:] = u.detach().relu()
        return buffer[:, :8] + buffer[:, 8:]

    terms = full_gradients(Between(inner), images(), 1)
    assert terms.missing_ops == ("setitem past autograd, through .data or detach(), in the model itself",)
    assert terms.unbatched_by is None


HARMLESS: dict[str, Callable[[Tensor], Any]] = {
    "nothing changed": lambda u: u.detach().add_(0.0),
    "a copy": lambda u: u.data.clone().add_(1.0),
    "read as an array": lambda u: u.detach().numpy().sum(),
    "an operation that autograd knows": lambda u: (u.detach().numpy(), u.add_(1.0), u.detach().numpy()),
    "under no_grad": lambda u: torch.no_grad()(u.mul_)(1.5),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_autograd_knows_is_not_named(name: str) -> None:
    def inner(u: Tensor) -> Tensor:
        HARMLESS[name](u)
        return u

    terms = full_gradients(Between(inner), images(), 1)
    assert not terms.missing_ops
    assert terms.completeness_error.max() < EXACT


def test_a_write_into_what_is_not_explained_is_not_named() -> None:
    class Side(Between):
        def forward(self, x: Tensor) -> Any:
            u = self.stem(x)
            side = u.exp()
            side.data.mul_(2)
            return self.head(u.mean((2, 3))), side

    terms = full_gradients(Side(nn.Identity()), images(), 1)
    assert not terms.missing_ops
    assert terms.completeness_error.max() < EXACT
