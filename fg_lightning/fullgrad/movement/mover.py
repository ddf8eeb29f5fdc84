"""What a mover is, and what most of them do: take the first operand's layout, align several, resize one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, Tokens, plain, spanning

T = TypeVar("T")
LayoutOf = Callable[[Any], "Layout | None"]
Mover = Callable[[Call, LayoutOf, Tensor], "Layout | None"]
"""(call, the layout of an operand, one output) -> the output's layout, or None where it cannot be known or samples mix."""


def first_layout(call: Call, layout_of: LayoutOf) -> Layout:
    """The layout of the first operand that depends on the input."""
    layout = layout_of(call.dependent[0])
    assert layout is not None  # `follow` has seen to it
    return layout


def align(layouts: Sequence[Layout | None], shape: Sequence[int]) -> Layout | None:
    """Layouts broadcast to a shape: each dimension from the first that knows about it; None where samples disagree."""
    first = layouts[0] if layouts else None
    if first is not None and first.shape == tuple(shape) and all(layout is first for layout in layouts):
        return first
    dims = [plain(size) for size in shape]
    for layout in layouts:
        assert layout is not None
        if len(layout.dims) > len(dims):
            return None
        for i, dim in enumerate(reversed(layout.dims), start=1):
            if dim.has(SAMPLE) and not dims[-i].is_plain() and dims[-i].samples != dim.samples:
                return None
            if dim.size == dims[-i].size and dims[-i].is_plain():
                dims[-i] = dim
    return Layout(tuple(dims))


def resize(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout with dimensions of other sizes, each resampled."""
    if len(shape) != len(layout.dims):
        return None
    if layout.shape == tuple(shape):
        return layout
    dims = zip(layout.dims, shape, strict=True)
    return Layout(tuple(dim if dim.size == size else resample(layout.coarsened(i), size) for i, (dim, size) in enumerate(dims)))


def resample(dim: Dim, size: int) -> Dim:
    """A whole spatial axis at another resolution; anything else loses its places."""
    axis = dim.whole
    return plain(size) if axis is None or axis.shift else spanning(axis.resampled(size))


def extend(dim: Dim, before: int, after: int) -> Dim:
    """A whole spatial axis or tokens with entries more at the ends, or fewer if they are negative; else it loses its places."""
    axis, size = dim.whole, dim.size + before + after
    if axis is not None and not axis.shift:
        return spanning(replace(axis, length=size, lead=axis.lead + before, tail=axis.tail + after))
    return surrounded(before, dim, after) or plain(size)


def surrounded(before: int, dim: Dim, after: int) -> Dim | None:
    """Tokens: places with some more entries before and behind them, or fewer; None where that would take places away."""
    lead, places, tail = before, dim.factors, after
    if len(dim.factors) == 1 and isinstance(tokens := dim.factors[0].axis, Tokens):
        lead, places, tail = before + tokens.lead, tokens.places, after + tokens.tail
    if lead < 0 or tail < 0 or not dim.places:
        return None
    size = lead + math.prod(f.size for f in places) + tail
    return Dim((Factor(Tokens(lead, places, tail), size),)) if lead or tail else Dim(places)


def with_item(items: tuple[T, ...], i: int, item: T) -> tuple[T, ...]:
    return (*items[:i], item, *items[i + 1 :])
