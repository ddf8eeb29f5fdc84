"""Operations that leave every dimension where it is: entry by entry, over windows, along some of the dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Layout, plain, spanning
from fg_lightning.fullgrad.movement.mover import LayoutOf, Mover, align, extend, first_layout, resize


def broadcast(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Entry by entry, operands aligned at their last dimensions; each dimension from the first operand that knows about it."""
    return align([layout_of(t) for t in call.dependent], output.shape)


def over_windows(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Convolution, pooling, interpolation: [N, C, *S] -> [N, C', *S'], mixing channels and neighbours."""
    layout = first_layout(call, layout_of)
    if len(call.dependent) > 1 or any(dim.has(SAMPLE) for dim in layout.dims[1:]):
        return None
    moved = resize(layout, output.shape)
    mixes_channels = call.name.startswith("conv") or call.name == "grid_sampler"
    return replace(moved, dims=(moved.dims[0], plain(output.shape[1]), *moved.dims[2:])) if moved and mixes_channels else moved


def per_sample_and_channel(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Normalisation of [N, C, *S] within each sample or by constants."""
    layout = first_layout(call, layout_of)
    mixes = call.name == "batch_norm" and call.argument(5, "training")
    return None if mixes or any(dim.has(SAMPLE) for dim in layout.dims[1:]) else layout


def over_last(count: Callable[[Call], int]) -> Mover:
    """Operations that mix the last `count` dimensions and no others."""

    def mover(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
        layout, k = first_layout(call, layout_of), count(call)
        if any(dim.has(SAMPLE) for dim in layout.dims[len(layout.dims) - k :]):
            return None
        return resize(layout, output.shape)

    return mover


def padded(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """pad: the image's places keep apart from those that are put around them."""
    layout, pads = first_layout(call, layout_of), call.argument(1, "pad")
    dims = list(layout.dims)
    for d, before, after in zip(range(len(dims) - 1, -1, -1), pads[::2], pads[1::2], strict=False):
        if before or after:
            dims[d] = extend(layout.coarsened(d), before, after)
    return Layout(tuple(dims))


def along_dims(position: int, name: str = "dim", *, default: Any = None, keeps_order: bool = True) -> Mover:
    """Operations along one dimension or several: softmax, cumsum; where they change the order of its entries it lies nowhere."""

    def mover(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
        layout = first_layout(call, layout_of)
        given = call.args[position:] if name == "dims" and len(call.args) > position + 1 else call.argument(position, name, default)
        along = _dimensions(given, len(layout.dims))
        moved = resize(layout, output.shape)
        if moved is None or any(layout.dims[d].has(SAMPLE) for d in along):
            return None
        if keeps_order:
            return moved
        return Layout(tuple(plain(dim.size) if i in along else dim for i, dim in enumerate(moved.dims)))

    return mover


def rolled(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """roll: a whole spatial axis remembers how far, anything else loses its places."""
    shifts, along = call.argument(1, "shifts"), call.argument(2, "dims")
    layout = first_layout(call, layout_of)
    dims = list(layout.dims)
    if along is None or along == ():
        return None
    shifts, along = (x if isinstance(x, (tuple, list)) else (x,) for x in (shifts, along))
    for shift, d in zip(shifts, along, strict=True):
        if dims[d].has(SAMPLE):
            return None
        axis = layout.coarsened(d).whole
        dims[d] = spanning(replace(axis, shift=(axis.shift + shift) % axis.length)) if axis else plain(dims[d].size)
    return Layout(tuple(dims))


def reduction(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Sums, means, extrema and norms over some dimensions; what is kept at size 1 still spans its axis."""
    layout = first_layout(call, layout_of)
    position, name = (2, "dim") if "norm" in call.name or call.name == "kthvalue" else (1, "dim")
    along = call.argument(position, name, call.kwargs.get("axis"))
    if isinstance(along, Tensor):  # max(x, y), which is entry by entry
        return broadcast(call, layout_of, output)
    reduced = set(_dimensions(along, len(layout.dims)))
    if output.ndim == len(layout.dims):
        return resize(layout, output.shape)
    return Layout(tuple(dim for i, dim in enumerate(layout.dims) if i not in reduced))


def _dimensions(along: Any, ndim: int) -> list[int]:
    if along is None or isinstance(along, bool) or along == () or along == []:
        return list(range(ndim))
    return [d % ndim for d in ((along,) if isinstance(along, int) else along)]


def recurrent(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """LSTM, GRU and RNN over [N, L, C] or [L, N, C]: the sequence, then hidden states [layers, N, C']."""
    layout = layout_of(call.args[0])
    packed = isinstance(call.args[2], Tensor)
    if packed or layout is None or len(layout.dims) != 3 or any(call.depends(arg) for arg in call.args[1:]):
        return None
    if output is call.outputs[0]:
        return Layout((*layout.dims[:2], plain(output.shape[-1])))
    samples = layout.dims[0 if call.args[-1] else 1]
    return Layout((plain(output.shape[0]), samples, plain(output.shape[-1])))


def repeated(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """repeat, tile: what is not repeated stays where it was, such as all places when a grey image is given three channels."""
    dims = first_layout(call, layout_of).dims
    new = output.ndim - len(dims)
    return Layout(
        tuple(dims[i - new] if i >= new and dims[i - new].size == size else plain(size) for i, size in enumerate(output.shape))
    )


def interleaved(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """repeat_interleave: of a spatial axis each place so many times, which is the axis at a finer resolution."""
    return along_dims(2)(call, layout_of, output) if isinstance(call.argument(1, "repeats"), int) else None
