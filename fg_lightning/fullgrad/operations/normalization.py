"""Rules of normalization by running statistics (affine), or by the input's statistics (degree 0, except for shift and eps)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Layout
from fg_lightning.fullgrad.linearization import Bias, ChannelShift, Deferred
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.operations.layout_rules import LayoutOf, first_layout, ignores_constants

BATCH_NORM_OPERANDS = ((1, "weight"), (2, "bias"), (3, "running_mean"), (4, "running_var"))


def batch_norm(op: Operation) -> list[Bias]:
    weight, bias, mean, var = (op.argument(*operand) for operand in BATCH_NORM_OPERANDS)
    if op.name == "native_batch_norm_legit_no_training":
        return [Bias("explicit", _shift_by_running_statistics(op, weight, bias, mean, var, op.argument(6, "eps")))]
    own_statistics = op.argument(5, "training" if op.name == "batch_norm" else "use_input_stats")
    eps = op.argument(7, "eps")
    if not own_statistics:
        return [Bias("explicit", _shift_by_running_statistics(op, weight, bias, mean, var, eps))]
    shape = op.outputs[0]
    bias = None if bias is None else _per_channel(bias, shape)
    axes = [0, *range(2, shape.ndim)] if op.name == "batch_norm" else list(range(2, shape.ndim))
    return _normalize(op, lambda z: z.var(axes, correction=0, keepdim=True), bias, eps)


def _shift_by_running_statistics(
    op: Operation, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> ChannelShift:
    """The bias of batch norm in evaluation mode, for each channel."""
    gamma = torch.ones_like(mean) if weight is None else weight
    beta = torch.zeros_like(mean) if bias is None else bias
    return ChannelShift(gamma, beta, mean, var, eps, op.outputs[0].ndim, op.outputs[0].dtype)


def layer_norm(op: Operation) -> list[Bias]:
    """The bias is computed from the operand, which the backward pass keeps anyway: var / (var + eps) = 1 - eps rstd^2."""
    shape, weight, bias = (op.argument(i, name) for i, name in ((1, "normalized_shape"), (2, "weight"), (3, "bias")))
    eps = op.argument(4, "eps", 1e-5)

    def implicit(z: Tensor) -> Tensor:
        normed, _, rstd = torch.native_layer_norm(z, shape, weight, None, eps)
        return normed.addcmul_(normed, rstd.square(), value=-eps)

    biases = [Bias("implicit", Deferred(implicit, (op.value(op.args[0]),)))]
    return biases if bias is None else [Bias("explicit", bias), *biases]


def rms_norm(op: Operation) -> list[Bias]:
    axes = tuple(range(-len(op.argument(1, "normalized_shape")), 0))
    eps = op.argument(3, "eps")
    eps = torch.finfo(op.outputs[0].dtype).eps if eps is None else eps
    return _normalize(op, lambda z: z.square().mean(axes, keepdim=True), None, eps)


def group_norm(op: Operation) -> list[Bias]:
    return _in_groups(op, op.argument(1, "num_groups"), op.argument(3, "bias"), op.argument(4, "eps", 1e-5))


def native_group_norm(op: Operation) -> list[Bias]:
    return _in_groups(op, op.argument(6, "group"), op.argument(2, "bias"), op.argument(7, "eps"))


def _in_groups(op: Operation, groups: int, bias: Tensor | None, eps: float) -> list[Bias]:
    def variance(z: Tensor) -> Tensor:
        per_group = z.reshape(z.shape[0], groups, -1).var(-1, correction=0, keepdim=True)
        per_channel = per_group.expand(-1, -1, z.shape[1] // groups).reshape(z.shape[0], z.shape[1])
        return per_channel.reshape(*z.shape[:2], *(1,) * (z.ndim - 2))

    return _normalize(op, variance, None if bias is None else _per_channel(bias, op.outputs[0]), eps)


def _normalize(op: Operation, statistics_of: Callable[[Tensor], Tensor], bias: Tensor | None, eps: float) -> list[Bias]:
    """gamma (z - mean) / sqrt(var + eps) + beta: of degree 0 except for beta and eps, so J z = eps / (var + eps) (y - beta).

    `statistics_of` returns the variance (or mean square) within groups, broadcastable to the output.
    """

    def implicit(z: Tensor, y: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        variance = statistics_of(z)
        return (y - shift).mul_(variance / (variance + eps))

    operands = (op.value(op.args[0]), op.result())
    biases = [Bias("implicit", Deferred(implicit, operands if bias is None else (*operands, bias)))]
    return biases if bias is None else [Bias("explicit", bias), *biases]


def _per_channel(vector: Tensor, output: Tensor) -> Tensor:
    """[C] as [C, 1, ...], to be added to [N, C, *S]."""
    return vector.reshape(-1, *(1,) * (output.ndim - 2))


@ignores_constants
def norm_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Normalization of [N, C, *S] within each sample or channel, or by constants."""
    layout = first_layout(op, layout_of)
    if len(op.dependent) > 1:
        return None
    first = 1 if op.name in ("group_norm", "native_group_norm") else 2
    mixed = layout.dims[first:]
    if op.name in ("batch_norm", "native_batch_norm_legit_no_training"):
        own_statistics = op.name == "batch_norm" and op.argument(5, "training")
        mixed = (layout.dims[0], *mixed) if own_statistics else ()
    if output is not op.outputs[0]:
        return None
    return None if any(dim.has(SAMPLE) for dim in mixed) else layout
