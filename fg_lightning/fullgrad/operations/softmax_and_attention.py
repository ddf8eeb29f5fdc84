"""Bias rules of softmax and attention in closed form, and a layout rule of attention."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Layout, plain
from fg_lightning.fullgrad.linearization import Bias, Deferred, linearize
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.operations.layout_rules import LayoutOf, align


def softmax(op: Operation) -> list[Bias]:
    """J z = y (z - <y, z>), so b = y (1 - z + <y, z>). An entry masked by -inf has y = 0 and no bias."""
    dim = op.argument(1, "dim")

    def implicit(z: Tensor, y: Tensor) -> Tensor:
        yz = torch.where(y > 0, y * z, 0.0)
        return y - yz + y * yz.sum(dim, keepdim=True)

    return [Bias("implicit", Deferred(implicit, (op.value(op.args[0]), op.result())))]


def log_softmax(op: Operation) -> list[Bias]:
    """J z = z - <p, z>, so b = y - z + <p, z> with p = exp(y)."""
    dim = op.argument(1, "dim")

    def implicit(z: Tensor, y: Tensor) -> Tensor:
        masked = z == -math.inf
        finite = z.masked_fill(masked, 0)
        return (y.masked_fill(masked, 0) - finite) + (y.exp() * finite).sum(dim, keepdim=True)

    return [Bias("implicit", Deferred(implicit, (op.value(op.args[0]), op.result())))]


def attention(op: Operation) -> list[Bias]:
    """Attention of torch.nn.functional, with its arguments: mask, dropout, causality, scale, groups of queries."""
    mask, causal = op.argument(3, "attn_mask"), op.argument(5, "is_causal", False)
    return _attention(op, mask, causal, op.argument(4, "dropout_p", 0.0), op.kwargs.get("enable_gqa", False))


_MASK_DROPOUT_CAUSAL = {
    "scaled_dot_product_flash_attention_for_cpu": (None, 3, 4),
    "scaled_dot_product_flash_attention": (None, 3, 4),
    "scaled_dot_product_efficient_attention": (3, 5, 6),
    "scaled_dot_product_cudnn_attention": (3, 5, 6),
    "scaled_dot_product_attention_math": (3, 4, 5),
}
"""Positions of mask, dropout and causality in the arguments of the kernels of attention, torch.ops.aten."""


def native_attention(op: Operation) -> list[Bias]:
    """Attention by one of torch's kernels. It is their first output."""
    mask, dropout, causal = _MASK_DROPOUT_CAUSAL[op.name]
    mask = op.kwargs.get("attn_mask") if mask is None else op.argument(mask, "attn_mask", op.kwargs.get("attn_bias"))
    mask = mask if mask is None else mask.to(op.args[0].dtype)  # kernels add a boolean mask like any other
    return _attention(op, mask, op.argument(causal, "is_causal", False), op.argument(dropout, "dropout_p", 0.0), False)


def _attention(op: Operation, mask: Tensor | None, causal: bool, dropout: float, grouped: bool) -> list[Bias]:
    """y = A v with A = softmax(S + mask), S = scale q k^T, as one operation.

    S is of degree d, the number of q and k that depend on the input, so J z = [v depends] y + d ((A * S) v - r y),
    with r the row sums of A * S.
    """
    q, k, v = (op.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    if op.depends(mask) or dropout:
        return linearize(op)
    degree, linear_in_v = op.depends(q) + op.depends(k), op.depends(v)
    scale = op.kwargs.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    shared_by = q.shape[-3] // k.shape[-3] if grouped else 1

    def implicit(q: Tensor, k: Tensor, v: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        keys, values = (t if shared_by == 1 else t.repeat_interleave(shared_by, -3) for t in (k, v))

        def flat(t: Tensor) -> Tensor:
            return t.expand(*y.shape[:-2], *t.shape[-2:]).reshape(-1, *t.shape[-2:])

        scores = torch.baddbmm(q.new_empty(()), flat(q), flat(keys).mT, beta=0, alpha=scale)
        masked = scores
        if causal:
            masked = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
        elif mask is not None:
            mask = flat(mask.expand(*mask.shape[:-2], *scores.shape[-2:]))
            masked = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
        weights = masked.softmax(-1)
        if mask is not None:  # a query that is masked from all keys has no weights and output 0
            weights = weights.masked_fill(masked == -math.inf, 0)
        weighted = weights * scores
        own = weighted.sum(-1, keepdim=True) * flat(y)
        bias = torch.baddbmm(own, weighted, flat(values), beta=degree, alpha=-degree).view(y.shape)
        return bias if linear_in_v else bias + y

    operands = (op.value(q), op.value(k), op.value(v), op.result())
    return [Bias("implicit", Deferred(implicit, operands if mask is None else (*operands, mask)))]


def attention_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """The output lies where the queries lie."""
    layouts = [layout_of(t) for t in op.args[:3] if op.depends(t)]
    if any(layout is None or any(dim.has(SAMPLE) for dim in layout.dims[-2:]) for layout in layouts):
        return None
    return align([replace(x, dims=(*x.dims[:-1], plain(output.shape[-1]))) for x in layouts if x], output.shape)
