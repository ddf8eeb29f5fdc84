"""Normalisation, softmax and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from tests.helpers.operations.definition import cases, const, z

STATISTICS = (const(4), const(4, seed=8).abs() + 0.2)

AFFINE = {"weight": const(4, seed=9), "bias": const(4, seed=10)}

NORMALIZATION = cases(
    {
        "batch_norm": (lambda x: F.batch_norm(x, *STATISTICS, **AFFINE), z(2, 4, 3)),
        "batch_norm without weights": (lambda x: F.batch_norm(x, *STATISTICS), z(2, 4, 2, 2)),
        "batch_norm by its own statistics": (lambda x: F.batch_norm(x, None, None, **AFFINE, training=True, eps=0.1), z(3, 4, 2)),
        "batch_norm, dependent weights": (lambda x, w, b: F.batch_norm(x, *STATISTICS, w, b), z(2, 4), z(4), z(4)),
        "instance_norm": (lambda x: F.instance_norm(x, **AFFINE, eps=0.1), z(2, 4, 5)),
        "instance_norm by running statistics": (
            lambda x: F.instance_norm(x, *(s.clone() for s in STATISTICS), use_input_stats=False),
            z(2, 4, 5),
        ),
        "adaptive instance norm": (lambda x, w: F.instance_norm(x, weight=w), z(2, 4, 5), z(4)),
        "layer_norm": (lambda x: F.layer_norm(x, (4,), **AFFINE, eps=0.1), z(2, 3, 4)),
        "layer_norm over two": (lambda x: F.layer_norm(x, (3, 4), const(3, 4)), z(2, 3, 4)),
        "layer_norm, dependent weights": (lambda x, w, b: F.layer_norm(x, (4,), w, b), z(2, 4), z(4), z(4)),
        "rms_norm": (lambda x: (F.rms_norm(x, (4,)), F.rms_norm(x, (4,), const(4), 0.1)), z(2, 4)),
        "group_norm": (lambda x: F.group_norm(x, 2, **AFFINE, eps=0.1), z(2, 4, 3)),
        "group_norm without weights": (lambda x: F.group_norm(x, 2), z(2, 4, 2, 2)),
        "group_norm, dependent weights": (lambda x, w: F.group_norm(x, 2, w), z(2, 4, 3), z(4)),
        "local_response_norm": (lambda x: F.local_response_norm(x, 3), z(2, 4, 3)),
    }
)

FULL_ROW = torch.tensor([[0.0, -math.inf, 0.5, 0.0]], dtype=torch.float64)

MASKS: dict[str, dict[str, Any]] = {
    "": {},
    ", float mask": {"attn_mask": const(3, 5)},
    ", bool mask": {"attn_mask": const(3, 5) > -1},
    ", infinite mask": {"attn_mask": torch.where(const(3, 5) > -1, 0.0, -math.inf).double()},
    ", causal": {"is_causal": True},
    ", scaled": {"scale": 0.3},
    ", scaled by 0": {"scale": 0.0},
    ", a query masked out": {"attn_mask": torch.tensor([[True] * 5, [False] * 5, [True, False, True, True, False]])},
    ", a query at minus infinity": {"attn_mask": torch.tensor([[0.5] * 5, [-math.inf] * 5, [0.0] * 5]).double()},
}

ATTENTION = {
    "all three": (lambda q, k, v: (q, k, v), z(2, 3, 4), z(2, 5, 4), z(2, 5, 2)),
    "query": (lambda q: (q, const(2, 5, 4), const(2, 5, 2)), z(2, 3, 4)),
    "key": (lambda k: (const(2, 3, 4), k, const(2, 5, 2)), z(2, 5, 4)),
    "value": (lambda v: (const(2, 3, 4), const(2, 5, 4), v), z(2, 5, 2)),
    "query and key": (lambda q, k: (q, k, const(2, 5, 2)), z(2, 3, 4), z(2, 5, 4)),
    "key and value": (lambda k, v: (const(2, 3, 4), k, v), z(2, 5, 4), z(2, 5, 2)),
}

SOFTMAX = cases(
    {
        "softmax": (lambda x: (x.softmax(1), F.softmax(x, dim=0), torch.softmax(x, -1)), z(2, 4)),
        "softmax behind a mask": (lambda x: (x + FULL_ROW).softmax(-1), z(2, 4)),
        "softmax behind masked_fill": (lambda x: x.masked_fill(FULL_ROW < 0, -math.inf).softmax(dim=-1), z(2, 4)),
        "softmin": (lambda x: F.softmin(x, 1), z(2, 4)),
        "log_softmax": (lambda x: (x.log_softmax(1), F.log_softmax(x, dim=0)), z(2, 4)),
        "log_softmax behind a mask": (lambda x: (x + FULL_ROW).log_softmax(-1), z(2, 4)),
        "logsumexp": (lambda x: x.logsumexp(1), z(2, 4)),
        **{
            f"scaled_dot_product_attention, {which}{mask}": (
                lambda *args, split=row[0], options=options: F.scaled_dot_product_attention(*split(*args), **options),
                *row[1:],
            )
            for which, row in ATTENTION.items()
            for mask, options in MASKS.items()
        },
        "scaled_dot_product_attention, dependent mask": (
            lambda q, m: F.scaled_dot_product_attention(q, q, q, m),
            z(1, 3, 4),
            z(3, 3),
        ),
        "scaled_dot_product_attention by keyword": (
            lambda q: F.scaled_dot_product_attention(query=q, key=q * 2, value=q.sin()),
            z(1, 3, 4),
        ),
        "scaled_dot_product_attention, grouped queries": (
            lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True),
            z(1, 4, 3, 2),
            z(1, 2, 3, 2),
        ),
    }
)
