"""Layout rules of cat, stack, slices, views by strides, indexing and assignment to an index."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Axis, Dim, Factor, Layout, plain
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.operations.layout_rules import LayoutOf, align, extend, first_layout, resample, surround, with_item
from fg_lightning.fullgrad.torch_internals import base_of


def cat_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """cat, hstack and similar operations. Entries without a place, such as a class token, may come before or after the places."""
    parts = [t for t in op.argument(0, "tensors") if t.ndim == output.ndim or t.numel()]
    given = op.argument(1, "dim", op.kwargs.get("axis", 0))
    stacks = {"hstack": min(1, output.ndim - 1), "vstack": 0, "row_stack": 0, "dstack": 2, "column_stack": 1}
    along = stacks.get(op.name, given) % output.ndim
    layouts = [_with_dims(layout_of(t), output.ndim, op.name) if op.depends(t) else None for t in parts]
    known = [layout for layout in layouts if layout]
    if any(len(layout.dims) != output.ndim for layout in known):
        return None
    rest = align([Layout(with_item(layout.dims, along, plain(1))) for layout in known], with_item(tuple(output.shape), along, 1))
    if rest is None:
        return None
    dims = _common_dims(rest.dims, known)
    sizes = [layout.shape[along] if layout else t.shape[along] for t, layout in zip(parts, layouts, strict=True)]
    whole = _concatenate([layout.dims[along] if layout else plain(size) for layout, size in zip(layouts, sizes, strict=True)])
    return None if whole is None else Layout(with_item(dims, along, whole))


def _with_dims(layout: Layout | None, ndim: int, operation: str) -> Layout | None:
    """The layout of a part with the dimensions that vstack, dstack and column_stack add to it."""
    if layout is None or len(layout.dims) >= ndim or operation == "cat":
        return layout
    if operation == "column_stack":
        return Layout((*layout.dims, plain(1)))
    dims = (plain(1), *layout.dims) if operation != "dstack" or len(layout.dims) == 1 else layout.dims
    return Layout((*dims, plain(1)) if operation == "dstack" else dims)


def _common_dims(dims: tuple[Dim, ...], layouts: list[Layout]) -> tuple[Dim, ...]:
    """The dimensions that all parts share. A dimension loses its places if it lies elsewhere in another part."""
    return tuple(
        dim if all(_lie_alike(dim, layout.dims[i]) for layout in layouts) else plain(dim.size) for i, dim in enumerate(dims)
    )


def _lie_alike(dim: Dim, other: Dim) -> bool:
    """Whether two dimensions lie at the same places, up to one position, if both have places."""
    axes = {axis.number: axis for axis, _ in dim.places}
    return all(_is_beside(axes.get(axis.number, axis), axis) for axis, _ in other.places)


def _is_beside(axis: Axis, other: Axis) -> bool:
    margins = abs(axis.lead - other.lead), abs(axis.tail - other.tail)
    return (axis.flipped, axis.shift) == (other.flipped, other.shift) and max(margins) <= 1


def _concatenate(dims: list[Dim]) -> Dim | None:
    """The dimension of several, joined. None if that joins different samples."""
    size = sum(dim.size for dim in dims)
    if any(factor.axis == SAMPLE for dim in dims for factor in dim.factors):
        return _concatenate_copies(dims) or (None if any(dim.has(SAMPLE) for dim in dims) else plain(size))
    somewhere = [i for i, dim in enumerate(dims) if not dim.is_plain()]
    if len(somewhere) != 1:
        return plain(size)
    (i,) = somewhere
    return surround(sum(dim.size for dim in dims[:i]), dims[i], sum(dim.size for dim in dims[i + 1 :])) or plain(size)


def _concatenate_copies(dims: list[Dim]) -> Dim | None:
    """The dimension of several copies of the same samples in the same order. None if they differ."""
    times = []
    for dim in dims:
        first = dim.factors[0]
        copies = first.size if first.axis is None and len(dim.factors) > 1 else 1
        if (dim.factors[1:] if copies > 1 else dim.factors) != (once := dims[0].factors[dims[0].factors[0].axis is None :]):
            return None
        times.append(copies)
    return Dim((Factor(None, sum(times)), *once)) if sum(times) > 1 else dims[0]


def stack_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """stack: adds a dimension without samples and places."""
    dim = op.argument(1, "dim", 0) % output.ndim
    shape = [size for i, size in enumerate(output.shape) if i != dim]
    layouts = [layout for t in op.dependent if (layout := layout_of(t))]
    layout = align(layouts, shape)
    layout = layout and Layout(_common_dims(layout.dims, layouts))
    return layout and Layout((*layout.dims[:dim], plain(output.shape[dim]), *layout.dims[dim:]))


def slice_dim(dim: Dim, start: int, size: int, step: int) -> Dim:
    """A part of a dimension. Of tokens, only the places stay; a spatial axis is cut, and resampled for steps above 1."""
    if len(dim.factors) > 1 and (part := _slice_copies(dim, start, size, step)):
        return part
    place = start // step
    if step > 1:
        dim = resample(dim, max(dim.size // step, place + size))
    return extend(dim, -place, place + size - dim.size)


def _slice_copies(dim: Dim, start: int, size: int, step: int) -> Dim | None:
    """Some of the copies in a dimension that holds its entries several times, interleaved or one after the other. Else None."""
    first, *rest = dim.factors
    once = dim.size // max(1, first.size)
    if first.axis is None and step == 1 and once and start % once == 0 and size % once == 0:
        return Dim((Factor(None, size // once), *rest) if size > once else tuple(rest))
    last = dim.factors[-1]
    is_one_of_each = last.axis is None and step == last.size and size * step == dim.size
    return Dim(dim.factors[:-1]) if is_one_of_each else None


def view_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Operations that return a view. They run on an empty tensor, and the strides of the result identify each dimension."""
    layout = first_layout(op, layout_of)
    shape = layout.shape
    strides = [math.prod(size + 1 for size in shape[i + 1 :]) for i in range(len(shape))]
    probe = torch.empty_strided(shape, strides, device="meta")
    try:
        moved = op.function(probe, *op.args[1:], **op.kwargs)
    except (RuntimeError, IndexError, NotImplementedError):
        return _gather_layout(op, layout, output)
    moved = moved if isinstance(moved, Tensor) else next(m for m, t in zip(moved, op.outputs, strict=True) if t is output)
    if base_of(moved) is not probe and moved is not probe:
        return _gather_layout(op, layout, output)
    offset, starts = int(moved.storage_offset()), []
    for stride in strides:
        starts.append(offset // stride)
        offset %= stride
    # Slicing in steps leaves a multiple of the dimension's own stride, still below the next one's.
    sources = [next((i for i, own in enumerate(strides) if own <= stride), None) for stride in moved.stride()]
    dims = []
    for source, size, stride in zip(sources, moved.shape, moved.stride(), strict=True):
        of_same_source = [other for i, other in zip(sources, moved.shape, strict=True) if i == source]
        if source is None or stride % strides[source] or size < max(of_same_source):  # new dimensions also have strides
            dims.append(plain(size))
        elif size == shape[source]:
            dims.append(layout.dims[source])
        else:
            dims.append(slice_dim(layout.coarsen(source), starts[source], size, stride // strides[source]))
    return Layout(tuple(dims))


def _gather_layout(op: Operation, layout: Layout, output: Tensor) -> Layout | None:
    """x[:, indices] and x[arange(N), classes]: the dimensions before the first index stay, and those after a single one."""
    if op.name not in ("getitem", "index"):
        return None
    index = _as_tuple(op.name, op.args[1])
    first = next((i for i, item in enumerate(index) if not _is_full_slice(item)), len(index))
    kept = 1 if first == 0 and _picks_one_each(index, layout) else first
    is_alone = all(map(_is_full_slice, index[first + 1 :])) and _is_integers(index[first])
    behind = layout.dims[first + 1 :] if is_alone else ()
    chosen = output.shape[kept : output.ndim - len(behind)]
    return Layout((*layout.dims[:kept], *map(plain, chosen), *behind))


def _is_integers(item: Any) -> bool:
    return (isinstance(item, Tensor) and item.dtype is not torch.bool) or (isinstance(item, list) and type(item[0]) is int)


def _as_tuple(operation: str, index: Any) -> tuple[Any, ...]:
    """An index as a tuple with an item for each dimension. torch.ops.aten.index uses None for a full slice."""
    if operation in ("index", "index_put"):
        return tuple(slice(None) if item is None else item for item in index)
    return index if isinstance(index, tuple) else (index,)


def _is_full_slice(item: Any) -> bool:
    return isinstance(item, slice) and item == slice(None)


def _picks_one_each(index: tuple[Any, ...], layout: Layout) -> bool:
    first = index[0]
    if not isinstance(first, Tensor) or first.dtype is torch.bool or first.ndim != 1 or len(first) != layout.shape[0]:
        return False
    return bool((first == torch.arange(len(first), device=first.device)).all())


def base_layout(view: Tensor, layout: Layout, base: Tensor, n: int) -> Layout | None:
    """The layout of a constant that was written to through a view. None if the samples do not fill whole dimensions of it."""
    by_stride = {(stride, size): dim for stride, size, dim in zip(view.stride(), view.shape, layout.dims, strict=True)}
    behind = Layout(
        tuple(by_stride.get((stride, size), plain(size)) for stride, size in zip(base.stride(), base.shape, strict=True))
    )
    return behind if behind.samples == n else None


def as_strided_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """as_strided, if each remaining dimension keeps its stride and its size."""
    operand, layout = op.args[0], first_layout(op, layout_of)
    strides = zip(operand.stride(), output.stride(), output.shape, strict=False)
    if operand.shape == output.shape and all(own == new for own, new, size in strides if size > 1):
        return layout
    left = iter(zip(operand.stride(), layout.dims, strict=True))
    dims = []
    for stride, size in zip(output.stride(), output.shape, strict=True):
        found = next((dim for own, dim in left if own == stride and dim.size == size), None) if size > 1 else plain(1)
        if found is None:
            return None
        dims.append(found)
    return Layout(tuple(dims)) if output.numel() == operand.numel() else None


def slice_scatter_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """slice_scatter, select_scatter: like `scatter_layout`, but a slice of a whole dimension may contain samples."""
    layouts = [layout for t in op.dependent if (layout := layout_of(t))]
    if op.name == "slice_scatter" and op.args[1].shape == output.shape:
        return align(layouts, output.shape)
    if op.name == "select_scatter" and op.depends(op.args[1]):
        d = op.argument(2, "dim") % output.ndim
        layouts = [Layout((*x.dims[:d], plain(1), *x.dims[d:])) if len(x.dims) < output.ndim else x for x in layouts]
    return _scatter_along(layouts, op.argument(2, "dim", 0), op, output)


def _assigned_layout(target: Tensor, index: Any, layout: Layout | None, n: int) -> Layout | None:
    """The layout of a constant after an assignment to slices and numbers. None for other kinds of indices."""
    shape = target.shape
    probe = torch.empty_strided(shape, [math.prod(size + 1 for size in shape[i + 1 :]) for i in range(len(shape))], device="meta")
    try:
        part = probe[index]
    except (RuntimeError, IndexError, NotImplementedError):
        return None
    aligned = align([layout], part.shape) if base_of(part) is probe else None
    return aligned and base_layout(part, aligned, probe, n)


def scatter_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """index_add, scatter and similar operations along one dimension. The places are those of the tensor that is written to."""
    return _scatter_along([layout for t in op.dependent if (layout := layout_of(t))], op.argument(1, "dim"), op, output)


def _scatter_along(layouts: list[Layout], dim: int, op: Operation, output: Tensor) -> Layout | None:
    along = dim % output.ndim
    if any(len(layout.dims) != output.ndim or layout.dims[along].has(SAMPLE) for layout in layouts):
        return None
    written = layouts[0].dims[along] if op.depends(op.args[0]) else plain(output.shape[along])
    rest = align([Layout(with_item(layout.dims, along, plain(1))) for layout in layouts], with_item(output.shape, along, 1))
    return rest and Layout(with_item(rest.dims, along, written))


def masked_scatter_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """masked_scatter of constants: the layout stays."""
    return None if op.depends(op.argument(2, "source")) else align([first_layout(op, layout_of)], output.shape)


def setitem_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """x[index] = value: the places are those of x. A value that depends on the input must go to all samples in the same way."""
    target, index, value = op.args[:3]
    layout = layout_of(target if op.depends(target) else value)
    index = _as_tuple(op.name, index)
    if layout is None or not op.depends(value):
        return layout
    if op.name == "setitem" and (behind := _assigned_layout(target, op.args[1], layout_of(value), layout.samples)):
        is_same = [dim.samples for dim in behind.dims] == [dim.samples for dim in layout.dims]
        return behind if not op.depends(target) else layout if is_same else None
    if not op.depends(target):
        if len(layout.dims) != output.ndim:
            return None
        layout = Layout(tuple(d if d.size == size else plain(size) for d, size in zip(layout.dims, output.shape, strict=True)))
    return layout if all(_is_full_slice(index[i]) for i, dim in enumerate(layout.dims[: len(index)]) if dim.has(SAMPLE)) else None
