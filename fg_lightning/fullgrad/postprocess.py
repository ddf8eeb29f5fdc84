"""psi: from a term's tensor to a map.

    psi(t) = sum over channels of upsample(rescale(|t|))          (Srinivas & Fleuret 2019, section 4 and their code)

Rescaling and the sum over channels come first here and upsampling last, once for all terms of one size: it is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-6
"""What the authors add to the range of a term before they divide by it."""

Psi = Callable[[Float[Tensor, "n c *s"]], Float[Tensor, "n *s"]]
"""Reduces a term to one plane per sample, before upsampling."""

INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def absolute(term: Float[Tensor, "n c *s"]) -> Float[Tensor, "n *s"]:
    """|t| brought to [0, 1] by each sample's minimum and maximum over all channels, summed over channels: the paper's choice."""
    return _rescaled_sum(term.abs())


def positive(term: Float[Tensor, "n c *s"]) -> Float[Tensor, "n *s"]:
    """As `absolute`, of what speaks for the output alone: max(t, 0)."""
    return _rescaled_sum(term.clamp_min(0))


def signed(term: Float[Tensor, "n c *s"]) -> Float[Tensor, "n *s"]:
    """t over its largest magnitude in each sample, so that signs and zero stay, summed over channels; maps may be negative."""
    everywhere = tuple(range(1, term.ndim))
    largest = term.abs().amax(everywhere)
    return term.sum(1) / _as_plane(largest + EPSILON, term)


PSI: dict[str, Psi] = {"absolute": absolute, "positive": positive, "signed": signed}


def find_psi(psi: Union[str, Psi]) -> Psi:
    """
    Raises:
        ValueError: if there is no psi of that name.
    """
    if callable(psi):
        return psi
    if psi not in PSI:
        raise ValueError(f"psi must be one of {', '.join(PSI)}, or a function [N, C, *S] -> [N, *S], not {psi!r}")
    return PSI[psi]


def upsample(planes: Float[Tensor, "n *s"], size: tuple[int, ...]) -> Float[Tensor, "n 1 *t"]:
    """Linear interpolation to the input's size, corners on corners."""
    planes = planes.unsqueeze(1)
    if planes.shape[2:] == size:
        return planes
    return F.interpolate(planes, size, mode=INTERPOLATION[len(size)], align_corners=True)


def _rescaled_sum(magnitude: Float[Tensor, "n c *s"]) -> Float[Tensor, "n *s"]:
    """The channel sum of (m - min) / (max - min + epsilon), divided after the sum; overwrites m."""
    everywhere = tuple(range(1, magnitude.ndim))
    low, high = magnitude.amin(everywhere), magnitude.amax(everywhere)
    # The minimum goes before the sum: a nearly constant term would drown in the rounding of its sum.
    above = magnitude.sub_(_as_plane(low, magnitude).unsqueeze(1)).sum(1)
    return above / _as_plane(high - low + EPSILON, magnitude)


def _as_plane(numbers: Float[Tensor, " n"], like: Tensor) -> Tensor:
    """[N] as [N, 1, ...], to go with planes of a [N, C, *S] tensor."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 2))
