"""Operations that no line of the table names: they take the general fallback."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.helpers.operations.definition import cases, const, in_place, positive, z

# Operations that no line of the table names: they take the general fallback.
UNLISTED = cases(
    {
        "cdist": (lambda x, y: torch.cdist(x, y), z(2, 3), z(4, 3)),
        "atan2": (lambda x, y: torch.atan2(x, y), z(2, 3), z(2, 3)),
        "hypot": (lambda x, y: torch.hypot(x, y), z(2, 3), z(2, 3)),
        "addcdiv": (lambda x, y: torch.addcdiv(const(2, 3), x, y), z(2, 3), positive(2, 3)),
        "cosine_similarity": (lambda x, y: F.cosine_similarity(x, y, 1), z(2, 3), z(2, 3)),
        "var_mean": (lambda x: torch.var_mean(x, 1), z(2, 3)),
        "logcumsumexp": (lambda x: x.logcumsumexp(1), z(2, 3)),
        "linalg.inv": (lambda x: torch.linalg.inv(x + 3 * torch.eye(3, dtype=torch.float64)), z(3, 3)),
        "bilinear": (lambda x, y: F.bilinear(x, y, const(2, 3, 4), const(2)), z(2, 3), z(2, 4)),
        "pdist": (lambda x: F.pdist(x), z(4, 3)),
        "huber": (lambda x: F.huber_loss(x, const(2, 3), reduction="none"), z(2, 3)),
        "gumbel": (lambda x: F.gumbel_softmax(x, dim=1), z(2, 3)),
        "alpha_dropout": (lambda x: F.alpha_dropout(x, 0.5, training=True), z(4, 5)),
        "attention with dropout": (lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5), z(1, 4, 4)),
        "lp_pool2d": (lambda x: F.lp_pool2d(x, 2.0, 2), z(1, 2, 4, 4)),
        "broadcast_tensors": (lambda x: torch.broadcast_tensors(x, const(2, 3)), z(3)),
        "x ** y in place": (in_place(lambda x, y: x.abs_().pow_(y)), z(2, 3), z(2, 3)),
        "i0": (lambda x: torch.special.i0(x), z(2, 3)),
        "renorm": (lambda x: x.renorm(2, 0, 0.5), z(2, 3)),
    }
)
