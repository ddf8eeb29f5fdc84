"""What a mover is, and what most of them do: take the first operand's layout, align several, resize one.

Operations without a rule, such as functions that somebody wrote: how samples and places move is seen from their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, Tokens, plain, spanning
from fg_lightning.fullgrad.operation import Call

T = TypeVar("T")
LayoutOf = Callable[[Any], "Layout | None"]
Mover = Callable[[Call, LayoutOf, Tensor], "Layout | None"]
"""(call, the layout of an operand, one output) -> the output's layout, or None where it cannot be known or samples mix."""


def first_layout(call: Call, layout_of: LayoutOf) -> Layout:
    """The layout of the first operand that depends on the input."""
    layout = layout_of(call.dependent[0])
    assert layout is not None  # `follow` has seen to it
    return layout


def align(layouts: Sequence[Layout | None], shape: Sequence[int]) -> Layout | None:
    """Layouts broadcast to a shape: each dimension from the first that knows about it; None where samples disagree."""
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


def resize(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout with dimensions of other sizes, each resampled."""
    if len(shape) != len(layout.dims):
        return None
    if layout.shape == tuple(shape):
        return layout
    dims = zip(layout.dims, shape, strict=True)
    return Layout(tuple(dim if dim.size == size else resample(layout.coarsened(i), size) for i, (dim, size) in enumerate(dims)))


def resample(dim: Dim, size: int) -> Dim:
    """A whole spatial axis at another resolution; anything else loses its places."""
    axis = dim.whole
    return plain(size) if axis is None or axis.shift else spanning(axis.resampled(size))


def extend(dim: Dim, before: int, after: int) -> Dim:
    """A whole spatial axis or tokens with entries more at the ends, or fewer if they are negative; else it loses its places."""
    axis, size = dim.whole, dim.size + before + after
    if axis is not None and not axis.shift:
        return spanning(replace(axis, length=size, lead=axis.lead + before, tail=axis.tail + after))
    return surrounded(before, dim, after) or plain(size)


def surrounded(before: int, dim: Dim, after: int) -> Dim | None:
    """Tokens: places with some more entries before and behind them, or fewer; None where that would take places away."""
    lead, places, tail = before, dim.factors, after
    if len(dim.factors) == 1 and isinstance(tokens := dim.factors[0].axis, Tokens):
        lead, places, tail = before + tokens.lead, tokens.places, after + tokens.tail
    if lead < 0 or tail < 0 or not dim.places:
        return None
    size = lead + math.prod(f.size for f in places) + tail
    return Dim((Factor(Tokens(lead, places, tail), size),)) if lead or tail else Dim(places)


def with_item(items: tuple[T, ...], i: int, item: T) -> tuple[T, ...]:
    return (*items[:i], item, *items[i + 1 :])


def watched(call: Call, layout_of: LayoutOf, output: Tensor, n: int) -> Layout | None:
    """The layout of an output from a few backward passes of its operation; None where these say that samples mix, or nothing.

    An operation whose Jacobian is diagonal leaves everything where it is. Of any other the samples are looked for where they were.
    """
    if call.in_place:
        return None
    try:
        if _is_elementwise(call, output):
            return align([layout_of(t) for t in call.dependent], output.shape)
        return _sample_by_sample(call, layout_of, output, n) if n > 1 else None
    except Exception:  # whatever a backward pass stumbles over that somebody wrote
        return None


def _is_elementwise(call: Call, output: Tensor) -> bool:
    """Whether J^T v = (J^T 1) v for every operand, which only a diagonal Jacobian does."""
    if any(t.shape != output.shape or t.is_complex() for t in call.dependent) or output.is_complex():
        return False
    probe = _rough_like(output)
    slopes, products = _pulled(call, output, torch.ones_like(output)), _pulled(call, output, probe)
    precision = math.sqrt(torch.finfo(output.dtype).eps)
    return all(
        bool(slope.isfinite().all()) and bool((product - slope * probe).abs().max() <= precision * slope.abs().max())
        for slope, product in zip(slopes, products, strict=True)
    )


def _sample_by_sample(call: Call, layout_of: LayoutOf, output: Tensor, n: int) -> Layout | None:
    """Samples in the dimension where the first operand has them, if none has a gradient from another's output.

    Any two samples differ in a bit of their numbers: the outputs of those with the bit go together, then those of the others.
    """
    layouts = [layout_of(t) for t in call.dependent]
    samples = Dim((Factor(SAMPLE, n),))
    place = next((i for i, dim in enumerate(layouts[0].dims) if dim == samples), None) if layouts[0] else None
    if place is None or place >= output.ndim or output.shape[place] != n:
        return None
    numbers, probe = torch.arange(n, device=output.device), _rough_like(output)
    for bit in range((n - 1).bit_length()):
        for value in (0, 1):
            chosen = (numbers >> bit) % 2 == value
            mask = chosen.reshape(-1, *(1,) * (output.ndim - 1 - place))
            for layout, pulled in zip(layouts, _pulled(call, output, probe * mask), strict=True):
                assert layout is not None  # `follow` has seen to it
                reached = layout.per_sample(pulled.abs(), n)
                if not bool(reached.isfinite().all()) or bool(reached[~chosen].any()):
                    return None
    return Layout(tuple(samples if i == place else plain(size) for i, size in enumerate(output.shape)))


def _pulled(call: Call, output: Tensor, gradient: Tensor) -> list[Tensor]:
    pulled = torch.autograd.grad(output, call.dependent, gradient, retain_graph=True, materialize_grads=True)
    return [t.detach() for t in pulled]


def _rough_like(tensor: Tensor) -> Tensor:
    """Numbers around 1 of which neighbours differ, without drawing random ones."""
    golden = (math.sqrt(5) - 1) / 2
    return ((torch.arange(tensor.numel(), dtype=torch.float64) * golden).frac() + 0.5).reshape(tensor.shape).to(tensor)
