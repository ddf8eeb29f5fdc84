"""Values on grids in buffers that are made once: sums over neighbours, and interpolation between a grid and the next coarser.

Memory that is fresh to the process costs more than the arithmetic on it, so whatever happens often happens in place, on views that
are made beforehand.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, add


class Scratch:
    """Two buffers for intermediate results, each as large as a grid with its border."""

    def __init__(self, like: Tensor, shape: tuple[int, ...]) -> None:
        self._buffers = like.new_empty(2, math.prod(shape))

    def view(self, which: int, shape: tuple[int, ...]) -> Tensor:
        return self._buffers[which, : math.prod(shape)].view(shape)


class Field:
    """Values on a grid with a border of zeros around them.

    Args:
        like: a tensor of the precision and on the device to work in.
        shape: (N, C, *S).
        scratch: what `binomial` overwrites; shared between fields that do not need it at once.

    Attributes:
        framed: [N, C, *S + 2].
        values: [N, C, *S], without the border; what is written here is what the field holds.
    """

    def __init__(self, like: Tensor, shape: tuple[int, ...], scratch: Scratch) -> None:
        self.framed = source = like.new_zeros(framed_shape(shape))
        dims = range(2, len(shape))
        self.values = _without_border(self.framed, dims)
        self._steps = []
        for dim in dims:
            for which in (0, 1):
                length = source.shape[dim] - 1
                target = scratch.view(which, (*source.shape[:dim], length, *source.shape[dim + 1 :]))
                self._steps.append((source.narrow(dim, 0, length), source.narrow(dim, 1, length), target))
                source = target
        self._sum = source

    def binomial(self) -> Float[Tensor, "n c *s"]:
        """Sums with weights [1, 2, 1] in every dimension, which is [1, 1] twice over; in scratch memory."""
        for left, right, target in self._steps:
            add(left, right, out=target)
        return self._sum


def framed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], *(side + 2 for side in shape[2:]))


class Interpolation:
    """Linear interpolation from a coarse grid, whose pixels are two wide in every dimension, to a fine one; and its transpose.

    In every dimension a fine pixel takes the coarse one that it lies in and 1/3 of the nearer beside it: 3/4 and 1/4 of them, but
    for a factor.

    Args:
        coarse: where `to_fine` reads, [N, C, *S + 2]: values with a border of zeros.
        sums: where `to_coarse` writes, [N, C, *S].

    Attributes:
        fine: where `to_fine` writes and `to_coarse` reads, [N, C, *2S].
    """

    def __init__(self, coarse: Tensor, sums: Tensor) -> None:
        self._up: list[tuple[Tensor, ...]] = []
        self._down: list[tuple[Tensor, ...]] = []
        self.fine, target = coarse, sums
        for dim in reversed(range(2, coarse.ndim)):
            source, side = self.fine, sums.shape[dim]
            self.fine = source.new_zeros(*source.shape[:dim], 2 * side, *source.shape[dim + 1 :])
            before, own, beyond = (source.narrow(dim, start, side) for start in range(3))
            even, odd = self.fine.unflatten(dim, (-1, 2)).unbind(dim + 1)
            self._up += [(own, before, even), (own, beyond, odd)]
            fine = _without_border(self.fine, range(2, dim))
            even, odd = fine.unflatten(dim, (-1, 2)).unbind(dim + 1)
            earlier, later = target.narrow(dim, 0, side - 1), target.narrow(dim, 1, side - 1)
            self._down.append((even, odd, target, later, odd.narrow(dim, 0, side - 1), earlier, even.narrow(dim, 1, side - 1)))
            target = fine

    def to_fine(self) -> Float[Tensor, "n c *s"]:
        for own, beside, fine in self._up:
            add(own, beside, alpha=1 / 3, out=fine)
        return self.fine

    def to_coarse(self) -> None:
        for even, odd, target, later, before_later, earlier, beyond_earlier in reversed(self._down):
            add(even, odd, out=target)
            later.add_(before_later, alpha=1 / 3)
            earlier.add_(beyond_earlier, alpha=1 / 3)


def _without_border(framed: Tensor, dims: range) -> Tensor:
    for dim in dims:
        framed = framed.narrow(dim, 1, framed.shape[dim] - 2)
    return framed
