"""How operations move the samples and the image plane: the layout of an output from those of the operands, as one table.

A rule for one more operation is a line in `MOVERS`; a batch that meets an operation without one is run sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, Tokens, plain

T = TypeVar("T")

LayoutOf = Callable[[Any], "Layout | None"]
Mover = Callable[[Call, LayoutOf, Tensor], "Layout | None"]
"""(call, the layout of an operand, one output) -> the output's layout, or None where it cannot be known or samples mix."""


def follow(call: Call, layout_of: LayoutOf, index: int, n: int) -> Layout | None:
    """The layout of an operation's output number `index`, or None where its `n` samples cannot be told apart."""
    output = call.outputs[index]
    mover = _Strided(index) if call.name in _STRIDED else MOVERS.get(call.name)
    layout = None if mover is None or any(layout_of(t) is None for t in call.dependent) else mover(call, layout_of, output)
    if layout is layout_of(call.dependent[0]) and call.dependent[0].shape == output.shape:
        return layout
    sound = layout is not None and layout.shape == tuple(output.shape) and layout.samples == n
    return layout if sound else None


def _first(call: Call, layout_of: LayoutOf) -> Layout:
    """The layout of the first operand that depends on the input."""
    layout = layout_of(call.dependent[0])
    assert layout is not None  # `follow` has seen to it
    return layout


def _broadcast(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Entry by entry, operands aligned at their last dimensions; each dimension from the first operand that knows about it."""
    return _aligned([layout_of(t) for t in call.dependent], output.shape)


def _aligned(layouts: Sequence[Layout | None], shape: Sequence[int]) -> Layout | None:
    first = layouts[0] if layouts else None
    if first is not None and first.shape == tuple(shape) and all(layout is first for layout in layouts):
        return first
    dims = [plain(size) for size in shape]
    for layout in layouts:
        assert layout is not None
        if len(layout.dims) > len(dims):
            return None
        for i, dim in enumerate(reversed(layout.dims), start=1):
            if dim.has(SAMPLE) and not dims[-i].is_plain() and dims[-i] != dim:
                return None
            if dim.size == dims[-i].size and dims[-i].is_plain():
                dims[-i] = dim
    return Layout(tuple(dims))


def _resized(layout: Layout, shape: torch.Size) -> Layout | None:
    if len(shape) != len(layout.dims):
        return None
    if layout.shape == shape:
        return layout
    return Layout(tuple(_resampled(dim, size) for dim, size in zip(layout.dims, shape, strict=True)))


def _resampled(dim: Dim, size: int) -> Dim:
    if dim.size == size:
        return dim
    return Dim((Factor(dim.factors[0].axis, size),)) if dim.spans_an_axis() and not dim.factors[0].shift else plain(size)


def _over_windows(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Convolution, pooling, interpolation: [N, C, *S] -> [N, C', *S'], mixing channels and neighbours."""
    layout = _first(call, layout_of)
    if len(call.dependent) > 1 or any(dim.has(SAMPLE) for dim in layout.dims[1:]):
        return None
    moved = _resized(layout, output.shape)
    mixes_channels = call.name.startswith("conv") or call.name == "grid_sampler"
    return replace(moved, dims=(moved.dims[0], plain(output.shape[1]), *moved.dims[2:])) if moved and mixes_channels else moved


def _per_sample_and_channel(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Normalisation of [N, C, *S] within each sample or by constants."""
    layout = _first(call, layout_of)
    mixes = call.name == "batch_norm" and call.argument(5, "training")
    return None if mixes or any(dim.has(SAMPLE) for dim in layout.dims[1:]) else layout


def _over_last(count: Callable[[Call], int]) -> Mover:
    """Operations that mix the last `count` dimensions and no others."""

    def mover(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
        layout, k = _first(call, layout_of), count(call)
        if any(dim.has(SAMPLE) for dim in layout.dims[len(layout.dims) - k :]):
            return None
        return _resized(layout, output.shape)

    return mover


def _linear(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    layout = _first(call, layout_of)
    if len(call.dependent) > 1 or layout.dims[-1].has(SAMPLE):
        return None
    return Layout((*layout.dims[:-1], plain(output.shape[-1])))


def _along(position: int, name: str = "dim", *, default: Any = None, keeps_order: bool = True) -> Mover:
    """Operations along one dimension or several: softmax, cumsum; where they change the order of its entries it lies nowhere."""

    def mover(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
        layout = _first(call, layout_of)
        given = call.args[position:] if name == "dims" and len(call.args) > position + 1 else call.argument(position, name, default)
        along = _dimensions(given, len(layout.dims))
        moved = _resized(layout, output.shape)
        if moved is None or any(layout.dims[d].has(SAMPLE) for d in along):
            return None
        if keeps_order:
            return moved
        return Layout(tuple(plain(dim.size) if i in along else dim for i, dim in enumerate(moved.dims)))

    return mover


def _rolled(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """roll: a whole spatial axis remembers how far, anything else loses its places."""
    shifts, along = call.argument(1, "shifts"), call.argument(2, "dims")
    dims = list(_first(call, layout_of).dims)
    if along is None or along == ():
        return None
    shifts, along = (x if isinstance(x, (tuple, list)) else (x,) for x in (shifts, along))
    for shift, d in zip(shifts, along, strict=True):
        if dims[d].has(SAMPLE):
            return None
        factor = dims[d].factors[0]
        whole = dims[d].spans_an_axis()
        dims[d] = Dim((replace(factor, shift=(factor.shift + shift) % factor.size),)) if whole else plain(dims[d].size)
    return Layout(tuple(dims))


def _recurrent(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """LSTM, GRU and RNN over [N, L, C] or [L, N, C]: the sequence, then hidden states [layers, N, C']."""
    layout = layout_of(call.args[0])
    packed = isinstance(call.args[2], Tensor)
    if packed or layout is None or len(layout.dims) != 3 or any(call.depends(arg) for arg in call.args[1:]):
        return None
    if output is call.outputs[0]:
        return Layout((*layout.dims[:2], plain(output.shape[-1])))
    samples = layout.dims[0 if call.args[-1] else 1]
    return Layout((plain(output.shape[0]), samples, plain(output.shape[-1])))


def _dimensions(along: Any, ndim: int) -> list[int]:
    if along is None or isinstance(along, bool) or along == () or along == []:
        return list(range(ndim))
    return [d % ndim for d in ((along,) if isinstance(along, int) else along)]


def _reduction(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Sums, means, extrema and norms over some dimensions; what is kept at size 1 still spans its axis."""
    layout = _first(call, layout_of)
    position, name = (2, "dim") if "norm" in call.name or call.name == "kthvalue" else (1, "dim")
    along = call.argument(position, name, call.kwargs.get("axis"))
    if isinstance(along, Tensor):  # max(x, y), which is entry by entry
        return _broadcast(call, layout_of, output)
    reduced = set(_dimensions(along, len(layout.dims)))
    if output.ndim == len(layout.dims):
        return _resized(layout, output.shape)
    return Layout(tuple(dim for i, dim in enumerate(layout.dims) if i not in reduced))


def _matrix_product(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """[..., M, K] x [..., K, P] -> [..., M, P]"""
    first = 1 if call.name in ("addmm", "baddbmm") else 0
    a, b = call.argument(first, "input"), call.argument(first + 1, "other")
    left, right = layout_of(a) if call.depends(a) else None, layout_of(b) if call.depends(b) else None
    if a.ndim < 2 or b.ndim < 2 or (left and left.dims[-1].has(SAMPLE)) or (right and right.dims[-2].has(SAMPLE)):
        return None
    batched = [replace(side, dims=(*side.dims[:-2], plain(1), plain(1))) for side in (left, right) if side]
    layout = _aligned(batched, output.shape)
    if layout is None:
        return None
    rows = left.dims[-2] if left else plain(output.shape[-2])
    columns = right.dims[-1] if right else plain(output.shape[-1])
    if left and not columns.has(SAMPLE):  # an entry of an attention map lies where its query lies
        columns = plain(columns.size)
    return Layout((*layout.dims[:-2], rows, columns))


def _scaled_dot_product(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """The output lies where the queries lie."""
    layouts = [layout_of(t) for t in call.args[:3] if call.depends(t)]
    if any(layout is None or any(dim.has(SAMPLE) for dim in layout.dims[-2:]) for layout in layouts):
        return None
    return _aligned([replace(x, dims=(*x.dims[:-1], plain(output.shape[-1]))) for x in layouts if x], output.shape)


def _einsum(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Each letter of the result from the first operand that has it; a letter summed over must not carry samples."""
    equation, operands = call.args[0], call.args[1] if isinstance(call.args[1], (tuple, list)) else call.args[1:]
    if not isinstance(equation, str):
        return None
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        result = "..." * ("..." in inputs) + "".join(sorted(c for c in set(inputs) - set(",.") if inputs.count(c) == 1))
    terms = inputs.split(",")
    counts = [t.ndim - len(term.replace("...", "")) for term, t in zip(terms, operands, strict=True)]
    unused = [chr(code) for code in range(ord("A"), ord("z")) if chr(code).isalpha() and chr(code) not in equation]
    dots = "".join(unused[: max(counts)])  # the dimensions behind "...", aligned at the last
    terms = [term.replace("...", dots[len(dots) - count :]) for term, count in zip(terms, counts, strict=True)]
    result = result.replace("...", dots)
    dims: dict[str, Dim] = {}
    for letters, operand in zip(terms, operands, strict=True):
        layout = layout_of(operand) if call.depends(operand) else None
        for letter, dim in zip(letters, layout.dims if layout else (), strict=False):
            if dim.has(SAMPLE) and (letter not in result or dims.get(letter, dim) != dim):
                return None
            if letter not in dims or dims[letter].is_plain():
                dims[letter] = dim
    placed: list[Dim] = []
    seen: set[tuple[Any, int]] = set()
    for letter, size in zip(result, output.shape, strict=True):
        dim = dims.get(letter, plain(size))
        places = {(f.axis, f.step) for f in dim.factors if f.axis not in (None, SAMPLE)}
        placed.append(plain(size) if places & seen and not dim.has(SAMPLE) else dim)  # an attention map lies where its queries lie
        seen |= places
    return Layout(tuple(placed))


def _side_by_side(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """cat: constants put before what depends on the input, such as a class token, become its lead."""
    parts = list(call.argument(0, "tensors"))
    along = call.argument(1, "dim", call.kwargs.get("axis", 0)) % output.ndim
    layouts = [layout for t in call.dependent if (layout := layout_of(t))]
    if any(layout.dims[along].has(SAMPLE) for layout in layouts):
        return None
    rest = _aligned([Layout(_with(layout.dims, along, plain(1))) for layout in layouts], _with(tuple(output.shape), along, 1))
    if rest is None:
        return None
    joined, last = plain(output.shape[along]), layouts[-1].dims[along]
    if len(layouts) == 1 and call.depends(parts[-1]) and not last.is_plain():
        joined = _behind(sum(t.shape[along] for t in parts[:-1]), last)
    return Layout(_with(rest.dims, along, joined))


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


def _stacked(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    dim = call.argument(1, "dim", 0) % output.ndim
    shape = [size for i, size in enumerate(output.shape) if i != dim]
    layout = _aligned([layout_of(t) for t in call.dependent], shape)
    return layout and Layout((*layout.dims[:dim], plain(output.shape[dim]), *layout.dims[dim:]))


def _regrouped(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """view, reshape, flatten, unflatten: the factors stay in order and are dealt out to the new dimensions."""
    queue = _merged([f for dim in _first(call, layout_of).dims for f in dim.factors])
    dims = []
    for size in output.shape:
        dim = _dealt(queue, size)
        if dim is None:
            return None
        dims.append(dim)
    return Layout(tuple(dims))  # factors of size 1 may be left over: [N, C, 1, 1] -> [N, C] has no plane any more


def _merged(factors: list[Factor]) -> list[Factor]:
    """Neighbours that are one run of an axis as one factor, such as a window's place and the places in it."""
    merged: list[Factor] = []
    for factor in factors:
        last = merged[-1] if merged else None
        continues = last is not None and last.axis == factor.axis and last.shift == factor.shift
        if last is not None and continues and (factor.axis is None or last.step == factor.size * factor.step):
            merged[-1] = replace(factor, size=last.size * factor.size)
        else:
            merged.append(factor)
    return merged


def _dealt(queue: list[Factor], size: int) -> Dim | None:
    """Takes factors that make up `size` from the front of the queue, splitting the last one where it has to."""
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
            taken.append(replace(head, size=need, step=head.step * inner))
            queue[0] = replace(head, size=inner)
            need = 1
        else:
            return None
    return Dim(tuple(taken)) if need == 1 else plain(0) if size == 0 else None


class _Strided:
    """Operations that return a view by strides: run on an empty tensor whose strides tell where each dimension went."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
        layout = _first(call, layout_of)
        shape = layout.shape
        strides = [math.prod(size + 1 for size in shape[i + 1 :]) for i in range(len(shape))]
        probe = torch.empty_strided(shape, strides, device="meta")
        try:
            moved = call.function(probe, *call.args[1:], **call.kwargs)
        except (RuntimeError, IndexError, NotImplementedError):
            return _gathered_behind_full_slices(call, layout, output)
        moved = moved if isinstance(moved, Tensor) else moved[self.index]
        if moved._base is not probe and moved is not probe:
            return _gathered_behind_full_slices(call, layout, output)
        offset, starts = int(moved.storage_offset()), []
        for stride in strides:
            starts.append(offset // stride)
            offset %= stride
        dims = []
        for size, stride in zip(tuple(moved.shape), moved.stride(), strict=True):
            # Slicing in steps leaves a multiple of the dimension's own stride, still below the next one's.
            source = next((i for i, own in enumerate(strides) if own <= stride), None)
            if source is None or stride % strides[source]:
                dims.append(plain(size))
            else:
                dims.append(_sliced(layout.dims[source], starts[source], int(size), int(stride) // strides[source]))
        return Layout(tuple(dims))


def _sliced(dim: Dim, start: int, size: int, step: int) -> Dim:
    if size == dim.size:
        return dim
    tokens = dim.factors[0].axis if len(dim.factors) == 1 else None
    if isinstance(tokens, Tokens) and step == 1 and start <= tokens.lead and start + size == dim.size:
        return _behind(-start, dim)
    return _resampled(dim, size)


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


def _assigned(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
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


def _repeated(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """repeat, tile: what is not repeated stays where it was, such as all places when a grey image is given three channels."""
    dims = _first(call, layout_of).dims
    new = output.ndim - len(dims)
    return Layout(
        tuple(dims[i - new] if i >= new and dims[i - new].size == size else plain(size) for i, size in enumerate(output.shape))
    )


def _rows_only(call: Call, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Only the first dimension stays what it is."""
    return Layout((_first(call, layout_of).dims[0], *(plain(size) for size in output.shape[1:])))


_STRIDED = frozenset(
    "permute transpose movedim moveaxis t T mT H mH adjoint unsqueeze squeeze select narrow chunk split split_with_sizes "
    "tensor_split unbind getitem expand expand_as".split()
)

_ROWS: tuple[tuple[Mover, str], ...] = (
    (_broadcast, "add sub rsub mul div pow maximum minimum fmax fmin where masked_fill lerp addcmul addcdiv atan2 xlogy copy"),
    (_broadcast, "neg negative positive abs absolute sign sgn square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p"),
    (_broadcast, "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc sigmoid logit sinc floor ceil round trunc"),
    (_broadcast, "relu leaky_relu rrelu prelu elu celu selu mish softplus log_sigmoid silu gelu hardtanh relu6 hardsigmoid"),
    (_broadcast, "hardswish hardshrink softshrink threshold clamp clamp_min clamp_max nan_to_num dropout feature_dropout"),
    (_broadcast, "alpha_dropout feature_alpha_dropout clone contiguous to type float double half bfloat16 type_as cpu cuda alias"),
    (_broadcast, "conj conj_physical resolve_conj resolve_neg zero fill real imag native_dropout"),
    (_over_windows, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d avg_pool1d avg_pool2d avg_pool3d"),
    (_over_windows, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d max_pool1d max_pool2d max_pool3d"),
    (_over_windows, "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d"),
    (_over_windows, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d"),
    (_over_windows, "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d"),
    (_over_windows, "upsample_bicubic2d upsample_trilinear3d upsample_bilinear2d_aa upsample_bicubic2d_aa"),
    (_over_windows, "upsample_nearest_exact2d pixel_shuffle pixel_unshuffle channel_shuffle grid_sampler"),
    (_per_sample_and_channel, "batch_norm instance_norm group_norm"),
    (_over_last(lambda call: len(call.argument(1, "normalized_shape"))), "layer_norm rms_norm"),
    (_over_last(lambda call: len(call.argument(1, "pad")) // 2), "pad constant_pad_nd"),
    (_over_last(lambda call: 2), "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 tril triu"),
    (_linear, "linear"),
    (_along(1), "softmax log_softmax cumsum cumprod cummax cummin glu logcumsumexp"),
    (_along(1, keeps_order=False), "index_select gather"),
    (_along(1, default=-1, keeps_order=False), "sort"),
    (_along(2, keeps_order=False), "take_along_dim"),
    (_along(2, default=-1, keeps_order=False), "topk"),
    (_rolled, "roll"),
    (_recurrent, "lstm gru rnn_tanh rnn_relu"),
    (_along(1, "dims", keeps_order=False), "flip"),
    (_reduction, "sum mean amax amin max min prod std var logsumexp nansum median mode kthvalue linalg_vector_norm"),
    (_matrix_product, "matmul mm bmm baddbmm addmm"),
    (_scaled_dot_product, "scaled_dot_product_attention"),
    (_einsum, "einsum"),
    (_assigned, "setitem"),
    (_rows_only, "im2col col2im"),
    (_repeated, "repeat tile"),
    (_side_by_side, "cat"),
    (_stacked, "stack"),
    (_regrouped, "view reshape flatten unflatten ravel view_as reshape_as"),
)

MOVERS: dict[str, Mover] = {name: mover for mover, names in _ROWS for name in names.split()}
