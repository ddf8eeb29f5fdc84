"""Operations whose operand, result, constant or view is overwritten before or after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.operations.definition import cases, const, in_place, z
from tests.helpers.operations.moving import GRID
from tests.helpers.operations.normalization import AFFINE, STATISTICS


def _view_then_base(x: Tensor) -> Tensor:
    base = x * 2
    base[:, 1:].add_(const(2, 2))
    base.T[0].sigmoid_()
    return base * base


def _both_view_and_base(x: Tensor) -> tuple[Tensor, Tensor]:
    base = x * 2
    view = base[:, 1]
    F.silu(view, inplace=True)
    view += 1
    return view * 3, base.exp()


def _constant_base(x: Tensor) -> Tensor:
    base = torch.ones(2, 4, dtype=torch.float64)
    base[:, :3].copy_(x)
    base[:, 3] = x.sum(1)
    return base.tanh()


def _operand_overwritten_after(x: Tensor) -> Tensor:
    y = x * 2
    # torch's own backward pass keeps the results of these and not the operand, so that it may be overwritten.
    read = y.softmax(1) + y.sigmoid() + y.exp()
    y.mul_(2).add_(1)
    return read + y


def _result_overwritten_after(x: Tensor) -> tuple[Tensor, Tensor]:
    product = x @ x.T
    product.add_(const(2, 2)).relu_()
    normalised = F.layer_norm(x, (3,), eps=0.1)
    normalised.mul_(3)
    return product, normalised


def _constant_overwritten_after(x: Tensor) -> tuple[Tensor, ...]:
    constants = const(3).clone()
    results = F.linear(x, const(3, 3), constants), x + constants, torch.addmm(constants, x, const(3, 3))
    channels = constants[:2]
    results = *results, F.conv1d(x[None], const(2, 2, 2), channels)
    constants.zero_()
    return results


VIEWS = cases(
    {
        "in place on a view, base used after": (_view_then_base, z(2, 3)),
        "in place on a view, both used after": (_both_view_and_base, z(2, 3)),
        "in place on a view of a constant": (_constant_base, z(2, 3)),
        "operand overwritten after it was read": (_operand_overwritten_after, z(2, 3)),
        "result overwritten after it was read": (_result_overwritten_after, z(2, 3)),
        "constant overwritten after it was read": (_constant_overwritten_after, z(2, 3)),
        "in place through a chunk": (lambda x: [part.mul(2).add_(1).relu_() for part in x.chunk(2, 1)], z(2, 4)),
        "in place on a transposed base": (in_place(lambda x: x.T[1:].mul_(const(2, 1)).add_(3)), z(2, 3)),
    }
)

# Some of these return a view of a hidden tensor, and a network may overwrite it later.
OVERWRITTEN_RESULTS = cases(
    {
        f"{name}, overwritten": (lambda *args, function=function: function(*args).add_(0.5).mul_(const(4)), *operands)
        for name, (function, *operands) in {
            "batch_norm": (lambda x: F.batch_norm(x, *STATISTICS, **AFFINE).movedim(1, -1), z(2, 4, 3)),
            "instance_norm": (lambda x: F.instance_norm(x, **AFFINE), z(2, 4, 4)),
            "group_norm": (lambda x: F.group_norm(x, 2, **AFFINE), z(2, 4, 4)),
            "layer_norm": (lambda x: F.layer_norm(x, (4,), **AFFINE), z(2, 4)),
            "linear": (lambda x: F.linear(x, const(4, 3), const(4)), z(2, 2, 3)),
            "matmul": (lambda x, y: x @ y, z(2, 2, 3), z(2, 3, 4)),
            "matmul, broadcast": (lambda x, y: x @ y, z(2, 2, 3), z(3, 4)),
            "einsum": (lambda x, y: torch.einsum("bij,bjk->bik", x, y), z(2, 2, 3), z(2, 3, 4)),
            "convolution": (lambda x: F.conv1d(x, const(2, 2, 1), const(2)), z(2, 2, 4)),
            "convolution of one image": (lambda x: F.conv2d(x, const(2, 2, 1, 1), const(2)), z(2, 3, 4)),
            "padding": (lambda x: F.pad(x, (1, 1), value=2.0), z(2, 2)),
            "cat": (lambda x: torch.cat([x, const(2, 4)]), z(2, 4)),
            "square": (lambda x: x.square(), z(2, 4)),
            "gelu": (lambda x: F.gelu(x), z(2, 4)),
            "var": (lambda x: x.var(0), z(3, 4)),
            "tensordot": (lambda x, y: torch.tensordot(x, y, 1), z(2, 3), z(3, 4)),
            "inner": (lambda x, y: torch.inner(x, y), z(2, 3), z(4, 3)),
            "grid_sampler": (lambda x: F.grid_sample(x, GRID.repeat(1, 1, 2, 1)[:, :, :4], align_corners=False), z(1, 2, 4, 4)),
            "local_response_norm": (lambda x: F.local_response_norm(x, 3), z(2, 4, 4)),
        }.items()
    }
)
