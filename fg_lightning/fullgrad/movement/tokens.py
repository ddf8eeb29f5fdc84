"""cat and stack, and what they make: a sequence of places behind a class token, and slices of it."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, Tokens, plain
from fg_lightning.fullgrad.movement.mover import LayoutOf, align, extend, resample

T = TypeVar("T")


def side_by_side(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """cat, hstack, vstack: what lies nowhere and is put before places, such as a class token, becomes their lead."""
    parts = list(call.argument(0, "tensors"))
    given = call.argument(1, "dim", call.kwargs.get("axis", 0))
    along = {"hstack": 1, "vstack": 0}.get(call.name, given) % output.ndim
    layouts = [layout for t in call.dependent if (layout := layout_of(t))]
    if any(len(layout.dims) != output.ndim or layout.dims[along].has(SAMPLE) for layout in layouts):
        return None
    rest = align([Layout(with_item(layout.dims, along, plain(1))) for layout in layouts], with_item(tuple(output.shape), along, 1))
    if rest is None:
        return None
    joined, *before, last = plain(output.shape[along]), *(layout.dims[along] for layout in layouts)
    if call.depends(parts[-1]) and not last.is_plain() and all(dim.is_plain() for dim in before):
        joined = _behind(sum(t.shape[along] for t in parts[:-1]), last)
    return Layout(with_item(rest.dims, along, joined))


def stacked(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """stack: a new dimension that is neither sample nor place."""
    dim = call.argument(1, "dim", 0) % output.ndim
    shape = [size for i, size in enumerate(output.shape) if i != dim]
    layout = align([layout_of(t) for t in call.dependent], shape)
    return layout and Layout((*layout.dims[:dim], plain(output.shape[dim]), *layout.dims[dim:]))


def sliced(dim: Dim, start: int, size: int, step: int) -> Dim:
    """A part of a dimension: of tokens the places alone, of a spatial axis a piece, in steps at another resolution."""
    tokens = dim.factors[0].axis if len(dim.factors) == 1 else None
    if isinstance(tokens, Tokens) and step == 1 and start <= tokens.lead and start + size == dim.size:
        return _behind(-start, dim)
    first = start // step
    if step > 1:
        dim = resample(dim, max(dim.size // step, first + size))
    return extend(dim, -first, first + size - dim.size)


def _behind(lead: int, dim: Dim) -> Dim:
    """The places of a dimension behind some more entries."""
    if len(dim.factors) == 1 and isinstance(tokens := dim.factors[0].axis, Tokens):
        lead, places = lead + tokens.lead, tokens.places
    else:
        places = dim.factors
    size = lead + math.prod(f.size for f in places)
    return Dim((Factor(Tokens(lead, places), size),)) if lead else Dim(places)


def with_item(items: tuple[T, ...], i: int, item: T) -> tuple[T, ...]:
    return (*items[:i], item, *items[i + 1 :])
