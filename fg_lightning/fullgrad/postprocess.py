"""psi: from a term's tensor to a map.

    psi(t) = sum over channels of upsample(rescale(|t|))          (Srinivas & Fleuret 2019, section 4 and their code)

Rescaling and the sum over channels come first here and upsampling last, once for all terms of one size: it is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-6
"""What the authors add to the range of a term before they divide by it."""

Psi = Callable[[Float[Tensor, "n c *s"]], Float[Tensor, "n *s"]]
"""Reduces a term to one plane per sample, before upsampling."""

INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}

Scale = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(minimum, maximum) of each sample -> what goes to 0, and how far from it what goes to 1 is; [N] each."""


@dataclass(frozen=True)
class Rescaling:
    """The psi that brings each sample's magnitudes to scale, (m - offset) / (span + epsilon), and sums them over channels.

    Made of sums, minima and maxima alone, so that blocks.py may gather it from blocks of a term.

    Attributes:
        magnitude: (a term's entries, out=None) -> their magnitudes, in `out` where it is given, else in a new tensor or the same.
        scale: from each sample's minimum and maximum to (offset, span).
        has_floor: whether no magnitude is below 0, so that one that is 0 is the minimum.
    """

    magnitude: Callable[..., Tensor]
    scale: Scale
    has_floor: bool = True

    def __call__(self, term: Float[Tensor, "n c *s"]) -> Float[Tensor, "n *s"]:
        magnitude = self.magnitude(term)
        offset, span = self.scale(*extremes(magnitude))
        # The offset goes before the sum: a nearly constant term would drown in the rounding of its sum.
        sums = (magnitude - like(offset, magnitude)).sum(1)
        return sums / like(span + EPSILON, sums)


def _from_minimum(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low, high - low


def _around_zero(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(low), torch.maximum(high, -low)


def _positive_part(term: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.clamp(term, min=0, out=out)


def _as_it_is(term: Tensor, out: Tensor | None = None) -> Tensor:
    return term


absolute = Rescaling(torch.abs, _from_minimum)
"""|t| brought to [0, 1] by each sample's minimum and maximum over all channels, summed over channels: the paper's choice."""

positive = Rescaling(_positive_part, _from_minimum)
"""As `absolute`, of what speaks for the output alone: max(t, 0)."""

signed = Rescaling(_as_it_is, _around_zero, has_floor=False)
"""t over its largest magnitude in each sample, so that signs and zero stay, summed over channels; maps may be negative."""

PSI: dict[str, Psi] = {"absolute": absolute, "positive": positive, "signed": signed}


def find_psi(psi: Union[str, Psi]) -> Psi:
    """
    Raises:
        ValueError: if there is no psi of that name.
    """
    if callable(psi):
        return psi
    if not isinstance(psi, str) or psi not in PSI:
        raise ValueError(f"psi must be one of {', '.join(PSI)}, or a function [N, C, *S] -> [N, *S], not {psi!r}")
    return PSI[psi]


def planes_of(psi: Psi, term: Float[Tensor, "n c *s"]) -> Tensor:
    """psi of a term, [N, *S].

    Raises:
        ValueError: if psi returns anything else.
    """
    planes = psi(term)
    if isinstance(planes, Tensor) and planes.ndim == term.ndim - 1 and len(planes) == len(term):
        return planes
    raise ValueError(
        f"psi must return [N, *S] of a term [N, C, *S], here of shape {tuple(term.shape)}, but returned {kind_of(planes)}"
    )


def kind_of(value: Any) -> str:
    """What was got in place of a tensor of some shape, for messages."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def upsample(planes: Float[Tensor, "n *s"], size: tuple[int, ...]) -> Float[Tensor, "n 1 *t"]:
    """Linear interpolation to the input's size, corners on corners."""
    planes = planes.unsqueeze(1)
    if planes.shape[2:] == size:
        return planes
    return F.interpolate(planes, size, mode=INTERPOLATION[len(size)], align_corners=True)


def extremes(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each sample, [N] each."""
    return least(magnitude), greatest(magnitude)


def least(magnitude: Tensor) -> Tensor:
    """The minimum of each sample, [N]."""
    return magnitude.amin(tuple(range(1, magnitude.ndim)))


def greatest(magnitude: Tensor) -> Tensor:
    """The maximum of each sample, [N]."""
    return magnitude.amax(tuple(range(1, magnitude.ndim)))


def like(numbers: Float[Tensor, " n"], other: Tensor) -> Tensor:
    """[N] as [N, 1, ...] with as many dimensions as another tensor."""
    return numbers.reshape(-1, *(1,) * (other.ndim - 1))
