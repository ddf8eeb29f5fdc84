"""The forms of a bias, and the general fallback: b = y - J z for any differentiable operation."""

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
    """A bias whose entry at each place depends only on the entries of its operands there. It can be computed in blocks.

    Attributes:
        function: elementwise function of the operands.
        operands: tensors that can be broadcast to the operation's output.
        is_zero: function of the operands that checks, faster than the bias is computed, whether it is 0 everywhere. None if
            there is none.
    """

    function: Callable[..., Tensor]
    operands: tuple[Tensor, ...]
    is_zero: Callable[..., bool] | None = None

    def __call__(self) -> Tensor:
        return self.function(*self.operands)


class Deferred(NamedTuple):
    """A bias that is computed as a whole when its gradient arrives.

    Attributes:
        function: function of the operands.
        operands: tensors that it reads. The bias is computed earlier if one of them is about to be overwritten.
    """

    function: Callable[..., Tensor]
    operands: tuple[Tensor, ...]

    def __call__(self) -> Tensor:
        return self.function(*self.operands)


class ChannelShift(NamedTuple):
    """The bias of a normalization by running statistics, beta - gamma mean / sqrt(var + eps).

    Many of them can be computed with as many calls as one.

    Attributes:
        gamma: scale, [C].
        beta: shift, [C].
        mean: running mean, [C].
        var: running variance, [C].
        eps: number that is added to the variance.
        ndim: number of dimensions of the operation's output, [N, C, ...].
        dtype: type of the output.
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
        """The tensors that it reads."""
        return self[:4]

    def __call__(self) -> Tensor:
        """The bias, [C, 1, ...]."""
        return self.compute_together([self])[0]

    @staticmethod
    def compute_together(shifts: Sequence[ChannelShift]) -> list[Tensor]:
        """The biases, [C, 1, ...] each, of several shifts with the same epsilon, precision and device."""
        gamma, beta, mean, var = (torch.cat(vectors) for vectors in zip(*[shift.operands for shift in shifts], strict=True))
        shift = torch.addcmul(beta, mean, var.add_(shifts[0].eps).rsqrt_().mul_(gamma), value=-1)
        pieces = shift.split([len(shift.mean) for shift in shifts])
        return [piece.reshape(-1, *(1,) * (own.ndim - 2)).to(own.dtype) for piece, own in zip(pieces, shifts, strict=True)]

    @property
    def group(self) -> tuple[Any, ...]:
        """A key: shifts with the same key can be computed together."""
        return self.eps, self.mean.dtype, self.mean.device


def compute_bias(bias: Tensor | Pointwise) -> Tensor:
    return bias if isinstance(bias, Tensor) else bias()


def real_product(gradient: Tensor, bias: Tensor) -> Tensor:
    """The contribution of a bias, entry by entry. Torch's gradient at a complex tensor is the conjugate of the factor."""
    return (gradient.conj() * bias).real if gradient.is_complex() else gradient * bias


class Summed(NamedTuple):
    """A bias b = y - J z of which only the contribution to each sample is known, <g, b> = <g, y> - <J^T g, z>.

    J^T g is one backward pass of the operation. The position of the bias on the image plane stays unknown.

    Attributes:
        output: y, with the autograd graph of a second run of the operation.
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
    """A bias of one output of an operation, which can be broadcast to it. It may be computed when its gradient arrives.

    Attributes:
        kind: "explicit" for a bias of weights and constants, "implicit" for a bias of a non-linearity.
        value: the bias, or an object that computes it.
        output: index of the output. Default: 0.
        is_fallback: whether `linearize` computed it. Default: False.
    """

    kind: Kind
    value: Tensor | Pointwise | Deferred | ChannelShift | Summed
    output: int = 0
    is_fallback: bool = False


class NotDifferentiable(RuntimeError):
    """The operation cannot be run again, so its bias is unknown."""


BiasRule = Callable[[Operation], list[Bias]]


def reads_overwritten(when: Callable[[Operation], bool] = lambda op: True) -> Callable[[BiasRule], BiasRule]:
    """Mark a rule that reads the operand that an in-place operation overwrites. If `when` holds, a copy of it is kept.

    `x += y` and `x *= 2` do not need a copy.
    """

    def mark(rule: BiasRule) -> BiasRule:
        rule.reads_overwritten = when  # type: ignore[attr-defined]
        return rule

    return mark


@reads_overwritten()
def linearize(op: Operation) -> list[Bias]:
    """y - J z by a Jacobian-vector product: correct for any differentiable operation. It runs the operation again.

    If neither forward mode nor two reverse passes can differentiate the operation, its own backward pass gives the contribution of
    the bias, but not its position.

    Raises:
        NotDifferentiable: if the operation cannot be run again.
    """
    # The forward mode of a custom function may differ from its backward pass, which is decomposed.
    modes = (_double_reverse_mode,) if op.is_custom else (_forward_mode, _double_reverse_mode)
    for mode in modes:
        with suppress(Exception):  # torch has no formula for this mode, or the user's function has no such derivative
            return [Bias("implicit", value, i, is_fallback=True) for i, value in enumerate(mode(op))]
    try:
        return [Bias("implicit", value, i, is_fallback=True) for i, value in enumerate(_reverse_mode(op))]
    except Exception as error:
        raise NotDifferentiable(str(error)) from error


def if_constant(rule: BiasRule, *operands: tuple[int, str]) -> BiasRule:
    """A rule that applies `rule` if the named operands (weights, statistics) are constants, and `linearize` otherwise."""

    def rule_or_linearize(op: Operation) -> list[Bias]:
        if len(op.dependent) == 1 and op.dependent[0] is op.args[0]:
            return rule(op)
        return linearize(op) if any(op.depends(op.argument(*operand)) for operand in operands) else rule(op)

    return rule_or_linearize


def _dependent_outputs(op: Operation, result: Any) -> list[Tensor]:
    """The tensors in the result of a repeated run that correspond to the operation's outputs."""
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
        # A custom function may also work in place, and a leaf must not be overwritten.
        return operands[-1].clone() if op.in_place or op.is_custom else operands[-1]

    with torch.enable_grad():
        return operands, _dependent_outputs(op, op.repeat(*map_tensors(leaf, (op.args, op.kwargs))))


def _reverse_mode(op: Operation) -> list[Summed]:
    operands, outputs = _run_on_leaves(op)
    return [Summed(output, operands) for output in outputs]


def _forward_mode(op: Operation) -> list[Tensor]:
    """y - J z, with J z as the tangent of the output for the tangent z.

    Raises:
        NotImplementedError: if there is no tangent: the operation has no formula for it, or an output does not depend on z.
    """
    with forward_ad.dual_level(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised inside torch, whose forward-mode formulas use scripting

        def dual(t: Tensor) -> Tensor:
            value = op.value(t)
            if not op.depends(t):
                return value
            return forward_ad.make_dual(value.clone() if op.in_place else value, value.clone())

        result = op.repeat(*map_tensors(dual, (op.args, op.kwargs)))
        tangents = [forward_ad.unpack_dual(t).tangent for t in _dependent_outputs(op, result)]
        if any(t is None for t in tangents):
            raise NotImplementedError("the operation has no forward-mode derivative")
        return [y.detach() - t for y, t in zip(op.outputs, tangents, strict=True)]


def _double_reverse_mode(op: Operation) -> list[Tensor]:
    """y - J z, with J z as the derivative of v -> J^T v along z. This function is linear in v.

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
    # The probes have several sizes, since a backward pass may clip its gradient or drop small ones.
    if not all(_is_adjoint(p, operands, v, tangents) for p, v in zip([pulled, *pulled_again], [probes, *others], strict=True)):
        raise NotImplementedError("the operation's backward pass is not differentiable, or not linear")
    return [y.detach() if t is None else y.detach() - t for t, y in zip(tangents, op.outputs, strict=True)]


Tensors = Sequence[Union[Tensor, None]]


def _is_adjoint(pulled: Tensors, operands: Tensors, probes: Tensors, tangents: Tensors) -> bool:
    """Whether <J^T v, z> = <v, J z> up to rounding, as for one Jacobian. None counts as zero."""
    sums, magnitude = [], 0.0
    for pairs in ((pulled, operands), (probes, tangents)):
        products = [real_product(a.detach(), b.detach()) for a, b in zip(*pairs, strict=True) if a is not None and b is not None]
        sums.append(sum(float(p.sum(dtype=torch.float64)) for p in products))
        magnitude += sum(float(p.abs().sum(dtype=torch.float64)) for p in products)
    precision = max(torch.finfo(t.dtype).eps for t in operands if t is not None)
    return math.isfinite(magnitude) and abs(sums[0] - sums[1]) <= math.sqrt(precision) * magnitude


def _anything_like(tensor: Tensor, start: float = 1) -> Tensor:
    """A vector, without random numbers, that a Jacobian other than zero is unlikely to map to zero."""
    return torch.linspace(start, start + 1, tensor.numel(), dtype=torch.float64).cos().reshape(tensor.shape).to(tensor)
