"""The type of layout rules, their building blocks, and the inference of a layout without a rule.

Most rules use the layout of the first operand, align those of several, or resize one. For an operation without a rule, such as a
function of the user, the layout is inferred from its gradients.
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
"""A function (operation, function from an operand to its layout, one output) -> the output's layout. None if samples mix."""


def output_layout(op: Operation, rule: LayoutRule | None, layout_of: LayoutOf, index: int, n: int) -> Layout | None:
    """The layout of an operation's output number `index`, by its rule. None if its `n` samples cannot be told apart."""
    if not op.dependent:
        return None
    output, layouts = op.outputs[index], [layout_of(t) for t in op.dependent]
    first = layouts[0]
    if first is None or None in layouts:
        return None
    if rule is broadcast_layout and first.shape == output.shape and all(layout is first for layout in layouts):
        return first  # the most common case
    key = _key(op, rule, index, output) if len(layouts) == 1 else None
    if key is not None and key in first.derived:
        return first.derived[key]
    try:
        layout = rule(op, layout_of, output) if rule else infer_layout(op, layout_of, output, n)
    except Exception:  # the rule does not know this kind of arguments
        layout = infer_layout(op, layout_of, output, n)
    if not (layout is first and op.dependent[0].shape == output.shape):
        is_sound = layout is not None and layout.shape == tuple(output.shape) and layout.samples == n
        layout = intern_layout(layout) if layout is not None and is_sound else None
    if key is not None:
        first.derived[key] = layout
    return layout


def ignores_constants(rule: LayoutRule) -> LayoutRule:
    """Mark a rule whose layout depends neither on the values nor on the shapes of weights and other constants."""
    rule.ignores_constants = True  # type: ignore[attr-defined]
    return rule


def _key(op: Operation, rule: LayoutRule | None, index: int, output: Tensor) -> Hashable | None:
    """A key of all that the layout of an output depends on, except the operand's layout. None if it also depends on values."""
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
    """Broadcast layouts to a shape. Each dimension comes from the first layout that knows it. None if their samples differ."""
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
    """A layout with its dimensions resampled to other sizes. None if their number differs."""
    if len(shape) != len(layout.dims):
        return None
    if layout.shape == tuple(shape):
        return layout
    dims = zip(layout.dims, shape, strict=True)
    return Layout(tuple(dim if dim.size == size else resample(layout.coarsen(i), size) for i, (dim, size) in enumerate(dims)))


def resample(dim: Dim, size: int) -> Dim:
    """A whole spatial axis at another resolution. Any other dimension loses its places."""
    axis = dim.whole
    return plain(size) if axis is None or axis.shift else whole_dim(axis.resample(size))


def extend(dim: Dim, before: int, after: int) -> Dim:
    """Add or remove entries at the ends of a whole spatial axis or of tokens. Any other dimension loses its places."""
    axis, size = dim.whole, dim.size + before + after
    if axis is not None and not axis.shift:
        return whole_dim(replace(axis, length=size, lead=axis.lead + before, tail=axis.tail + after))
    return surround(before, dim, after) or plain(size)


def surround(before: int, dim: Dim, after: int) -> Dim | None:
    """Tokens: places with entries added or removed before and after them. None if that would remove places."""
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
    """The layout of an output from a few backward passes of its operation. None if they do not show that samples stay separate.

    If the Jacobian is diagonal, all places stay. Otherwise the samples may stay in their dimension.
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
    """Whether J^T v = (J^T 1) v for every operand, which holds only for a diagonal Jacobian."""
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
    """The samples stay in the first operand's dimension if no sample's gradient depends on another sample's output.

    Any two samples differ in a bit of their numbers. For each bit, one pass uses the outputs of the samples with this bit, and one
    those of the others.
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
    """Numbers around 1 that differ from their neighbours, without random numbers."""
    golden = (math.sqrt(5) - 1) / 2
    return ((torch.arange(tensor.numel(), dtype=torch.float64) * golden).frac() + 0.5).reshape(tensor.shape).to(tensor)
