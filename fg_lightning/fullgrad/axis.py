"""A spatial axis of the input as a tensor inside the network has it: at some resolution, rolled, padded or cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Axis:
    """`length` positions along the spatial axis `number` (1, 2 or 3) of the input.

    Attributes:
        shift: how far they were rolled, as shifted windows are.
        lead: how many of them a pad put before the first; negative where a slice took some of the image's away.
        tail: likewise behind the last.
        flipped: whether the image's run backwards here, under all that.
    """

    number: int
    length: int
    shift: int = 0
    lead: int = 0
    tail: int = 0
    flipped: bool = False

    @property
    def is_the_images(self) -> bool:
        """Whether the positions are the image's own, in their order."""
        return not (self.shift or self.lead or self.tail or self.flipped)

    @property
    def is_cut(self) -> bool:
        return self.lead < 0 or self.tail < 0

    def resampled(self, length: int) -> Axis:
        """The axis at another resolution, margins and shift to whole positions of it.

        What windows without padding leave over at the borders they take off a pad first, as if they had padded themselves.
        """
        if length == self.length:
            return self
        if self.is_the_images:
            return Axis(self.number, length)
        left_over = max(0, self.length - length * max(1, round(self.length / length)))
        before, after = (min(max(0, margin), left_over / 2) for margin in (self.lead, self.tail))
        scale = length / (self.length - before - after)
        lead = round((self.lead - before) * scale)
        of_the_image = max(1, round((self.length - self.lead - self.tail) * scale))
        return Axis(self.number, length, round(self.shift * scale), lead, length - lead - of_the_image, self.flipped)

    def turned(self) -> Axis:
        """The axis the other way round."""
        return replace(self, shift=-self.shift % self.length, lead=self.tail, tail=self.lead, flipped=not self.flipped)

    def on_the_image(self, tensor: Tensor, dim: int) -> Tensor:
        """A tensor with this axis at `dim` as the image has it: without what was padded, and zero where something was cut off."""
        if self.shift:
            tensor = tensor.roll(-self.shift, dim)
        if self.is_cut:
            missing = (max(0, -self.lead), max(0, -self.tail))
            tensor = F.pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + missing)
        if self.lead > 0 or self.tail > 0:
            tensor = tensor.narrow(dim, max(0, self.lead), self.length - self.lead - self.tail)
        return tensor.flip(dim) if self.flipped else tensor
