"""Views by strides, indexing and assignment to an index."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Layout, plain
from fg_lightning.fullgrad.operation import Call
from fg_lightning.fullgrad.operations.concatenation import sliced
from fg_lightning.fullgrad.operations.layout_rule import LayoutOf, align, first_layout, with_item


def strided(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Operations that return a view by strides: run on an empty tensor whose strides tell where each dimension went."""
    layout = first_layout(call, layout_of)
    shape = layout.shape
    strides = [math.prod(size + 1 for size in shape[i + 1 :]) for i in range(len(shape))]
    probe = torch.empty_strided(shape, strides, device="meta")
    try:
        moved = call.function(probe, *call.args[1:], **call.kwargs)
    except (RuntimeError, IndexError, NotImplementedError):
        return _gathered_behind_full_slices(call, layout, output)
    moved = moved if isinstance(moved, Tensor) else next(m for m, t in zip(moved, call.outputs, strict=True) if t is output)
    if moved._base is not probe and moved is not probe:
        return _gathered_behind_full_slices(call, layout, output)
    offset, starts = int(moved.storage_offset()), []
    for stride in strides:
        starts.append(offset // stride)
        offset %= stride
    # Slicing in steps leaves a multiple of the dimension's own stride, still below the next one's.
    sources = [next((i for i, own in enumerate(strides) if own <= stride), None) for stride in moved.stride()]
    dims = []
    for source, size, stride in zip(sources, moved.shape, moved.stride(), strict=True):
        of_same_source = [other for i, other in zip(sources, moved.shape, strict=True) if i == source]
        if source is None or stride % strides[source] or size < max(of_same_source):  # a new dimension has a stride as well
            dims.append(plain(size))
        elif size == shape[source]:
            dims.append(layout.dims[source])
        else:
            dims.append(sliced(layout.coarsened(source), starts[source], size, stride // strides[source]))
    return Layout(tuple(dims))


def _gathered_behind_full_slices(call: Call, layout: Layout, output: Tensor) -> Layout | None:
    """x[:, indices]: what stands beside the one index that is not a full slice stays, or before several; x[arange(N), classes]."""
    if call.name not in ("getitem", "index"):
        return None
    index = _as_tuple(call.name, call.args[1])
    first = next((i for i, item in enumerate(index) if not _is_full_slice(item)), len(index))
    kept = 1 if first == 0 and _picks_one_each(index, layout) else first
    is_alone = all(map(_is_full_slice, index[first + 1 :])) and _is_integers(index[first])
    behind = layout.dims[first + 1 :] if is_alone else ()
    chosen = output.shape[kept : output.ndim - len(behind)]
    return Layout((*layout.dims[:kept], *map(plain, chosen), *behind))


def _is_integers(item: Any) -> bool:
    return (isinstance(item, Tensor) and item.dtype is not torch.bool) or (isinstance(item, list) and type(item[0]) is int)


def _as_tuple(operation: str, index: Any) -> tuple[Any, ...]:
    """An index, dimension by dimension; torch.ops.aten.index writes None for a full slice."""
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


def behind_view(view: Tensor, layout: Layout, base: Tensor, n: int) -> Layout | None:
    """The layout of a constant that was written to through a view; None where the samples are not all of one dimension of it."""
    by_stride = {(stride, size): dim for stride, size, dim in zip(view.stride(), view.shape, layout.dims, strict=True)}
    behind = Layout(
        tuple(by_stride.get((stride, size), plain(size)) for stride, size in zip(base.stride(), base.shape, strict=True))
    )
    return behind if behind.samples == n else None


def strided_anew(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """as_strided of a tensor whose every dimension that is left keeps its stride and its size."""
    operand, layout = call.args[0], first_layout(call, layout_of)
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


def written_slice(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """slice_scatter, select_scatter: as `written_along`, and a slice that is all of a dimension may hold samples."""
    layouts = [layout for t in call.dependent if (layout := layout_of(t))]
    if call.name == "slice_scatter" and call.args[1].shape == output.shape:
        return align(layouts, output.shape)
    if call.name == "select_scatter" and call.depends(call.args[1]):
        d = call.argument(2, "dim") % output.ndim
        layouts = [Layout((*x.dims[:d], plain(1), *x.dims[d:])) if len(x.dims) < output.ndim else x for x in layouts]
    return _written(layouts, call.argument(2, "dim", 0), call, output)


def _behind_index(target: Tensor, index: Any, layout: Layout | None, n: int) -> Layout | None:
    """The layout of a constant of which a part by slices and numbers is given a value; None for indices of another kind."""
    shape = target.shape
    probe = torch.empty_strided(shape, [math.prod(size + 1 for size in shape[i + 1 :]) for i in range(len(shape))], device="meta")
    try:
        part = probe[index]
    except (RuntimeError, IndexError, NotImplementedError):
        return None
    aligned = align([layout], part.shape) if part._base is probe else None
    return aligned and behind_view(part, aligned, probe, n)


def written_along(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """index_add, scatter and the like, along one dimension: the places are those of what is written to."""
    return _written([layout for t in call.dependent if (layout := layout_of(t))], call.argument(1, "dim"), call, output)


def _written(layouts: list[Layout], dim: int, call: Call, output: Tensor) -> Layout | None:
    along = dim % output.ndim
    if any(len(layout.dims) != output.ndim or layout.dims[along].has(SAMPLE) for layout in layouts):
        return None
    written = layouts[0].dims[along] if call.depends(call.args[0]) else plain(output.shape[along])
    rest = align([Layout(with_item(layout.dims, along, plain(1))) for layout in layouts], with_item(output.shape, along, 1))
    return rest and Layout(with_item(rest.dims, along, written))


def masked(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """masked_scatter: constants that go into a tensor leave it where it is."""
    return None if call.depends(call.argument(2, "source")) else align([first_layout(call, layout_of)], output.shape)


def assigned(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """x[index] = value: the places are those of x; a value that depends on the input must go to all samples alike."""
    target, index, value = call.args[:3]
    layout = layout_of(target if call.depends(target) else value)
    index = _as_tuple(call.name, index)
    if layout is None or not call.depends(value):
        return layout
    if call.name == "setitem" and (behind := _behind_index(target, call.args[1], layout_of(value), layout.samples)):
        is_same = [dim.samples for dim in behind.dims] == [dim.samples for dim in layout.dims]
        return behind if not call.depends(target) else layout if is_same else None
    if not call.depends(target):
        if len(layout.dims) != output.ndim:
            return None
        layout = Layout(tuple(d if d.size == size else plain(size) for d, size in zip(layout.dims, output.shape, strict=True)))
    return layout if all(_is_full_slice(index[i]) for i, dim in enumerate(layout.dims[: len(index)]) if dim.has(SAMPLE)) else None
