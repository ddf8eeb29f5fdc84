"""Backward passes that are no derivatives, and leaves that a forward makes: they count exactly, or are named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fg_lightning import FullGrad, full_gradients
from fg_lightning.fullgrad import Term
from tests.helpers.network_around import EXACT, Between, custom, images


def fixed_point(u: Tensor) -> Tensor:
    z = torch.zeros_like(u)
    for _ in range(80):
        z = torch.tanh(z / 2 + u)
    return z


def through_the_fixed_point(gradient: Tensor, u: Tensor) -> Tensor:
    with torch.enable_grad():
        z = fixed_point(u).detach().requires_grad_()
        again = torch.tanh(z / 2 + u.detach())
    total = gradient
    for _ in range(80):
        total = torch.autograd.grad(again, z, total, retain_graph=True)[0] + gradient
    return total * (1 - z.detach() ** 2)


def by_numpy(gradient: Tensor, z: Tensor) -> Tensor:
    slope = np.cos(z.detach().numpy()) + 1
    return torch.from_numpy(gradient.detach().numpy() * slope)


def refused_twice(gradient: Tensor, z: Tensor) -> Tensor:
    if gradient.requires_grad:
        raise KeyError("not twice")
    return gradient * (z.cos() + 1)


BACKWARD: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "a solver's": lambda: custom(through_the_fixed_point, fixed_point),
    "in part detached": lambda: custom(lambda g, z: g.detach() * z.cos() + g),
    "in part .data": lambda: custom(lambda g, z: g.data * z.cos() + g),
    "of NumPy": lambda: custom(by_numpy),
    "that clips": lambda: custom(lambda g, z: (g * (z.cos() + 1)).clamp(-1e-3, 1e-3)),
    "that drops what is small": lambda: custom(lambda g, z: torch.where(g.abs() > 1e-4, g * (z.cos() + 1), 0)),
    "that takes the sign": lambda: custom(lambda g, z: g.sign() * z),
    "that cannot be differentiated": lambda: custom(refused_twice),
    "of another function": lambda: custom(lambda g, z: 2 * g, torch.round),
    "one of two operands detached": lambda: lambda z: custom(lambda g, a, b: (g * b, (g * a).detach()), torch.mul)(z, z.tanh()),
    "one of two operands in part": lambda: (
        lambda z: custom(lambda g, a, b: (g * b, g * a / 2 + (g * a).detach() / 2), torch.mul)(z, z.exp())
    ),
}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_pass_that_is_no_derivative_counts_as_it_is(name: str, n: int) -> None:
    terms = full_gradients(Between(BACKWARD[name]()), images(n), 1)
    assert not terms.missing_ops
    assert terms.completeness_error.max() < EXACT


def test_a_backward_pass_that_is_one_is_known_place_by_place() -> None:
    shapes = []

    def layout(term: Term, values: Tensor) -> None:
        if term.operation == "Custom":
            shapes.append(values.shape)

    FullGrad(Between(custom(lambda g, z: g * (z.cos() + 1))), layout=layout).attribute(images(1), 1)
    assert shapes == [(1, 8, 4, 4)]


# --- leaves of the forward's own -------------------------------------------------------------------------------------------------


def guided(u: Tensor) -> Tensor:
    z = u.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(z.tanh().square().sum(), z)
    return u - gradient / 2


def descended(u: Tensor) -> Tensor:
    z = torch.zeros_like(u, requires_grad=True)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(((z - u) ** 2 + z**4).sum(), z)
        with torch.no_grad():
            z -= gradient / 10
    return u.tanh() + z.sin()


def optimised(u: Tensor) -> Tensor:
    z = nn.Parameter(u.detach().clone())
    optimizer = torch.optim.SGD([z], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ((z - u.detach()) ** 2 + z**4).sum().backward()
        optimizer.step()
    return u.exp() + z


def by_backward(u: Tensor) -> Tensor:
    z = torch.ones_like(u).requires_grad_()
    (z * u).tanh().sum().backward()
    assert z.grad is not None
    return u.exp() * z.grad + z


def own_gradient(u: Tensor) -> Tensor:
    energy = u.tanh().square()
    (gradient,) = torch.autograd.grad(energy.sum(), u)
    return energy + gradient + u


def written_into_what_was_made_of_a_leaf(u: Tensor) -> Tensor:
    z = torch.full((1, 8, 1, 1), 0.7, dtype=u.dtype, requires_grad=True) * torch.ones_like(u)
    z.add_(u)
    return z.exp()


LEAVES: dict[str, Callable[[Tensor], Tensor]] = {
    "a gradient at a detached copy": guided,
    "steps down an energy": descended,
    "an optimiser's steps": optimised,
    "backward()": by_backward,
    "a gradient at what depends on the images": own_gradient,
    "a leaf used as it is": lambda u: u * torch.full_like(u, 0.7).requires_grad_() + torch.ones(8, 1, 1).double().requires_grad_(),
    "written into what was made of a leaf": written_into_what_was_made_of_a_leaf,
}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", LEAVES)
def test_leaves_of_the_forward_stay_leaves_and_are_constants(name: str, n: int) -> None:
    model = Between(LEAVES[name])
    expected = model(images(n))[:, 1].detach()
    model.zero_grad()
    terms = full_gradients(model, images(n), 1)
    torch.testing.assert_close(terms.output, expected, rtol=1e-12, atol=1e-12)  # float64 rounding
    assert not terms.missing_ops
    assert terms.completeness_error.max() < EXACT
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("n", [1, 2])
def test_a_gradient_with_a_graph_of_its_own_is_named(n: int) -> None:
    def energy_step(u: Tensor) -> Tensor:
        z = torch.zeros_like(u, requires_grad=True)
        (gradient,) = torch.autograd.grad(((z - u).square() / 2 + (z - 1).pow(4) / 4).sum(), z, create_graph=True)
        return z - gradient / 2

    terms = full_gradients(Between(energy_step), images(n), 1)
    assert "which torch did not show" in terms.missing_ops[0]


def test_an_output_made_of_leaves_alone_is_refused() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3, dtype=x.dtype, requires_grad=True) * 2

    with pytest.raises(ValueError, match="does not depend on the images"):
        full_gradients(Constant(), images(), 1)
