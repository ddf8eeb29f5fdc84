"""Normalisation, by running statistics (affine) or by the input's own (of degree 0 but for its shift and eps)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fg_lightning.fullgrad.linearization import Bias
from fg_lightning.fullgrad.operation import Call

BATCH_NORM_OPERANDS = ((1, "weight"), (2, "bias"), (3, "running_mean"), (4, "running_var"))


def batch_norm(call: Call) -> list[Bias]:
    weight, bias, mean, var = (call.argument(*operand) for operand in BATCH_NORM_OPERANDS)
    if call.name == "native_batch_norm_legit_no_training":
        return [Bias("explicit", _normalised_by_running_statistics(call, weight, bias, mean, var, call.argument(6, "eps")))]
    own_statistics = call.argument(5, "training" if call.name == "batch_norm" else "use_input_stats")
    eps = call.argument(7, "eps")
    if not own_statistics:
        return [Bias("explicit", _normalised_by_running_statistics(call, weight, bias, mean, var, eps))]
    shape = call.outputs[0]
    bias = None if bias is None else _per_channel(bias, shape)
    axes = [0, *range(2, shape.ndim)] if call.name == "batch_norm" else list(range(2, shape.ndim))
    return _normalised(call, lambda z: z.var(axes, correction=0, keepdim=True), bias, eps)


def _normalised_by_running_statistics(call: Call, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Batch norm in evaluation of a single zero: beta - gamma mu / sqrt(var + eps), per channel."""
    zero = torch.zeros_like(mean).unsqueeze(0)
    at_zero = torch.batch_norm(zero, weight, bias, mean, var, False, 0.0, eps, False)
    return _per_channel(at_zero, call.outputs[0]).to(call.outputs[0].dtype)


def layer_norm(call: Call) -> list[Bias]:
    """From the operand alone, which the backward pass keeps anyway: var / (var + eps) = 1 - eps rstd^2."""
    shape, weight, bias = (call.argument(i, name) for i, name in ((1, "normalized_shape"), (2, "weight"), (3, "bias")))
    eps = call.argument(4, "eps", 1e-5)
    z = call.value(call.args[0])

    def implicit() -> Tensor:
        normed, _, rstd = torch.native_layer_norm(z, shape, weight, None, eps)
        return normed.mul_(1 - eps * rstd * rstd)

    biases = [Bias("implicit", implicit)]
    return biases if bias is None else [Bias("explicit", bias), *biases]


def rms_norm(call: Call) -> list[Bias]:
    axes = tuple(range(-len(call.argument(1, "normalized_shape")), 0))
    eps = call.argument(3, "eps")
    eps = torch.finfo(call.outputs[0].dtype).eps if eps is None else eps
    return _normalised(call, lambda z: z.square().mean(axes, keepdim=True), None, eps)


def group_norm(call: Call) -> list[Bias]:
    return _in_groups(call, call.argument(1, "num_groups"), call.argument(3, "bias"), call.argument(4, "eps", 1e-5))


def native_group_norm(call: Call) -> list[Bias]:
    return _in_groups(call, call.argument(6, "group"), call.argument(2, "bias"), call.argument(7, "eps"))


def _in_groups(call: Call, groups: int, bias: Tensor | None, eps: float) -> list[Bias]:
    def variance(z: Tensor) -> Tensor:
        per_group = z.reshape(z.shape[0], groups, -1).var(-1, correction=0, keepdim=True)
        per_channel = per_group.expand(-1, -1, z.shape[1] // groups).reshape(z.shape[0], z.shape[1])
        return per_channel.reshape(*z.shape[:2], *(1,) * (z.ndim - 2))

    return _normalised(call, variance, None if bias is None else _per_channel(bias, call.outputs[0]), eps)


def _normalised(call: Call, statistics_of: Callable[[Tensor], Tensor], bias: Tensor | None, eps: float) -> list[Bias]:
    """gamma (z - mean) / sqrt(var + eps) + beta: of degree 0 but for beta and eps, so J z = eps / (var + eps) (y - beta).

    `statistics_of` gives the variance (or mean square) of the values in its own groups, broadcastable to the output.
    """
    z, y = call.value(call.args[0]), call.result()
    shift = 0.0 if bias is None else bias

    def implicit() -> Tensor:
        variance = statistics_of(z)
        return (y - shift).mul_(variance / (variance + eps))

    biases = [Bias("implicit", implicit)]
    return biases if bias is None else [Bias("explicit", bias), *biases]


def _per_channel(vector: Tensor, output: Tensor) -> Tensor:
    """[C] as [C, 1, ...], to be added to [N, C, *S]."""
    return vector.reshape(-1, *(1,) * (output.ndim - 2))
