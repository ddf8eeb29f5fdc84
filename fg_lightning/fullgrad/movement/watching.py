"""Operations without a rule, such as functions that somebody wrote: how samples and places move is seen from their gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.layout import SAMPLE, Dim, Factor, Layout, plain
from fg_lightning.fullgrad.movement.mover import LayoutOf, align


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
