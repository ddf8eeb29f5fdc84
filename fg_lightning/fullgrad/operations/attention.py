"""Softmax and attention, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fg_lightning.fullgrad.linearization import Bias, linearise
from fg_lightning.fullgrad.operation import Call


def softmax(call: Call) -> list[Bias]:
    """J z = y (z - <y, z>), so b = y (1 - z + <y, z>); what a mask of -inf took out has y = 0 and no bias."""
    z, y, dim = call.value(call.args[0]), call.result(), call.argument(1, "dim")

    def implicit() -> Tensor:
        yz = torch.where(y > 0, y * z, 0.0)
        return y - yz + y * yz.sum(dim, keepdim=True)

    return [Bias("implicit", implicit)]


def log_softmax(call: Call) -> list[Bias]:
    """J z = z - <p, z>, so b = y - z + <p, z> with p = exp(y)."""
    z, y, dim = call.value(call.args[0]), call.result(), call.argument(1, "dim")

    def implicit() -> Tensor:
        masked = z == -math.inf
        finite = z.masked_fill(masked, 0)
        return (y.masked_fill(masked, 0) - finite) + (y.exp() * finite).sum(dim, keepdim=True)

    return [Bias("implicit", implicit)]


def attention(call: Call) -> list[Bias]:
    """torch.nn.functional's: masks, dropout, causal, scale, groups of queries."""
    mask, causal = call.argument(3, "attn_mask"), call.argument(5, "is_causal", False)
    return _attention(call, mask, causal, call.argument(4, "dropout_p", 0.0), call.kwargs.get("enable_gqa", False))


_MASK_DROPOUT_CAUSAL = {
    "scaled_dot_product_flash_attention_for_cpu": (None, 3, 4),
    "scaled_dot_product_flash_attention": (None, 3, 4),
    "scaled_dot_product_efficient_attention": (3, 5, 6),
    "scaled_dot_product_cudnn_attention": (3, 5, 6),
    "scaled_dot_product_attention_math": (3, 4, 5),
}
"""Where the kernels of attention, torch.ops.aten, take their mask, dropout and causality."""


def native_attention(call: Call) -> list[Bias]:
    """The kernels' own, of which the first output is attention's."""
    mask, dropout, causal = _MASK_DROPOUT_CAUSAL[call.name]
    mask = call.kwargs.get("attn_mask") if mask is None else call.argument(mask, "attn_mask", call.kwargs.get("attn_bias"))
    mask = mask if mask is None else mask.to(call.args[0].dtype)  # they add a mask of truth values like any other
    return _attention(call, mask, call.argument(causal, "is_causal", False), call.argument(dropout, "dropout_p", 0.0), False)


def _attention(call: Call, mask: Tensor | None, causal: bool, dropout: float, grouped: bool) -> list[Bias]:
    """y = A v with A = softmax(S + mask), S = scale q k^T, as one operation.

    S is of degree d, the number of q and k that depend on the input, so J z = [v depends] y + d ((A * S) v - r y),
    with r the row sums of A * S.
    """
    q, k, v = (call.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    if call.depends(mask) or dropout:
        return linearise(call)
    degree, linear_in_v = call.depends(q) + call.depends(k), call.depends(v)
    scale = call.kwargs.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, k, v, y = call.value(q), call.value(k), call.value(v), call.result()
    shared_by = q.shape[-3] // k.shape[-3] if grouped else 1

    def implicit() -> Tensor:
        keys, values = (t if shared_by == 1 else t.repeat_interleave(shared_by, -3) for t in (k, v))
        scores = scale * q @ keys.mT
        masked = scores
        if causal:
            masked = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
        elif mask is not None:
            masked = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
        weights = masked.softmax(-1)
        if mask is not None:  # a query that may look at nothing has no weights, and torch's output of 0
            weights = weights.masked_fill(masked == -math.inf, 0)
        weighted = weights * scores
        return (1 - linear_in_v) * y - degree * (weighted @ values - weighted.sum(-1, keepdim=True) * y)

    return [Bias("implicit", implicit)]
