"""cat and stack, and what they make: a sequence of places behind a class token, and slices of it."""

from __future__ import annotations

from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Axis, Dim, Factor, Layout, plain
from fg_lightning.fullgrad.operation import Call
from fg_lightning.fullgrad.operations.layout_rule import LayoutOf, align, extend, resample, surrounded, with_item


def side_by_side(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """cat, hstack and their like: what lies nowhere, such as a class token, goes before or behind the places beside it."""
    parts = [t for t in call.argument(0, "tensors") if t.ndim == output.ndim or t.numel()]
    given = call.argument(1, "dim", call.kwargs.get("axis", 0))
    stacks = {"hstack": min(1, output.ndim - 1), "vstack": 0, "row_stack": 0, "dstack": 2, "column_stack": 1}
    along = stacks.get(call.name, given) % output.ndim
    layouts = [_with_dims(layout_of(t), output.ndim, call.name) if call.depends(t) else None for t in parts]
    known = [layout for layout in layouts if layout]
    if any(len(layout.dims) != output.ndim for layout in known):
        return None
    rest = align([Layout(with_item(layout.dims, along, plain(1))) for layout in known], with_item(tuple(output.shape), along, 1))
    if rest is None:
        return None
    dims = _agreed(rest.dims, known)
    sizes = [layout.shape[along] if layout else t.shape[along] for t, layout in zip(parts, layouts, strict=True)]
    joined = _joined([layout.dims[along] if layout else plain(size) for layout, size in zip(layouts, sizes, strict=True)])
    return None if joined is None else Layout(with_item(dims, along, joined))


def _with_dims(layout: Layout | None, ndim: int, operation: str) -> Layout | None:
    """The layout of a part, which vstack, dstack and column_stack give the dimensions that it lacks."""
    if layout is None or len(layout.dims) >= ndim or operation == "cat":
        return layout
    if operation == "column_stack":
        return Layout((*layout.dims, plain(1)))
    dims = (plain(1), *layout.dims) if operation != "dstack" or len(layout.dims) == 1 else layout.dims
    return Layout((*dims, plain(1)) if operation == "dstack" else dims)


def _agreed(dims: tuple[Dim, ...], layouts: list[Layout]) -> tuple[Dim, ...]:
    """Dimensions of parts put side by side; one that is elsewhere on the image in one part than in another lies nowhere."""
    return tuple(
        dim if all(_same_way(dim, layout.dims[i]) for layout in layouts) else plain(dim.size) for i, dim in enumerate(dims)
    )


def _same_way(dim: Dim, other: Dim) -> bool:
    """Whether two dimensions that become one lie at the same places, give or take one, if both lie anywhere."""
    axes = {axis.number: axis for axis, _ in dim.places}
    return all(_is_beside(axes.get(axis.number, axis), axis) for axis, _ in other.places)


def _is_beside(axis: Axis, other: Axis) -> bool:
    margins = abs(axis.lead - other.lead), abs(axis.tail - other.tail)
    return (axis.flipped, axis.shift) == (other.flipped, other.shift) and max(margins) <= 1


def _joined(dims: list[Dim]) -> Dim | None:
    """The dimension that several make when put one behind the other; None where that puts samples beside others."""
    size = sum(dim.size for dim in dims)
    if any(factor.axis == SAMPLE for dim in dims for factor in dim.factors):
        return _copies(dims) or (None if any(dim.has(SAMPLE) for dim in dims) else plain(size))
    somewhere = [i for i, dim in enumerate(dims) if not dim.is_plain()]
    if len(somewhere) != 1:
        return plain(size)
    (i,) = somewhere
    return surrounded(sum(dim.size for dim in dims[:i]), dims[i], sum(dim.size for dim in dims[i + 1 :])) or plain(size)


def _copies(dims: list[Dim]) -> Dim | None:
    """The same samples, in the same order, several times over."""
    times = []
    for dim in dims:
        first = dim.factors[0]
        copies = first.size if first.axis is None and len(dim.factors) > 1 else 1
        if (dim.factors[1:] if copies > 1 else dim.factors) != (once := dims[0].factors[dims[0].factors[0].axis is None :]):
            return None
        times.append(copies)
    return Dim((Factor(None, sum(times)), *once)) if sum(times) > 1 else dims[0]


def stacked(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """stack: a new dimension that is neither sample nor place."""
    dim = call.argument(1, "dim", 0) % output.ndim
    shape = [size for i, size in enumerate(output.shape) if i != dim]
    layouts = [layout for t in call.dependent if (layout := layout_of(t))]
    layout = align(layouts, shape)
    layout = layout and Layout(_agreed(layout.dims, layouts))
    return layout and Layout((*layout.dims[:dim], plain(output.shape[dim]), *layout.dims[dim:]))


def sliced(dim: Dim, start: int, size: int, step: int) -> Dim:
    """A part of a dimension: of tokens the places alone, of a spatial axis a piece, in steps at another resolution."""
    if len(dim.factors) > 1 and (part := _part_of_copies(dim, start, size, step)):
        return part
    place = start // step
    if step > 1:
        dim = resample(dim, max(dim.size // step, place + size))
    return extend(dim, -place, place + size - dim.size)


def _part_of_copies(dim: Dim, start: int, size: int, step: int) -> Dim | None:
    """Of what is there several times, in turns or each so many times in a row, some of the copies."""
    first, *rest = dim.factors
    once = dim.size // max(1, first.size)
    if first.axis is None and step == 1 and once and start % once == 0 and size % once == 0:
        return Dim((Factor(None, size // once), *rest) if size > once else tuple(rest))
    last = dim.factors[-1]
    is_one_of_each = last.axis is None and step == last.size and size * step == dim.size
    return Dim(dim.factors[:-1]) if is_one_of_each else None
