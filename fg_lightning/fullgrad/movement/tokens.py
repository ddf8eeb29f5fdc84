"""cat and stack, and what they make: a sequence of places behind a class token, and slices of it."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, Tokens, plain
from fg_lightning.fullgrad.movement.mover import LayoutOf, align, resample

T = TypeVar("T")


def side_by_side(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """cat: constants put before what depends on the input, such as a class token, become its lead."""
    parts = list(call.argument(0, "tensors"))
    along = call.argument(1, "dim", call.kwargs.get("axis", 0)) % output.ndim
    layouts = [layout for t in call.dependent if (layout := layout_of(t))]
    if any(layout.dims[along].has(SAMPLE) for layout in layouts):
        return None
    rest = align([Layout(_with(layout.dims, along, plain(1))) for layout in layouts], _with(tuple(output.shape), along, 1))
    if rest is None:
        return None
    joined, last = plain(output.shape[along]), layouts[-1].dims[along]
    if len(layouts) == 1 and call.depends(parts[-1]) and not last.is_plain():
        joined = _behind(sum(t.shape[along] for t in parts[:-1]), last)
    return Layout(_with(rest.dims, along, joined))


def stacked(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """stack: a new dimension that is neither sample nor place."""
    dim = call.argument(1, "dim", 0) % output.ndim
    shape = [size for i, size in enumerate(output.shape) if i != dim]
    layout = align([layout_of(t) for t in call.dependent], shape)
    return layout and Layout((*layout.dims[:dim], plain(output.shape[dim]), *layout.dims[dim:]))


def sliced(dim: Dim, start: int, size: int, step: int) -> Dim:
    """A slice of a dimension: of tokens the places alone, of an axis its places at another resolution."""
    if size == dim.size:
        return dim
    tokens = dim.factors[0].axis if len(dim.factors) == 1 else None
    if isinstance(tokens, Tokens) and step == 1 and start <= tokens.lead and start + size == dim.size:
        return _behind(-start, dim)
    return resample(dim, size)


def _behind(lead: int, dim: Dim) -> Dim:
    """The places of a dimension behind some more entries."""
    if len(dim.factors) == 1 and isinstance(tokens := dim.factors[0].axis, Tokens):
        lead, places = lead + tokens.lead, tokens.places
    else:
        places = dim.factors
    size = lead + math.prod(f.size for f in places)
    return Dim((Factor(Tokens(lead, places), size),)) if lead else Dim(places)


def _with(items: tuple[T, ...], i: int, item: T) -> tuple[T, ...]:
    return (*items[:i], item, *items[i + 1 :])
