"""Operations that add a constant, fill it in or put it beside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.operations.definition import INDEX, MASK, cases, const, in_place, z


def set_item(index: Any, value: Any) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor, *others: Tensor) -> None:
        x[index] = others[0] if others else value

    return in_place(change)


ADDING = cases(
    {
        "x + y": (lambda x, y: x + y, z(2, 3), z(3)),
        "x + c": (lambda x: x + const(3), z(2, 3)),
        "c + x": (lambda x: const(2, 3) + x, z(3)),
        "x + 2": (lambda x: x + 2, z(2, 3)),
        "x + 0.1": (lambda x: x + 0.1, z(2, 3)),
        "0.1 - x": (lambda x: 0.1 - x, z(2, 3)),
        "2 + x": (lambda x: 2 + x, z(2, 3)),
        "x - c": (lambda x: x - const(3), z(2, 3)),
        "c - x": (lambda x: const(3) - x, z(2, 3)),
        "1 - x": (lambda x: 1 - x, z(2, 3)),
        "x - 1": (lambda x: x - 1, z(2, 3)),
        "x - y": (lambda x, y: x - y, z(2, 3), z(2, 3)),
        "add, alpha on the constant": (lambda x: torch.add(x, const(3), alpha=2.5), z(2, 3)),
        "add, alpha on the input": (lambda x: torch.add(const(3), x, alpha=2.5), z(2, 3)),
        "add by keyword": (lambda x: torch.add(x, other=const(3)), z(2, 3)),
        "sub, alpha on the constant": (lambda x: torch.sub(x, const(3), alpha=2.5), z(2, 3)),
        "sub, alpha on the input": (lambda x: torch.subtract(const(3), x, alpha=2.5), z(2, 3)),
        "rsub, alpha on the input": (lambda x: torch.rsub(x, const(3), alpha=2.5), z(2, 3)),
        "rsub, alpha on the constant": (lambda x: torch.rsub(const(3), x, alpha=2.5), z(2, 3)),
        "x.add_(c)": (in_place(lambda x: x.add_(const(3), alpha=2)), z(2, 3)),
        "x.add_(y)": (in_place(lambda x, y: x.add_(y)), z(2, 3), z(2, 3)),
        "c.add_(x)": (lambda x: const(2, 3).clone().add_(x), z(2, 3)),
        "x.sub_(1)": (in_place(lambda x: x.sub_(1)), z(2, 3)),
        "x + True": (lambda x: x + MASK, z(2, 3)),
        "cat": (lambda x, y: torch.cat([x, y], 1), z(2, 3), z(2, 1)),
        "cat with a constant": (lambda x: torch.cat([const(2, 1), x], dim=1), z(2, 3)),
        "concat": (lambda x: torch.concat((x, x, const(1, 3)), axis=0), z(2, 3)),
        "stack": (lambda x, y: torch.stack([x, y, const(2, 3)], 1), z(2, 3), z(2, 3)),
        "hstack": (lambda x: torch.hstack([x, const(2, 3)]), z(2, 3)),
        "vstack": (lambda x: torch.vstack([x, const(2, 3)]), z(2, 3)),
        "where": (lambda x, y: torch.where(MASK, x, y), z(2, 3), z(2, 3)),
        "where by keyword": (lambda x, y: torch.where(MASK, input=x, other=y), z(2, 3), z(2, 3)),
        "where with a constant": (lambda x: (torch.where(MASK, x, 2.0), torch.where(MASK, const(2, 3), x)), z(2, 3)),
        "masked_fill": (lambda x: x.masked_fill(MASK, 3.0), z(2, 3)),
        "masked_fill_": (in_place(lambda x: x.masked_fill_(MASK, 3.0)), z(2, 3)),
        "masked_fill with a dependent value": (lambda x, v: x.masked_fill(MASK, v.sum()), z(2, 3), z(1)),
        "masked_fill with infinity": (lambda x: x.masked_fill(MASK, -math.inf), z(2, 3)),
        "masked_scatter": (lambda x: x.masked_scatter(MASK, const(3)), z(2, 3)),
        "x[:, 0] = c": (set_item((slice(None), 0), const(2)), z(2, 3)),
        "x[:, 0] = 3": (set_item((slice(None), 0), 3.0), z(2, 3)),
        "x[mask] = c": (set_item(MASK, const(3)), z(2, 3)),
        "x[:, 0] = y": (set_item((slice(None), 0), None), z(2, 3), z(2)),
        "x[...] = y": (set_item(..., None), z(2, 3), z(2, 3)),
        "copy_": (in_place(lambda x: x.copy_(const(2, 3))), z(2, 3)),
        "copy_ onto a constant": (lambda x: const(2, 3).clone().copy_(x), z(2, 3)),
        "index_put": (lambda x: x.index_put((INDEX[0],), const(3)), z(3)),
        "index_put, accumulating": (lambda x: x.index_put((INDEX[0],), const(3), accumulate=True), z(3)),
        "index_copy": (lambda x: x.index_copy(1, torch.tensor([2]), const(2, 1)), z(2, 3)),
        "index_fill": (lambda x: x.index_fill(1, torch.tensor([2]), 4.0), z(2, 3)),
        "index_add": (lambda x: x.index_add(1, torch.tensor([2]), const(2, 1), alpha=2), z(2, 3)),
        "scatter": (lambda x: x.scatter(1, INDEX[:, :1], const(2, 1)), z(2, 3)),
        "scatter of a number": (lambda x: x.scatter(1, INDEX[:, :1], 3.0), z(2, 3)),
        "scatter_add": (lambda x: x.scatter_add(1, INDEX, const(2, 3)), z(2, 3)),
        "scatter_reduce": (lambda x: x.scatter_reduce(1, INDEX, const(2, 3), "amax"), z(2, 3)),
        "slice_scatter": (lambda x: x.slice_scatter(const(2, 2), 1, 1), z(2, 3)),
        "select_scatter": (lambda x: x.select_scatter(const(2), 1, 1), z(2, 3)),
        "fill_": (in_place(lambda x: x.fill_(3.0)), z(2, 3)),
        "zero_": (in_place(lambda x: x.zero_()), z(2, 3)),
        "pad": (lambda x: F.pad(x, (1, 1)), z(2, 3)),
        "pad with a value": (lambda x: (F.pad(x, (1, 2), "constant", 3.0), F.pad(x, (1, 1), value=-2.0)), z(2, 3)),
        **{f"pad, {mode}": (lambda x, mode=mode: F.pad(x, (1, 1), mode=mode), z(1, 2, 3)) for mode in ("reflect", "replicate")},
        "pad, circular": (lambda x: F.pad(x, (1, 1), "circular"), z(1, 2, 3)),
        "constant_pad_nd": (lambda x: (torch.constant_pad_nd(x, (1, 1), 2.0), torch.constant_pad_nd(x, (1, 1))), z(2, 3)),
        "lerp": (lambda x: torch.lerp(x, const(2, 3), 0.3), z(2, 3)),
        "addcmul": (lambda x, y: torch.addcmul(const(2, 3), x, y, value=2), z(2, 3), z(2, 3)),
    }
)
