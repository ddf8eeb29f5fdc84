"""What a layout rule is, what most of them do, and how a layout is inferred without one.

Most rules use the layout of the first operand, align those of several, or resize one. Of an operation without a rule, such as a
function of the user, the gradients tell how it moves samples and places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, Tokens, intern_layout, plain, whole_dim
from fg_lightning.fullgrad.operation import Operation, tensors_in

T = TypeVar("T")
LayoutOf = Callable[[Any], "Layout | None"]
LayoutRule = Callable[[Operation, LayoutOf, Tensor], "Layout | None"]
"""(operation, function that gives the layout of an operand, one output) -> the output's layout; None if samples mix."""


def output_layout(op: Operation, rule: LayoutRule | None, layout_of: LayoutOf, index: int, n: int) -> Layout | None:
    """The layout of an operation's output number `index`, by its rule; None if its `n` samples cannot be told apart."""
    if not op.dependent:
        return None
    output, layouts = op.outputs[index], [layout_of(t) for t in op.dependent]
    first = layouts[0]
    if first is None or None in layouts:
        return None
    if rule is broadcast_layout and first.shape == output.shape and all(layout is first for layout in layouts):
        return first  # as of most operations
    key = _key(op, rule, index, output) if len(layouts) == 1 else None
    if key is not None and key in first.derived:
        return first.derived[key]
    try:
        layout = rule(op, layout_of, output) if rule else infer_layout(op, layout_of, output, n)
    except Exception:  # arguments of a kind that the rule does not know
        layout = infer_layout(op, layout_of, output, n)
    if not (layout is first and op.dependent[0].shape == output.shape):
        is_sound = layout is not None and layout.shape == tuple(output.shape) and layout.samples == n
        layout = intern_layout(layout) if layout is not None and is_sound else None
    if key is not None:
        first.derived[key] = layout
    return layout


def ignores_constants(rule: LayoutRule) -> LayoutRule:
    """Mark a rule whose layout does not depend on the values of weights and other constants, nor on their shapes."""
    rule.ignores_constants = True  # type: ignore[attr-defined]
    return rule


def _key(op: Operation, rule: LayoutRule | None, index: int, output: Tensor) -> Hashable | None:
    """What the layout of an output depends on, apart from that of the one dependent operand; None if on values as well."""
    if rule is None or op.is_custom or op.dependent[0] is not op.args[0]:
        return None
    rest, kwargs = op.args[1:], op.kwargs
    if hasattr(rule, "ignores_constants"):
        rest = tuple([None if isinstance(item, Tensor) else item for item in rest])
        kwargs = {name: item for name, item in kwargs.items() if not isinstance(item, Tensor)}
    elif tensors_in((rest, kwargs) if kwargs else rest):
        return None
    key = op.name, index, output.shape, rest, tuple(kwargs.items()) if kwargs else ()
    try:
        hash(key)
    except TypeError:  # a list or a slice
        return repr(key)
    return key


def first_layout(op: Operation, layout_of: LayoutOf) -> Layout:
    """The layout of the first operand that depends on the input."""
    layout = layout_of(op.dependent[0])
    assert layout is not None  # checked by `output_layout`
    return layout


def align(layouts: Sequence[Layout | None], shape: Sequence[int]) -> Layout | None:
    """Broadcast layouts to a shape: each dimension is the first layout's that knows it; None if samples disagree."""
    first = layouts[0] if layouts else None
    if first is not None and first.shape == tuple(shape) and all(layout is first for layout in layouts):
        return first
    dims = [plain(size) for size in shape]
    for layout in layouts:
        assert layout is not None
        if len(layout.dims) > len(dims):
            return None
        for i, dim in enumerate(reversed(layout.dims), start=1):
            if dim.has(SAMPLE) and not dims[-i].is_plain() and dims[-i].samples != dim.samples:
                return None
            if dim.size == dims[-i].size and dims[-i].is_plain():
                dims[-i] = dim
    return Layout(tuple(dims))


def broadcast_layout(op: Operation, layout_of: LayoutOf, output: Tensor) -> Layout | None:
    """Elementwise operations: operands are aligned at their last dimensions."""
    return align([layout_of(t) for t in op.dependent], output.shape)


def resize(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """A layout with its dimensions resampled to other sizes; None if their number differs."""
    if len(shape) != len(layout.dims):
        return None
    if layout.shape == tuple(shape):
        return layout
    dims = zip(layout.dims, shape, strict=True)
    return Layout(tuple(dim if dim.size == size else resample(layout.coarsen(i), size) for i, (dim, size) in enumerate(dims)))


def resample(dim: Dim, size: int) -> Dim:
    """A whole spatial axis at another resolution; anything else loses its places."""
    axis = dim.whole
    return plain(size) if axis is None or axis.shift else whole_dim(axis.resample(size))


def extend(dim: Dim, before: int, after: int) -> Dim:
    """Add entries at the ends of a whole spatial axis or of tokens, or remove them; any other dimension loses its places."""
    axis, size = dim.whole, dim.size + before + after
    if axis is not None and not axis.shift:
        return whole_dim(replace(axis, length=size, lead=axis.lead + before, tail=axis.tail + after))
    return surround(before, dim, after) or plain(size)


def surround(before: int, dim: Dim, after: int) -> Dim | None:
    """Tokens: places with entries added before and behind them, or removed; None if that would remove places."""
    lead, places, tail = before, dim.factors, after
    if len(dim.factors) == 1 and isinstance(tokens := dim.factors[0].axis, Tokens):
        lead, places, tail = before + tokens.lead, tokens.places, after + tokens.tail
    if lead < 0 or tail < 0 or not dim.places:
        return None
    size = lead + math.prod(f.size for f in places) + tail
    return Dim((Factor(Tokens(lead, places, tail), size),)) if lead or tail else Dim(places)


def with_item(items: tuple[T, ...], i: int, item: T) -> tuple[T, ...]:
    return (*items[:i], item, *items[i + 1 :])


def infer_layout(op: Operation, layout_of: LayoutOf, output: Tensor, n: int) -> Layout | None:
    """The layout of an output from a few backward passes of its operation; None if they do not show that samples keep apart.

    An operation whose Jacobian is diagonal leaves everything where it is. Any other may have the samples where they were.
    """
    if op.in_place:
        return None
    try:
        if _is_elementwise(op, output):
            return align([layout_of(t) for t in op.dependent], output.shape)
        return _sample_by_sample(op, layout_of, output, n) if n > 1 else None
    except Exception:  # an error in a backward pass of the user
        return None


def _is_elementwise(op: Operation, output: Tensor) -> bool:
    """Whether J^T v = (J^T 1) v for every operand, which only a diagonal Jacobian does."""
    if any(t.shape != output.shape or t.is_complex() for t in op.dependent) or output.is_complex():
        return False
    probe = _rough_like(output)
    slopes, products = _pull_back(op, output, torch.ones_like(output)), _pull_back(op, output, probe)
    precision = math.sqrt(torch.finfo(output.dtype).eps)
    return all(
        bool(slope.isfinite().all()) and bool((product - slope * probe).abs().max() <= precision * slope.abs().max())
        for slope, product in zip(slopes, products, strict=True)
    )


def _sample_by_sample(op: Operation, layout_of: LayoutOf, output: Tensor, n: int) -> Layout | None:
    """Samples in the dimension where the first operand has them, if none has a gradient from another's output.

    Any two samples differ in a bit of their numbers: the outputs of those with the bit go together, then those of the others.
    """
    layouts = [layout_of(t) for t in op.dependent]
    samples = Dim((Factor(SAMPLE, n),))
    place = next((i for i, dim in enumerate(layouts[0].dims) if dim == samples), None) if layouts[0] else None
    if place is None or place >= output.ndim or output.shape[place] != n:
        return None
    numbers, probe = torch.arange(n, device=output.device), _rough_like(output)
    for bit in range((n - 1).bit_length()):
        for value in (0, 1):
            chosen = (numbers >> bit) % 2 == value
            mask = chosen.reshape(-1, *(1,) * (output.ndim - 1 - place))
            for layout, reaching in zip(layouts, _pull_back(op, output, probe * mask), strict=True):
                assert layout is not None  # checked by `output_layout`
                reached = layout.per_sample(reaching.abs(), n)
                if not bool(reached.isfinite().all()) or bool(reached[~chosen].any()):
                    return None
    return Layout(tuple(samples if i == place else plain(size) for i, size in enumerate(output.shape)))


def _pull_back(op: Operation, output: Tensor, gradient: Tensor) -> list[Tensor]:
    reaching = torch.autograd.grad(output, op.dependent, gradient, retain_graph=True, materialize_grads=True)
    return [t.detach() for t in reaching]


def _rough_like(tensor: Tensor) -> Tensor:
    """Numbers around 1, each unlike its neighbors, without random numbers."""
    golden = (math.sqrt(5) - 1) / 2
    return ((torch.arange(tensor.numel(), dtype=torch.float64) * golden).frac() + 0.5).reshape(tensor.shape).to(tensor)
