"""Operations that turn or shift the order of entries along an axis: flip, rot90, roll, fftshift."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Layout, plain, spanning
from fg_lightning.fullgrad.movement.mover import LayoutOf, first_layout


def flipped(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """flip, fliplr, flipud: a whole spatial axis remembers that it was turned, anything else loses its places."""
    layout = first_layout(call, layout_of)
    given = call.args[1:] if len(call.args) > 2 else call.argument(1, "dims", ())
    return _turned(layout, {"fliplr": (1,), "flipud": (0,)}.get(call.name, given))


def rotated(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """rot90: a flip of one dimension or both, then for an odd number of turns a transposition."""
    layout, turns = first_layout(call, layout_of), call.argument(1, "k", 1) % 4
    first, second = call.argument(2, "dims", (0, 1))
    turned = _turned(layout, {0: (), 1: (second,), 2: (first, second), 3: (first,)}[turns])
    if turned is None or turns % 2 == 0:
        return turned
    dims = list(turned.dims)
    dims[first], dims[second] = dims[second], dims[first]
    return Layout(tuple(dims))


def rolled(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """roll: a whole spatial axis remembers how far, anything else loses its places."""
    shifts, along = call.argument(1, "shifts"), call.argument(2, "dims")
    layout = first_layout(call, layout_of)
    if along is None or along in ((), []):
        return _scrambled(layout)
    return _shifted(layout, _listed(shifts), _listed(along))


def centred(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """fftshift, ifftshift: a roll by half the length."""
    layout = first_layout(call, layout_of)
    given = call.argument(1, "dim")
    along = range(len(layout.dims)) if given is None else _listed(given)
    up = call.name == "fft_ifftshift"  # which goes half the length back, rounded down
    return _shifted(layout, [(layout.shape[d] + up) // 2 for d in along], along)


def _listed(given: Any) -> list[int]:
    return list(given) if isinstance(given, (tuple, list)) else [given]


def _turned(layout: Layout, along: Any) -> Layout | None:
    dims = list(layout.dims)
    for d in _listed(along):
        if dims[d].has(SAMPLE):
            return None
        axis = layout.coarsened(d).whole
        dims[d] = spanning(axis.turned()) if axis else plain(dims[d].size)
    return Layout(tuple(dims))


def _shifted(layout: Layout, shifts: Iterable[int], along: Iterable[int]) -> Layout | None:
    dims = list(layout.dims)
    for shift, d in zip(shifts, along, strict=True):
        if dims[d].has(SAMPLE):
            return None
        axis = layout.coarsened(d).whole
        dims[d] = spanning(replace(axis, shift=(axis.shift + shift) % axis.length)) if axis else plain(dims[d].size)
    return Layout(tuple(dims))


def _scrambled(layout: Layout) -> Layout | None:
    """What was rolled as one row of numbers."""
    is_row = len(layout.dims) == 1 and not layout.dims[0].has(SAMPLE)
    return Layout((plain(layout.shape[0]),)) if is_row else None
