"""The readings: the function that is decomposed is the network itself, or its locally affine reading.

A network with layer norms, attention and smooth gates is complete with implicit biases, but these carry much of the output. The
locally affine reading holds the statistics of norms, the attention weights and the gates of GELU, SiLU and similar operations
constant (after LibraGrad, Mehri et al., CVPR 2025). The output stays the same, but its gradient changes. For networks of these
parts, the terms are then complete with explicit biases alone.

An entry of the table replaces the operation of that name. It runs under the tape, which records the operations inside. If it
returns NotImplemented, the operation runs unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reading = Literal["exact", "locally_affine"]


def find_reading(reading: Reading) -> Mapping[str, Callable[..., Any]]:
    """The operations that a reading replaces, by name.

    Raises:
        ValueError: if there is no reading of that name.
    """
    if reading not in _READINGS:
        raise ValueError(f"reading must be one of {', '.join(_READINGS)}, not {reading!r}")
    return _READINGS[reading]


def _hold_gate(gate: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """z times a gate that is held constant."""

    def operation(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return z * gate(z.detach())

    return operation


def _gelu(z: Tensor, *, approximate: str = "none") -> Tensor:
    fixed = z.detach()
    if approximate == "tanh":
        return z * (0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (fixed + 0.044715 * fixed**3))))
    return z * (0.5 * (1 + torch.erf(fixed / math.sqrt(2))))


def _scale_and_shift(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        normed = normed * weight
    return normed if bias is None else normed + bias


def _layer_norm(
    z: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    scale = torch.rsqrt(z.detach().var(axes, correction=0, keepdim=True) + eps)
    return _scale_and_shift((z - z.mean(axes, keepdim=True)) * scale, weight, bias)


def _rms_norm(z: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(z.dtype).eps if eps is None else eps
    return _scale_and_shift(z * torch.rsqrt(z.detach().square().mean(axes, keepdim=True) + eps), weight, None)


def _group_norm(
    z: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    grouped = z.unflatten(1, (num_groups, -1))
    axes = tuple(range(2, grouped.ndim))
    scale = torch.rsqrt(grouped.detach().var(axes, correction=0, keepdim=True) + eps)
    normed = ((grouped - grouped.mean(axes, keepdim=True)) * scale).flatten(1, 2)
    channels = (-1, *(1,) * (z.ndim - 2))
    return _scale_and_shift(normed, *(None if t is None else t.reshape(channels) for t in (weight, bias)))


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """Attention with constant weights. Attention on an identity gives the weights, so torch's rules for masks and scales apply."""
    identity = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device).expand(*key.shape[:-1], key.shape[-2])
    weights = F.scaled_dot_product_attention(query.detach(), key.detach(), identity, attn_mask, *args, **kwargs)
    if kwargs.get("enable_gqa"):
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    return weights @ value


def _softmax(z: Tensor, dim: int, *args: Any, **kwargs: Any) -> Any:
    """Holds a softmax over the last of three or more dimensions constant: attention weights. Any other softmax is unchanged."""
    is_attention = z.ndim >= 3 and dim % z.ndim == z.ndim - 1
    return torch.softmax(z.detach(), dim, *args, **kwargs) if is_attention else NotImplemented


_READINGS: dict[str, dict[str, Callable[..., Any]]] = {
    "exact": {},
    "locally_affine": {
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "group_norm": _group_norm,
        "scaled_dot_product_attention": _attention,
        "softmax": _softmax,
        "gelu": _gelu,
        "silu": _hold_gate(torch.sigmoid),
        "mish": _hold_gate(lambda z: torch.tanh(F.softplus(z))),
        "hardswish": _hold_gate(lambda z: F.hardsigmoid(z)),
    },
}
