"""What is only half known: gradients that are not derivatives, leaves of the forward's own, writes past autograd. All is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fg_lightning import FullGrad, SimpleFullGrad, SmoothFullGrad, full_gradients
from fg_lightning.fullgrad import Term
from fg_lightning.fullgrad.decomposition import record

EXACT = 1e-10  # float64 sums of a few hundred numbers


class Between(nn.Module):
    """A convolution, what is tried, and a linear head."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.inner = inner
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.stem(x) * 1).mean((2, 3)))


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- backward passes that somebody wrote -----------------------------------------------------------------------------------------


def custom(backward: Callable[..., Any], forward: Callable[..., Any] = lambda z: z.sin() + z) -> Callable[..., Tensor]:
    """A function with this backward pass: (gradient, operands) -> the operands' gradients."""

    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *operands: Tensor) -> Tensor:
            ctx.save_for_backward(*operands)
            return forward(*operands)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return backward(gradient, *ctx.saved_tensors)

    return Custom.apply


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

    def visit(term: Term, bias: Any, gradient: Tensor) -> None:
        if term.operation == "Custom":
            shapes.append(gradient.shape)

    record(Between(custom(lambda g, z: g * (z.cos() + 1))), images(1), lambda output: output[:, 1], visit)
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


# --- writes past autograd --------------------------------------------------------------------------------------------------------


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


# --- failures --------------------------------------------------------------------------------------------------------------------


def test_a_rule_that_fails_is_named_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fg_lightning.fullgrad.operations.table import RULES

    def fails(call: Any) -> Any:
        raise TypeError("arguments of a kind that nobody thought of")

    monkeypatch.setitem(RULES, "tanh", fails)
    terms = full_gradients(Between(torch.tanh), images(), 1)
    assert terms.missing_ops == ("tanh in the model itself",)
    assert terms.unbatched_by is None


def test_a_layout_rule_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fg_lightning.fullgrad.operations.table import MOVERS

    def fails(*args: Any) -> Any:
        raise IndexError("a dimension that is not there")

    monkeypatch.setitem(MOVERS, "tanh", fails)
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
    with pytest.raises(ValueError, match=r"cannot be told apart behind logcumsumexp.*cannot be run on one image alone: shape"):
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

    with pytest.warns(UserWarning, match=r"gradients of \d of \d images are not finite.*under the root"):
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
