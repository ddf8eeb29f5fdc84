"""Layout rules of reshape and view, of windows (Tensor.unfold, F.unfold, F.fold), and of flip, rot90, roll and fftshift."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, Tokens, plain, whole_dim
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.operations.layout_rules import LayoutOf, first_layout, resample


def reshape_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """view, reshape, flatten, unflatten: the factors keep their order and are distributed over the new dimensions."""
    queue = _merge_runs([f for dim in first_layout(op, layout_of).dims for f in dim.factors])
    dims: list[Dim] = []
    for i, size in enumerate(output.shape):
        before = list(queue)
        dim = _take_factors(queue, size)
        if dim is None:
            if any(f.axis == SAMPLE and f.size > 1 for f in before):
                return None
            return Layout((*dims, *map(plain, output.shape[i:])))  # within a sample, rows of another length
        dims.append(dim)
    return Layout(tuple(dims))  # factors of size 1 may remain: [N, C, 1, 1] -> [N, C] no longer has a plane


def _merge_runs(factors: list[Factor]) -> list[Factor]:
    """Merge neighbouring factors that form one run of an axis, such as windows and the places in them."""
    merged: list[Factor] = []
    for factor in factors:
        if factor == Factor(None, 1):
            continue
        last = merged[-1] if merged else None
        continues = last is not None and last.axis == factor.axis
        if last is not None and continues and (factor.axis is None or last.step == factor.size * factor.step):
            merged[-1] = replace(factor, size=last.size * factor.size)
        else:
            merged.append(factor)
    return merged


def _take_factors(queue: list[Factor], size: int) -> Dim | None:
    """Take factors with product `size` from the front of the queue, and split the last one if necessary."""
    taken: list[Factor] = []
    need = size
    while queue and size:
        head = queue[0]
        if need == 1 and (taken or head.size > 1):
            break
        if need % head.size == 0:
            taken.append(head)
            queue.pop(0)
            need //= head.size
        elif head.size % need == 0 and not isinstance(head.axis, Tokens):
            inner = head.size // need
            taken.append(replace(head, size=need, step=1 if head.axis is None else head.step * inner))
            queue[0] = replace(head, size=inner)
            need = 1
        else:
            return None
    return Dim(tuple(taken) or (Factor(None, 1),)) if need == 1 else plain(0) if size == 0 else None


def unfold_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Tensor.unfold: [..., L, ...] -> [..., windows, ..., size]; entries of overlapping windows lie at their window."""
    layout = first_layout(op, layout_of)
    d, size, step = (op.argument(i, name) for i, name in enumerate(("dimension", "size", "step"), start=1))
    d %= len(layout.dims)
    windows, dim = output.shape[d], layout.coarsen(d)
    if (axis := dim.whole) and size == step and windows * size == axis.length:
        outer, inner = Dim((Factor(axis, windows, size),)), Dim((Factor(axis, size),))
    else:
        outer, inner = resample(dim, windows), plain(size)
    return Layout((*layout.dims[:d], outer, *layout.dims[d + 1 :], inner))


def im2col_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """im2col (F.unfold): [N, C, H, W] -> [N, C * size of a patch, patches]. An entry lies at its patch."""
    layout = first_layout(op, layout_of)
    if len(layout.dims) != 4 or len(op.args) != 5 or any(dim.has(SAMPLE) for dim in layout.dims[1:]):
        return None
    geometry = zip(layout.shape[2:], *op.args[1:5], strict=True)
    counts = [(length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for length, kernel, dilation, pad, stride in geometry]
    rows, columns = (resample(layout.coarsen(i), count) for i, count in enumerate(counts, start=2))
    return Layout((layout.dims[0], plain(output.shape[1]), Dim((*rows.factors, *columns.factors))))


def col2im_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """col2im (F.fold): [N, C * size of a patch, patches] -> [N, C, H, W]."""
    layout = first_layout(op, layout_of)
    if len(layout.dims) != 3 or any(dim.has(SAMPLE) for dim in layout.dims[1:]):
        return None
    axes = [Dim((factor,)) for factor in layout.dims[2].factors]
    sizes = output.shape[2:]
    places = map(resample, axes, sizes) if len(axes) == 2 else map(plain, sizes)
    return Layout((layout.dims[0], plain(output.shape[1]), *places))


def flip_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """flip, fliplr, flipud: a whole spatial axis records the flip. Any other dimension loses its places."""
    layout = first_layout(op, layout_of)
    given = op.args[1:] if len(op.args) > 2 else op.argument(1, "dims", ())
    return _flip_dims(layout, {"fliplr": (1,), "flipud": (0,)}.get(op.name, given))


def rot90_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """rot90: a flip of one or both dimensions, then a transposition if the number of turns is odd."""
    layout, turns = first_layout(op, layout_of), op.argument(1, "k", 1) % 4
    first, second = op.argument(2, "dims", (0, 1))
    flip = _flip_dims(layout, {0: (), 1: (second,), 2: (first, second), 3: (first,)}[turns])
    if flip is None or turns % 2 == 0:
        return flip
    dims = list(flip.dims)
    dims[first], dims[second] = dims[second], dims[first]
    return Layout(tuple(dims))


def roll_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """roll: a whole spatial axis records its shift. Any other dimension loses its places."""
    shifts, along = op.argument(1, "shifts"), op.argument(2, "dims")
    layout = first_layout(op, layout_of)
    if along is None or along in ((), []):
        return _roll_flat(layout)
    return _shift_dims(layout, _as_list(shifts), _as_list(along))


def fftshift_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """fftshift, ifftshift: a roll by half the length."""
    layout = first_layout(op, layout_of)
    given = op.argument(1, "dim")
    along = range(len(layout.dims)) if given is None else _as_list(given)
    up = op.name == "fft_ifftshift"  # it shifts back by half the length, rounded down
    return _shift_dims(layout, [(layout.shape[d] + up) // 2 for d in along], along)


def _as_list(given: Any) -> list[int]:
    return list(given) if isinstance(given, (tuple, list)) else [given]


def _flip_dims(layout: Layout, along: Any) -> Layout | None:
    dims = list(layout.dims)
    for d in _as_list(along):
        if dims[d].has(SAMPLE):
            return None
        axis = layout.coarsen(d).whole
        dims[d] = whole_dim(axis.flip()) if axis else plain(dims[d].size)
    return Layout(tuple(dims))


def _shift_dims(layout: Layout, shifts: Iterable[int], along: Iterable[int]) -> Layout | None:
    dims = list(layout.dims)
    for shift, d in zip(shifts, along, strict=True):
        if dims[d].has(SAMPLE):
            return None
        axis = layout.coarsen(d).whole
        dims[d] = whole_dim(replace(axis, shift=(axis.shift + shift) % axis.length)) if axis else plain(dims[d].size)
    return Layout(tuple(dims))


def _roll_flat(layout: Layout) -> Layout | None:
    """The layout of a tensor that is rolled as one row of numbers."""
    is_row = len(layout.dims) == 1 and not layout.dims[0].has(SAMPLE)
    return Layout((plain(layout.shape[0]),)) if is_row else None
