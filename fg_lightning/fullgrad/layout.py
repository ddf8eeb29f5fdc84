"""Where the samples and the image plane lie in a tensor.

A dimension of a tensor inside a network is seldom just "the batch" or "the rows": attention swaps and folds them, windows cut the
rows in two, tokens merge rows and columns behind a class token. A `Layout` writes every dimension as a product of factors, each a
piece of one axis of the input, and follows them through the operations that move, merge and split dimensions. Where an operation
is not known to keep samples apart there is no layout, and the caller treats the samples one at a time.

How operations move the axes is the table in movement/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property

from torch import Tensor

SAMPLE = 0  # the axis of the samples; 1, 2, 3 are the spatial axes of the input


@dataclass(frozen=True, slots=True)
class Factor:
    """A run of `size` positions, `step` apart, along an axis: the samples', a spatial one, tokens, or None for any other.

    `shift` says how far the whole axis was rolled, as shifted windows do.
    """

    axis: int | Tokens | None
    size: int
    step: int = 1
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """A sequence of places behind `lead` entries that lie nowhere on the plane, such as a class token; it moves as one."""

    lead: int
    places: tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of a tensor, the product of its factors."""

    factors: tuple[Factor, ...]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", math.prod(f.size for f in self.factors))

    def has(self, axis: int) -> bool:
        return any(f.axis == axis and f.size > 1 for f in self.factors)

    def is_plain(self) -> bool:
        return all(f.axis is None for f in self.factors)

    def spans_an_axis(self) -> bool:
        """Whether this is the whole of one spatial axis and nothing else, so that it may be resampled or rolled."""
        return len(self.factors) == 1 and self.factors[0].axis in (1, 2, 3) and self.factors[0].step == 1


@cache
def plain(size: int) -> Dim:
    """A dimension that is neither sample nor place."""
    return Dim((Factor(None, size),))


@dataclass(frozen=True)
class Layout:
    """The dimensions of a tensor, each as a product of pieces of the input's axes."""

    dims: tuple[Dim, ...]

    @classmethod
    def of_images(cls, images: Tensor) -> Layout:
        """[N, C, *S]"""
        spatial = (Dim((Factor(i, size),)) for i, size in enumerate(images.shape[2:], start=1))
        return cls((Dim((Factor(SAMPLE, images.shape[0]),)), plain(images.shape[1]), *spatial))

    @classmethod
    def unknown(cls, shape: Iterable[int]) -> Layout:
        """Nothing known: right for a single sample, whose every entry is its own."""
        return cls(tuple(plain(size) for size in shape))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(dim.size for dim in self.dims)

    @cached_property
    def samples(self) -> int:
        """How many samples can be told apart; more than there are where an operation paired them."""
        return math.prod(f.size for dim in self.dims for f in dim.factors if f.axis == SAMPLE)

    @cached_property
    def _image_axes(self) -> int | None:
        """How many spatial axes there are, if the dimensions are those of [N, C, *S] already, as they mostly are."""
        if not all(len(dim.factors) == 1 for dim in self.dims):
            return None
        factors = [dim.factors[0] for dim in self.dims]
        is_in_order = [f.axis for f in factors] == [SAMPLE, None, *range(1, len(factors) - 1)]
        return len(factors) - 2 if is_in_order and not any(f.shift or f.step > 1 for f in factors) else None

    def per_sample(self, tensor: Tensor, n: int) -> Tensor:
        """Sums a tensor of this layout over everything but the samples: [N]."""
        if n == 1:
            return tensor.sum().reshape(1)
        kept = [i for i, dim in enumerate(self.dims) if dim.has(SAMPLE)]
        others = [i for i in range(tensor.ndim) if i not in kept]
        if others:
            tensor = tensor.sum(others)
        factors = [f for i in kept for f in self.dims[i].factors]
        tensor = tensor.reshape([f.size for f in factors])
        samples = [i for i, f in enumerate(factors) if f.axis == SAMPLE]
        rest = [i for i in range(len(factors)) if i not in samples]
        if rest:
            tensor = tensor.sum(rest)
        order = sorted(range(len(samples)), key=lambda i: -factors[samples[i]].step)
        return tensor.permute(order).reshape(n)

    def on_plane(self, axes: int) -> bool:
        """Whether the spatial axes can all be read off this layout, each in one piece or in pieces that tile it."""
        if self._image_axes == axes:
            return True
        factors = [place for dim in self.dims for f in dim.factors for place in _places(f)]
        return all(_tiles([f for f in factors if f.axis == axis]) for axis in range(1, axes + 1))

    def to_plane(self, tensor: Tensor, n: int, axes: int) -> Tensor:
        """A tensor of this layout as [N, C, *S], C everything that is neither sample nor place; a view where there can be one."""
        if self._image_axes == axes:
            return tensor
        factors = [f for dim in self.dims for f in dim.factors]
        tensor = tensor.reshape([f.size for f in factors])
        for i, factor in enumerate(factors):
            if isinstance(factor.axis, Tokens):
                tensor = tensor.narrow(i, factor.axis.lead, factor.size - factor.axis.lead)
        factors = [place for f in factors for place in _places(f)]
        tensor = tensor.reshape([f.size for f in factors])
        order: list[int] = []
        for axis in (SAMPLE, None, *range(1, axes + 1)):
            order += sorted((i for i, f in enumerate(factors) if f.axis == axis), key=lambda i: -factors[i].step)
        sizes = [math.prod(f.size for f in factors if f.axis == axis) for axis in range(1, axes + 1)]
        plane = tensor.permute(order).reshape(n, -1, *sizes)
        for axis in range(1, axes + 1):
            shift = next((f.shift for f in factors if f.axis == axis), 0)
            if shift:
                plane = plane.roll(-shift, axis + 1)
        return plane


def _places(factor: Factor) -> tuple[Factor, ...]:
    return factor.axis.places if isinstance(factor.axis, Tokens) else (factor,)


def _tiles(pieces: list[Factor]) -> bool:
    covered = 1
    for piece in sorted(pieces, key=lambda f: (f.step, f.size)):
        if piece.size > 1 and piece.step != covered:
            return False
        covered *= piece.size
    return bool(pieces)
