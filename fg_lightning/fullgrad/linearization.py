"""What a bias is, and the general fallback: b = y - J z for any differentiable operation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, Union

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fg_lightning.fullgrad.operation import Operation, map_tensors, tensors_in

Kind = Literal["explicit", "implicit"]


class Pointwise(NamedTuple):
    """A bias that at each place depends only on what its operands hold there, so that it can be computed in blocks.

    Attributes:
        function: elementwise.
        operands: broadcastable to the operation's output.
        is_zero: from the operands, whether the bias is 0 everywhere, if that is faster to tell than to compute it.
    """

    function: Callable[..., Tensor]
    operands: tuple[Tensor, ...]
    is_zero: Callable[..., bool] | None = None

    def __call__(self) -> Tensor:
        return self.function(*self.operands)


class Deferred(NamedTuple):
    """A bias that is computed as a whole when its gradient comes.

    Attributes:
        function: of the operands.
        operands: what it reads; if one of them is about to be overwritten, the bias is computed before.
    """

    function: Callable[..., Tensor]
    operands: tuple[Tensor, ...]

    def __call__(self) -> Tensor:
        return self.function(*self.operands)


class ChannelShift(NamedTuple):
    """The bias of a normalization by running statistics, beta - gamma mean / sqrt(var + eps).

    Many of them cost as many calls as one.

    Attributes:
        gamma: [C], as all the following.
        beta: the shift.
        mean: the running mean.
        var: the running variance.
        eps: added to the variance.
        ndim: number of dimensions of the operation's output, [N, C, ...].
        dtype: of the output.
    """

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    eps: float
    ndim: int
    dtype: torch.dtype

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """What it reads."""
        return self[:4]

    def __call__(self) -> Tensor:
        """[C, 1, ...]"""
        return self.compute_together([self])[0]

    @staticmethod
    def compute_together(shifts: Sequence[ChannelShift]) -> list[Tensor]:
        """Several of one epsilon, in one precision, on one device: [C, 1, ...] each."""
        gamma, beta, mean, var = (torch.cat(vectors) for vectors in zip(*[shift.operands for shift in shifts], strict=True))
        shift = torch.addcmul(beta, mean, var.add_(shifts[0].eps).rsqrt_().mul_(gamma), value=-1)
        pieces = shift.split([len(shift.mean) for shift in shifts])
        return [piece.reshape(-1, *(1,) * (own.ndim - 2)).to(own.dtype) for piece, own in zip(pieces, shifts, strict=True)]

    @property
    def group(self) -> tuple[Any, ...]:
        """Shifts of one group can be computed together."""
        return self.eps, self.mean.dtype, self.mean.device


def compute_bias(bias: Tensor | Pointwise) -> Tensor:
    return bias if isinstance(bias, Tensor) else bias()


def real_product(gradient: Tensor, bias: Tensor) -> Tensor:
    """What a bias contributes, entry by entry. Torch's gradient at a complex tensor is the conjugate of the factor."""
    return (gradient.conj() * bias).real if gradient.is_complex() else gradient * bias


class Summed(NamedTuple):
    """A bias b = y - J z that is known only by its contribution to each sample, <g, b> = <g, y> - <J^T g, z>.

    J^T g is one backward pass of the operation. It does not tell in which place the bias lies.

    Attributes:
        output: y, with the history of a second run of the operation.
        operands: z, in the order of the operation's dependent operands.
    """

    output: Tensor
    operands: list[Tensor]

    def contributions(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """The entries of <g, y> and, for each operand, those of <J^T g, z>."""
        pulled = torch.autograd.grad(self.output, self.operands, gradient, retain_graph=True, materialize_grads=True)
        pairs = zip((gradient, *pulled), (self.output, *self.operands), strict=True)
        return tuple(real_product(of, values.detach()) for of, values in pairs)


class Bias(NamedTuple):
    """A bias of one output of an operation, broadcastable to it; computed when its gradient comes if that saves memory.

    Attributes:
        kind: "explicit" if it is of weights and constants, "implicit" if it is of a non-linearity.
        value: the bias, or how to compute it.
        output: number of the output.
        is_fallback: whether `linearize` made it.
    """

    kind: Kind
    value: Tensor | Pointwise | Deferred | ChannelShift | Summed
    output: int = 0
    is_fallback: bool = False


class NotDifferentiable(RuntimeError):
    """An operation that cannot be run again, so that its bias is unknown."""


BiasRule = Callable[[Operation], list[Bias]]


def reads_overwritten(when: Callable[[Operation], bool] = lambda op: True) -> Callable[[BiasRule], BiasRule]:
    """Mark a rule that reads the operand which an in-place operation overwrites, if `when` holds: a copy is kept then.

    `x += y` and `x *= 2` need none.
    """

    def mark(rule: BiasRule) -> BiasRule:
        rule.reads_overwritten = when  # type: ignore[attr-defined]
        return rule

    return mark


@reads_overwritten()
def linearize(op: Operation) -> list[Bias]:
    """y - J z by a Jacobian-vector product: right for any differentiable operation, which it runs again.

    If neither forward mode nor two reverse passes can differentiate the operation, its own backward pass tells what the bias
    contributes, but not where.

    Raises:
        NotDifferentiable: if the operation cannot be run again.
    """
    # The forward mode of a custom function need not agree with its backward pass, which is what gets decomposed.
    modes = (_double_reverse_mode,) if op.is_custom else (_forward_mode, _double_reverse_mode)
    for mode in modes:
        with suppress(Exception):  # there is no formula for this mode, or the user's function has no such derivative
            return [Bias("implicit", value, i, is_fallback=True) for i, value in enumerate(mode(op))]
    try:
        return [Bias("implicit", value, i, is_fallback=True) for i, value in enumerate(_reverse_mode(op))]
    except Exception as error:
        raise NotDifferentiable(str(error)) from error


def if_constant(rule: BiasRule, *operands: tuple[int, str]) -> BiasRule:
    """The rule if the named operands (weights, statistics) are constants, otherwise `linearize`."""

    def rule_or_linearize(op: Operation) -> list[Bias]:
        if len(op.dependent) == 1 and op.dependent[0] is op.args[0]:
            return rule(op)
        return linearize(op) if any(op.depends(op.argument(*operand)) for operand in operands) else rule(op)

    return rule_or_linearize


def _dependent_outputs(op: Operation, result: Any) -> list[Tensor]:
    """The tensors in the result of a repetition that correspond to the operation's own outputs."""
    tensors = tensors_in(result)
    return [tensors[i] for i in op.positions]


def _run_on_leaves(op: Operation) -> tuple[list[Tensor], list[Tensor]]:
    """Run the operation again, with its dependent operands as leaves of a graph: (operands, outputs)."""
    operands: list[Tensor] = []

    def leaf(t: Tensor) -> Tensor:
        value = op.value(t)
        if not op.depends(t):
            return value
        operands.append(value.clone().requires_grad_())
        # A custom function may work in place as well, and no leaf may be overwritten.
        return operands[-1].clone() if op.in_place or op.is_custom else operands[-1]

    with torch.enable_grad():
        return operands, _dependent_outputs(op, op.repeat(*map_tensors(leaf, (op.args, op.kwargs))))


def _reverse_mode(op: Operation) -> list[Summed]:
    operands, outputs = _run_on_leaves(op)
    return [Summed(output, operands) for output in outputs]


def _forward_mode(op: Operation) -> list[Tensor]:
    """y - J z, with J z as the tangent that comes of z.

    Raises:
        NotImplementedError: if the tangent is lost: the operation has no formula for it, or an output does not depend on z.
    """
    with forward_ad.dual_level(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of the scripting behind its forward-mode formulas

        def dual(t: Tensor) -> Tensor:
            value = op.value(t)
            if not op.depends(t):
                return value
            return forward_ad.make_dual(value.clone() if op.in_place else value, value.clone())

        result = op.repeat(*map_tensors(dual, (op.args, op.kwargs)))
        tangents = [forward_ad.unpack_dual(t).tangent for t in _dependent_outputs(op, result)]
        if any(t is None for t in tangents):
            raise NotImplementedError("the operation does not carry tangents along")
        return [y.detach() - t for y, t in zip(op.outputs, tangents, strict=True)]


def _double_reverse_mode(op: Operation) -> list[Tensor]:
    """y - J z, with J z as the derivative of v -> J^T v, which is linear in v, along z.

    Raises:
        NotImplementedError: if the operation's backward pass cannot be differentiated, or is not linear.
    """
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        operands, outputs = _run_on_leaves(op)
        probes = [_anything_like(y).requires_grad_() for y in outputs]
        pulled = torch.autograd.grad(outputs, operands, probes, create_graph=True, allow_unused=True)
        linked = [(p, z.detach()) for p, z in zip(pulled, operands, strict=True) if p is not None and p.requires_grad]
        tangents: tuple[Tensor | None, ...] = (None,) * len(outputs)
        if linked:
            along = [p for p, _ in linked], probes, [z for _, z in linked]
            tangents = torch.autograd.grad(*along, retain_graph=True, allow_unused=True)
        others = [[_anything_like(y, start=5) * scale for y in outputs] for scale in (1e-6, 1e6)]
        pulled_again = [torch.autograd.grad(outputs, operands, other, retain_graph=True, allow_unused=True) for other in others]
    # Of several sizes, since a backward pass may clip its gradient, or drop a small one.
    if not all(_is_adjoint(p, operands, v, tangents) for p, v in zip([pulled, *pulled_again], [probes, *others], strict=True)):
        raise NotImplementedError("the operation's backward pass is not differentiable, or not linear")
    return [y.detach() if t is None else y.detach() - t for t, y in zip(tangents, op.outputs, strict=True)]


Tensors = Sequence[Union[Tensor, None]]


def _is_adjoint(pulled: Tensors, operands: Tensors, probes: Tensors, tangents: Tensors) -> bool:
    """Whether <J^T v, z> = <v, J z> up to rounding, as it must be for one Jacobian; None counts for zero."""
    sums, magnitude = [], 0.0
    for pairs in ((pulled, operands), (probes, tangents)):
        products = [real_product(a.detach(), b.detach()) for a, b in zip(*pairs, strict=True) if a is not None and b is not None]
        sums.append(sum(float(p.sum(dtype=torch.float64)) for p in products))
        magnitude += sum(float(p.abs().sum(dtype=torch.float64)) for p in products)
    precision = max(torch.finfo(t.dtype).eps for t in operands if t is not None)
    return math.isfinite(magnitude) and abs(sums[0] - sums[1]) <= math.sqrt(precision) * magnitude


def _anything_like(tensor: Tensor, start: float = 1) -> Tensor:
    """A vector that only a zero Jacobian is likely to map to zero, without random numbers."""
    return torch.linspace(start, start + 1, tensor.numel(), dtype=torch.float64).cos().reshape(tensor.shape).to(tensor)
