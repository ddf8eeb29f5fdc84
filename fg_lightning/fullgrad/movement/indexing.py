"""Views by strides, indexing and assignment to an index."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Layout, plain
from fg_lightning.fullgrad.movement.mover import LayoutOf, align, first_layout
from fg_lightning.fullgrad.movement.tokens import sliced, with_item


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
    """x[:, indices]: what stands before the first index that is not a full slice stays; so does x[arange(N), classes]."""
    if call.name != "getitem":
        return None
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    kept = next((i for i, item in enumerate(index) if not _is_full_slice(item)), len(index))
    if kept == 0 and _picks_one_each(index, layout):
        kept = 1
    return Layout((*layout.dims[:kept], *(plain(size) for size in output.shape[kept:])))


def _is_full_slice(item: Any) -> bool:
    return isinstance(item, slice) and item == slice(None)


def _picks_one_each(index: tuple[Any, ...], layout: Layout) -> bool:
    first = index[0]
    if not isinstance(first, Tensor) or first.dtype is torch.bool or first.ndim != 1 or len(first) != layout.shape[0]:
        return False
    return bool((first == torch.arange(len(first), device=first.device)).all())


def written_along(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """index_add, scatter and the like, along one dimension: the places are those of what is written to."""
    along = call.argument(1, "dim") % output.ndim
    layouts = [layout for t in call.dependent if (layout := layout_of(t))]
    if any(len(layout.dims) != output.ndim or layout.dims[along].has(SAMPLE) for layout in layouts):
        return None
    is_known = call.depends(call.args[0])
    written = layouts[0].dims[along] if is_known else plain(output.shape[along])
    rest = align([Layout(with_item(layout.dims, along, plain(1))) for layout in layouts], with_item(output.shape, along, 1))
    return rest and Layout(with_item(rest.dims, along, written))


def assigned(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """x[index] = value: the places are those of x; a value that depends on the input must go to all samples alike."""
    target, index, value = call.args[:3]
    layout = layout_of(target if call.depends(target) else value)
    index = index if isinstance(index, tuple) else (index,)
    if layout is None or not call.depends(value):
        return layout
    if not call.depends(target):
        if len(layout.dims) != output.ndim:
            return None
        layout = Layout(tuple(d if d.size == size else plain(size) for d, size in zip(layout.dims, output.shape, strict=True)))
    return layout if all(_is_full_slice(index[i]) for i, dim in enumerate(layout.dims[: len(index)]) if dim.has(SAMPLE)) else None
