"""Layout rules of operations that keep the order of dimensions: elementwise, over windows, along some dimensions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, plain
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.operations.layout_rules import (
    LayoutOf,
    LayoutRule,
    align,
    broadcast_layout,
    extend,
    first_layout,
    ignores_constants,
    resize,
    with_item,
)


@ignores_constants
def window_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Convolution, pooling, interpolation: [N, C, *S] -> [N, C', *S']. They mix neighbours; a convolution also mixes channels."""
    layout = layout_of(op.args[0]) if op.depends(op.args[0]) else None
    if layout is None:
        return None
    others = [layout_of(t) for t in op.dependent if t is not op.args[0]]
    is_convolution, is_sampler = op.name.startswith("conv"), op.name.startswith("grid_sampler")
    if is_convolution and (others or layout.dims[1].has(SAMPLE)):
        return _group_by_group(op, layout, [other for other in others if other], output)
    if any(other is None or other.dims[0].samples != layout.dims[0].samples for other in others):
        return None
    axes = re.search(r"(pool|upsample_[a-z_]+)(\d)d", op.name)
    if any(dim.has(SAMPLE) for dim in layout.dims[-int(axes[2]) if axes else 1 :]):
        return None
    moved = resize(layout, output.shape)
    mixes_channels = is_convolution or is_sampler
    return replace(moved, dims=(moved.dims[0], plain(output.shape[1]), *moved.dims[2:])) if moved and mixes_channels else moved


def _group_by_group(op: Operation, layout: Layout, weights: list[Layout], output: Tensor) -> Layout | None:
    """A convolution whose groups are samples, possibly with their own weights: [1, N * C, *S] -> [1, N * C', *S']."""
    moved = resize(layout, (*layout.shape[:2], *output.shape[2:]))
    groups, channels = op.argument(8 if op.name == "convolution" else 6, "groups", 1), output.shape[1]
    if moved and layout.samples == 1:
        return replace(moved, dims=(moved.dims[0], plain(channels), *moved.dims[2:]))
    samples, *rest = layout.dims[1].factors
    if samples.axis != SAMPLE or groups % samples.size or channels % samples.size:
        return None
    elsewhere = [layout.dims[0], *layout.dims[2:], Dim(tuple(rest) or (Factor(None, 1),))]
    elsewhere += [dim for weight in weights for dim in weight.dims[1:]]
    if any(dim.has(SAMPLE) for dim in elsewhere) or any(weight.dims[0].factors[0] != samples for weight in weights):
        return None
    own = Dim((samples, Factor(None, channels // samples.size)))
    return moved and replace(moved, dims=(moved.dims[0], own, *moved.dims[2:]))


def last_dims_layout(count: Callable[[Operation], int]) -> LayoutRule:
    """Operations that mix only the last `count` dimensions."""

    def rule(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
        layout, k = first_layout(op, layout_of), count(op)
        if any(dim.has(SAMPLE) for dim in layout.dims[len(layout.dims) - k :]):
            return None
        return resize(layout, output.shape)

    return ignores_constants(rule)


def pad_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """pad: the layout distinguishes the image's places from the padded ones."""
    layout, pads = first_layout(op, layout_of), op.argument(1, "pad")
    dims = list(layout.dims)
    for d, before, after in zip(range(len(dims) - 1, -1, -1), pads[::2], pads[1::2], strict=False):
        if before or after:
            dims[d] = extend(layout.coarsen(d), before, after)
    return Layout(tuple(dims))


def along_dims_layout(position: int, name: str = "dim", *, default: Any = None, keeps_order: bool = True) -> LayoutRule:
    """Operations along dimensions, such as softmax and cumsum. If they reorder entries, the dimensions lose their places."""

    def rule(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
        layout = first_layout(op, layout_of)
        given = op.args[position:] if name == "dims" and len(op.args) > position + 1 else op.argument(position, name, default)
        if given is None and op.name.startswith("fft_") and (sizes := op.argument(1, "s")) is not None:
            given = tuple(range(-len(sizes), 0))
        along = _dimensions(given, len(layout.dims))
        moved = resize(layout, output.shape)
        if moved is None or any(layout.dims[d].has(SAMPLE) for d in along):
            return None
        if keeps_order:
            return moved
        return Layout(tuple(plain(dim.size) if i in along else dim for i, dim in enumerate(moved.dims)))

    return rule


def reduction_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Sums, means, extrema and norms over some dimensions. A dimension that is kept with size 1 still spans its axis."""
    layout = first_layout(op, layout_of)
    position = 2 if "norm" in op.name or op.name in _SECOND else 1
    along = op.argument(position, "dim", op.kwargs.get("axis"))
    if isinstance(along, Tensor):  # max(x, y) is elementwise
        return broadcast_layout(op, layout_of, output)
    reduced = set(_dimensions(along, len(layout.dims)))
    kept = tuple(dim for i, dim in enumerate(layout.dims) if i not in reduced)
    if "quantile" in op.name and isinstance(q := op.argument(1, "q"), Tensor) and q.ndim:
        several = plain(len(q)), *layout.dims
        return resize(Layout(several), output.shape) if output.ndim == len(several) else Layout((several[0], *kept))
    return resize(layout, output.shape) if output.ndim == len(layout.dims) else Layout(kept)


_SECOND = ("kthvalue", "quantile", "nanquantile")
"""Reductions with another argument before the dimensions."""


def _dimensions(along: Any, ndim: int) -> list[int]:
    if along is None or isinstance(along, bool) or along == () or along == []:
        return list(range(ndim))
    return [d % ndim for d in ((along,) if isinstance(along, int) else along)]


def recurrent_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """LSTM, GRU and RNN over [N, L, C] or [L, N, C]: the sequence, then hidden states [layers, N, C']."""
    layout = layout_of(op.args[0])
    packed = isinstance(op.args[2], Tensor)
    if packed or layout is None or len(layout.dims) != 3 or any(op.depends(arg) for arg in op.args[1:]):
        return None
    if output is op.outputs[0]:
        return Layout((*layout.dims[:2], plain(output.shape[-1])))
    samples = layout.dims[0 if op.args[-1] else 1]
    return Layout((plain(output.shape[0]), samples, plain(output.shape[-1])))


def repeat_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """repeat, tile: every copy lies where the original lies, for example if a grey image gets three channels."""
    dims = first_layout(op, layout_of).dims
    new = output.ndim - len(dims)
    return Layout(tuple(_repeat_dim(dims[i - new] if i >= new else plain(1), size) for i, size in enumerate(output.shape)))


def _repeat_dim(dim: Dim, size: int) -> Dim:
    if dim.size in (size, 0):
        return dim if dim.size == size else plain(size)
    return plain(size) if dim.is_plain() else Dim((Factor(None, size // dim.size), *dim.factors))


def repeat_interleave_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """repeat_interleave: a spatial axis gets a finer resolution."""
    layout, times, along = first_layout(op, layout_of), op.argument(1, "repeats"), op.argument(2, "dim")
    if not isinstance(times, int) or (along is None and len(layout.dims) != 1):
        return along_dims_layout(2)(op, layout_of, output)
    along = (along or 0) % len(layout.dims)
    if not layout.dims[along].has(SAMPLE):
        return resize(layout, output.shape)
    return Layout(with_item(layout.dims, along, Dim((*layout.dims[along].factors, Factor(None, times)))))


def broadcast_tensors_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """broadcast_tensors, atleast_1d, atleast_2d, atleast_3d: each operand gets an output, with added dimensions."""
    number = next(i for i, own in enumerate(op.outputs) if own is output)
    layout = layout_of(op.dependent[number])
    if layout is None or len(layout.dims) == output.ndim:
        return layout and align([layout], output.shape)
    if op.name == "broadcast_tensors":
        return align([layout], output.shape)
    behind = op.name == "atleast_3d"
    before = output.ndim - len(layout.dims) - behind
    return Layout((*[plain(1)] * before, *layout.dims, *[plain(1)] * behind))


def affine_grid_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """affine_grid_generator: a matrix for each sample, [N, 2, 3] -> [N, H, W, 2], or [N, 3, 4] -> [N, D, H, W, 3]."""
    samples, *rest = first_layout(op, layout_of).dims
    return None if any(dim.has(SAMPLE) for dim in rest) else Layout((samples, *map(plain, output.shape[1:])))


def complex_view_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """view_as_real adds a last dimension of real and imaginary part; view_as_complex removes it."""
    dims = first_layout(op, layout_of).dims
    return Layout((*dims, plain(2)) if op.name == "view_as_real" else dims[:-1])
