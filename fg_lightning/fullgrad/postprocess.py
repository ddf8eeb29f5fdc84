"""psi: from a term's tensor to a map.

    psi(t) = sum over channels of upsample(rescale(|t|))          (Srinivas & Fleuret 2019, section 4)

All channels of a sample are rescaled together, as in the authors' code; the paper's equation is said to rescale each
channel. Here the sum over channels comes before upsampling. Since upsampling is linear, it comes last, once for all terms of one
size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Union

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fg_lightning.fullgrad.torch_internals import unrecorded

EPSILON = 1e-6
"""Added to the range of a term before the division, as in the authors' code. Terms with a range near it count less."""

Psi = Callable[[Float[Tensor, "n c *s"]], Float[Tensor, "n *s"]]
"""Reduces a term to one plane per sample, before upsampling."""

INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}

Scale = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function from (minimum, maximum) of each sample to (offset, span), [N] each. The offset becomes 0, offset + span becomes 1."""


@dataclass(frozen=True)
class Rescaling:
    """A psi that rescales each sample's magnitudes, (m - offset) / (span + epsilon), and sums them over channels.

    It consists of sums, minima and maxima, so term_map.py can compute it from blocks of a term.

    Attributes:
        magnitude: function (entries of a term, out=None) -> their magnitudes, in `out` if it is given, else in a new tensor or the
            same one.
        scale: function from each sample's minimum and maximum to (offset, span).
        has_floor: whether magnitudes are at least 0, so that a magnitude of 0 is the minimum.
    """

    magnitude: Callable[..., Tensor]
    scale: Scale
    has_floor: bool = True

    def __call__(self, term: Float[Tensor, "n c *s"]) -> Float[Tensor, "n *s"]:
        magnitude = self.magnitude(term)
        offset, span = self.scale(*extremes(magnitude))
        # The offset is subtracted before the sum: otherwise rounding would hide a nearly constant term.
        sums = (magnitude - expand_like(offset, magnitude)).sum(1)
        return sums / expand_like(span + EPSILON, sums)


Factors = tuple[Float[Tensor, "n _ ..."], Union[Float[Tensor, " _"], None]]
"""A term as a tensor and a factor for each of its channels. None: the factors are 1."""


def rescale_together(psi: Rescaling, groups: Sequence[Sequence[Factors]]) -> list[Float[Tensor, "n ..."]]:
    """The sum of psi of the terms of each group, in about as many calls as for one term.

    The terms of a group have planes of one size. The extremes of all groups are compared together.
    """
    magnitudes = [_magnitudes(psi, terms) for terms in groups]
    lows, highs = ([extreme(magnitude, 2) for magnitude in magnitudes] for extreme in (torch.amin, torch.amax))  # of each channel
    low, high = (extremes[0] if len(extremes) == 1 else torch.cat(extremes, 1) for extremes in (lows, highs))
    counts = tuple(values.shape[1] for terms in groups for values, _ in _scaled_first(terms))
    if len(counts) > 1:
        of_term, channels = _number_channels(counts, low.device)
        low, high = low[:, channels], high[:, channels]  # [N, terms, channels]
        offset, span = (of_each[:, of_term] for of_each in psi.scale(low.amin(2), high.amax(2)))
    else:
        offset, span = psi.scale(low.amin(1, keepdim=True), high.amax(1, keepdim=True))
    span = span + EPSILON
    start, planes = 0, []
    for terms, magnitude in zip(groups, magnitudes, strict=True):
        of_group = slice(start, start := start + magnitude.shape[1])
        # The offset is subtracted before the sum: otherwise rounding would hide a nearly constant term.
        rescaled = magnitude.sub_(offset[:, of_group, None]).div_(span[:, of_group, None])
        planes.append(rescaled.sum(1).unflatten(1, terms[0][0].shape[2:]))
    return planes


def _scaled_first(terms: Sequence[Factors]) -> list[Factors]:
    return sorted(terms, key=lambda term: term[1] is None)


def _magnitudes(psi: Rescaling, terms: Sequence[Factors]) -> Float[Tensor, "n c p"]:
    """The magnitudes of several terms side by side, those with factors first."""
    ordered = _scaled_first(terms)
    values = torch.cat([values for values, _ in ordered], 1).flatten(2)
    if factors := [factors for _, factors in ordered if factors is not None]:
        together = torch.cat(factors)
        values[:, : len(together)].mul_(together[:, None])
    return psi.magnitude(values, out=values)


@lru_cache(maxsize=1024)
def _number_channels(counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The term of each channel, and the channels of each term, for terms side by side with `counts` channels.

    The rows of the second have equal lengths: the last channel of a term is repeated.
    """
    with unrecorded():
        numbers = torch.arange(sum(counts)).split(counts)
        longest = max(counts)
        rows = torch.stack([torch.cat([row, row[-1:].expand(longest - len(row))]) for row in numbers])
        return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device), rows.to(device)


def _from_minimum(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low, high - low


def _around_zero(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(low), torch.maximum(high, -low)


def _positive_part(term: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.clamp(term, min=0, out=out)


def _identity(term: Tensor, out: Tensor | None = None) -> Tensor:
    return term


absolute = Rescaling(torch.abs, _from_minimum)
"""|t|, rescaled to [0, 1] by each sample's minimum and maximum over all channels, then summed over channels (the authors' code)."""

positive = Rescaling(_positive_part, _from_minimum)
"""Like `absolute`, but only for positive contributions: max(t, 0)."""

signed = Rescaling(_identity, _around_zero, has_floor=False)
"""t divided by its largest magnitude in each sample and summed over channels. Signs and zeros stay; maps may be negative."""

PSI: dict[str, Psi] = {"absolute": absolute, "positive": positive, "signed": signed}


def find_psi(psi: Union[str, Psi]) -> Psi:
    """The psi of a name, or the given function.

    Raises:
        ValueError: if there is no psi of that name.
    """
    if callable(psi):
        return psi
    if not isinstance(psi, str) or psi not in PSI:
        raise ValueError(f"psi must be one of {', '.join(PSI)}, or a function [N, C, *S] -> [N, *S], not {psi!r}")
    return PSI[psi]


def apply_psi(psi: Psi, term: Float[Tensor, "n c *s"]) -> Tensor:
    """psi of a term, [N, *S].

    Raises:
        ValueError: if psi returns anything else.
    """
    planes = psi(term)
    if isinstance(planes, Tensor) and planes.ndim == term.ndim - 1 and len(planes) == len(term):
        return planes
    raise ValueError(
        f"psi must return [N, *S] for a term [N, C, *S], here of shape {tuple(term.shape)}, but it returned "
        f"{describe_value(planes)}"
    )


def describe_value(value: Any) -> str:
    """The shape or the type of an unexpected value, for messages."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def upsample(planes: Float[Tensor, "n *s"], size: tuple[int, ...]) -> Float[Tensor, "n 1 *t"]:
    """Linear interpolation to the input's size, with aligned corners."""
    planes = planes.unsqueeze(1)
    if planes.shape[2:] == size:
        return planes
    return F.interpolate(planes, size, mode=INTERPOLATION[len(size)], align_corners=True)


def extremes(magnitude: Tensor, has_floor: bool = False) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each sample, [N] each. If the floor is 0 and every first channel has a 0, that is the minimum."""
    axes = tuple(range(1, magnitude.ndim))
    if has_floor and not (low := magnitude[:, :1].amin(axes)).any():
        return low, magnitude.amax(axes)
    return magnitude.amin(axes), magnitude.amax(axes)


def expand_like(numbers: Float[Tensor, " n"], other: Tensor) -> Tensor:
    """[N] as [N, 1, ...] with as many dimensions as another tensor."""
    return numbers.reshape(-1, *(1,) * (other.ndim - 1))
