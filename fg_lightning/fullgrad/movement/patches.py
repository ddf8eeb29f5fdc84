"""Cutting an axis into windows, and putting them together again: Tensor.unfold, F.unfold and F.fold."""

from __future__ import annotations

from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, plain
from fg_lightning.fullgrad.movement.mover import LayoutOf, first_layout, resample


def in_windows(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Tensor.unfold: [..., L, ...] -> [..., windows, ..., size]; what overlaps lies where its window does."""
    layout = first_layout(call, layout_of)
    d, size, step = (call.argument(i, name) for i, name in enumerate(("dimension", "size", "step"), start=1))
    d %= len(layout.dims)
    windows, dim = output.shape[d], layout.coarsened(d)
    if (axis := dim.whole) and size == step and windows * size == axis.length:
        outer, inner = Dim((Factor(axis, windows, size),)), Dim((Factor(axis, size),))
    else:
        outer, inner = resample(dim, windows), plain(size)
    return Layout((*layout.dims[:d], outer, *layout.dims[d + 1 :], inner))


def patches(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """im2col, which is F.unfold: [N, C, H, W] -> [N, C * size of a patch, patches]; an entry lies where its patch does."""
    layout = first_layout(call, layout_of)
    if len(layout.dims) != 4 or len(call.args) != 5 or any(dim.has(SAMPLE) for dim in layout.dims[1:]):
        return None
    geometry = zip(layout.shape[2:], *call.args[1:5], strict=True)
    counts = [(length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for length, kernel, dilation, pad, stride in geometry]
    rows, columns = (resample(layout.coarsened(i), count) for i, count in enumerate(counts, start=2))
    return Layout((layout.dims[0], plain(output.shape[1]), Dim((*rows.factors, *columns.factors))))


def of_patches(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """col2im, which is F.fold: [N, C * size of a patch, patches] -> [N, C, H, W]"""
    layout = first_layout(call, layout_of)
    if len(layout.dims) != 3 or any(dim.has(SAMPLE) for dim in layout.dims[1:]):
        return None
    axes = [Dim((factor,)) for factor in layout.dims[2].factors]
    sizes = output.shape[2:]
    places = map(resample, axes, sizes) if len(axes) == 2 else map(plain, sizes)
    return Layout((layout.dims[0], plain(output.shape[1]), *places))
