"""psi: from a term's tensor to a map.

    psi(t) = sum over channels of upsample(rescale(|t|))          (Srinivas & Fleuret 2019, section 4 and their code)

Rescaling and the sum over channels come first here and upsampling last, once for all terms of one size: it is linear.

A term's tensor, made and reduced in blocks that stay in a core's cache.

psi passes over a term several times: product, magnitude, minimum, maximum, sum. Over a whole batch each pass of a CPU goes out to
memory, and each of its temporary tensors is fresh pages. On other devices a term is one block: few large kernels serve them best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Union

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.linearization import Pointwise, computed

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


BLOCK = 1 << 19
"""Numbers in a block for each thread, 2 MiB in float32: smaller ones cost calls, larger ones leave the caches."""

_DROWNING = 4.0
"""A magnitude whose minimum is so many times its span would drown in the rounding of a sum: the minimum is taken away first."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(bias, gradient), broadcastable to one another -> the term's values, in a new tensor."""


@dataclass(frozen=True, slots=True)
class TermValues:
    """What of a term is drawn, not yet computed.

    Attributes:
        product: of bias and gradient.
        bias: broadcastable to the gradient, or how to compute it.
        gradient: in the shape of the operation's output or, on the plane, [N, C, *S].
    """

    product: Product
    bias: Tensor | Pointwise
    gradient: Tensor

    def all(self) -> Tensor:
        """In the gradient's shape."""
        return self.product(computed(self.bias), self.gradient)

    def seen(self, view: Callable[[Tensor], Tensor]) -> TermValues:
        """Those that are left where a view is taken of every tensor they come from, all of them of the gradient's shape."""
        if isinstance(self.bias, Tensor):
            return TermValues(self.product, view(self.bias), view(self.gradient))
        return TermValues(self.product, Pointwise(self.bias.function, tuple(map(view, self.bias.operands))), view(self.gradient))

    def on_plane(self, layout: Layout, n: int, axes: int) -> Tensor | TermValues:
        """[N, C, *S], C whatever is neither sample nor place."""
        if layout.is_cut:  # what was taken away contributes nothing, whatever a bias would compute from nothing
            return layout.to_plane(self.all(), n, axes)
        shape = self.gradient.shape
        return self.seen(lambda operand: layout.to_plane(operand.expand(shape), n, axes))

    def reduced(self, psi: Psi) -> Tensor:
        """psi of a term that is on the plane, [N, *S]."""
        if self.gradient.device.type != "cpu" or self.gradient.numel() <= _block():
            return planes_of(psi, self.all())
        groups = list(self._groups())
        if not isinstance(psi, Rescaling):
            return torch.cat([planes_of(psi, group.all()) for group in groups])
        sums, lows, highs = (torch.cat(parts) for parts in zip(*[group._summed(psi) for group in groups], strict=True))
        offset, span = psi.scale(lows, highs)
        if (offset > _DROWNING * span).any():
            offsets = offset.split([len(group.gradient) for group in groups])
            sums = torch.cat([group._summed(psi, less)[0] for group, less in zip(groups, offsets, strict=True)])
        else:
            sums = sums.sub_(like(offset * self.gradient.shape[1], sums))
        return sums.div_(like(span + EPSILON, sums))

    def add_to(self, total: Tensor) -> None:
        """Add the values to a tensor of the gradient's shape."""
        if self.gradient.device.type != "cpu":
            total += self.all()
            return
        start = 0
        for group in self._groups():
            stop = start + len(group.gradient)
            total[start:stop] += group.all()
            start = stop

    def _groups(self) -> Iterator[TermValues]:
        """Runs of samples, as many as fill a block, or else one."""
        n = len(self.gradient)
        together = max(1, _block() * n // max(1, self.gradient.numel()))
        for start in range(0, n, together):
            yield self.seen(partial(torch.narrow, dim=0, start=start, length=min(together, n - start)))

    def _blocks(self, axis: int) -> Iterator[TermValues]:
        """Of a single sample, cut along an axis."""
        length = self.gradient.size(axis)
        step = max(1, _block() * length // max(1, self.gradient.numel()))
        for start in range(0, length, step):
            yield self.seen(partial(torch.narrow, dim=axis, start=start, length=min(step, length - start)))

    def _summed(self, psi: Rescaling, offset: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of some samples the channel sum of the magnitudes, less an offset, [N, *S], and the magnitudes' extremes, [N] each."""
        fits = self.gradient.numel() <= _block()
        axis = 1 if fits else max(range(1, self.gradient.ndim), key=self._reach)
        sums, extreme = [], []
        for block in [self] if fits else self._blocks(axis):
            values = block.all()
            magnitude = psi.magnitude(values, out=values)
            extreme.append(_extremes(magnitude, psi.has_floor))
            sums.append((magnitude if offset is None else magnitude - like(offset, magnitude)).sum(1))
        if len(sums) == 1:
            return sums[0], *extreme[0]
        low, high = (torch.stack(values) for values in zip(*extreme, strict=True))
        return torch.stack(sums).sum(0) if axis == 1 else torch.cat(sums, axis - 1), low.amin(0), high.amax(0)

    def _reach(self, axis: int) -> int:
        """How far apart in memory an axis lies, so that a cut along the widest leaves whole stretches of it."""
        return self.gradient.stride(axis) if self.gradient.size(axis) > 1 else 0


def _extremes(magnitude: Tensor, has_floor: bool) -> tuple[Tensor, Tensor]:
    """As `extremes`; where the first channel of every sample reaches the floor, the others are not searched for the minimum."""
    if not has_floor or (low := least(magnitude[:, :1])).any():
        return extremes(magnitude)
    return low, greatest(magnitude)


def _block() -> int:
    return BLOCK * torch.get_num_threads()


def reduced(values: Tensor | TermValues, psi: Psi) -> Tensor:
    """psi of what lies on the plane, [N, *S]."""
    return planes_of(psi, values) if isinstance(values, Tensor) else values.reduced(psi)
