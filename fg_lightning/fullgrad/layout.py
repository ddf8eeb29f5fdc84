"""Describes where the samples and the image plane lie in a tensor.

A dimension of a tensor inside a network is seldom just "the batch" or "the rows": attention swaps and folds them, windows cut the
rows in two, tokens merge rows and columns after a class token. A `Layout` writes every dimension as a product of factors, each a
piece of one axis of the input, and follows them through the operations that move, merge and split dimensions. If an operation may
mix samples, its output has no layout, and the samples are run one by one.

The layout rules in operations/ define how an operation moves the axes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Axis:
    """`length` positions along the spatial axis `number` of the input.

    Attributes:
        number: 1, 2 or 3 for the first image input, 4, 5 or 6 for the second, and so on.
        length: number of positions.
        shift: number of positions by which they were rolled, as in shifted windows.
        lead: number of padded positions before the image's first. Negative if a slice removed some of the image's positions.
        tail: the same, after the image's last.
        flipped: whether the order of the image's positions is reversed.
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

    def resample(self, length: int) -> Axis:
        """The axis at another resolution, with margins and shift rounded to whole positions.

        Windows without padding do not cover some positions at the borders. These are subtracted first, from the padded margins.
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

    def flip(self) -> Axis:
        """The axis reversed."""
        return replace(self, shift=-self.shift % self.length, lead=self.tail, tail=self.lead, flipped=not self.flipped)

    def place_on_image(self, tensor: Tensor, dim: int) -> Tensor:
        """A tensor with this axis at `dim`, in the image's order: without padding, with zeros where a slice cut the image."""
        if self.shift:
            tensor = tensor.roll(-self.shift, dim)
        if self.is_cut:
            missing = (max(0, -self.lead), max(0, -self.tail))
            tensor = F.pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + missing)
        if self.lead > 0 or self.tail > 0:
            tensor = tensor.narrow(dim, max(0, self.lead), self.length - self.lead - self.tail)
        return tensor.flip(dim) if self.flipped else tensor


SAMPLE = 0  # the axis of the samples

AXES = 3
"""Numbers of spatial axes for each image input."""


@dataclass(frozen=True, slots=True)
class Factor:
    """`size` positions, `step` apart, along an axis: that of the samples, a spatial one, tokens, or None for any other axis."""

    axis: int | Axis | Tokens | None
    size: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Tokens:
    """Places between `lead` and `tail` entries that have no place on the image, such as a class token. They move together."""

    lead: int
    places: tuple[Factor, ...]
    tail: int = 0


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

    @property
    def whole(self) -> Axis | None:
        """The spatial axis, if this dimension is exactly one whole axis, which may be resampled, rolled or cut."""
        axis = self.factors[0].axis if len(self.factors) == 1 else None
        return axis if isinstance(axis, Axis) and axis.length == self.size else None

    @property
    def places(self) -> list[tuple[Axis, Factor]]:
        """The pieces of spatial axes in it, including those in tokens."""
        return [(f.axis, f) for factor in self.factors for f in _places_of(factor) if isinstance(f.axis, Axis)]

    @property
    def samples(self) -> tuple[tuple[int, int, int], ...]:
        """The runs of samples in it: (number of samples, distance in the batch, distance in this dimension)."""
        runs, distance = [], 1
        for factor in reversed(self.factors):
            if factor.axis == SAMPLE and factor.size > 1:
                runs.append((factor.size, factor.step, distance))
            distance *= factor.size
        return tuple(runs)


@cache
def plain(size: int) -> Dim:
    """A dimension that contains neither samples nor places."""
    return Dim((Factor(None, size),))


def whole_dim(axis: Axis) -> Dim:
    """A dimension that is a whole spatial axis."""
    return Dim((Factor(axis, axis.length),))


@dataclass(frozen=True)
class Layout:
    """The dimensions of a tensor, each as a product of pieces of the input's axes."""

    dims: tuple[Dim, ...]

    @classmethod
    def of_images(cls, images: Tensor, image: int = 0) -> Layout:
        """The layout of an image input, [N, C, *S]."""
        return _layout_of_images(images.shape, AXES * image)

    @classmethod
    def unknown(cls, shape: Iterable[int]) -> Layout:
        """A layout without samples and places. It is right for a single sample, to which every entry belongs."""
        return cls(tuple(plain(size) for size in shape))

    @cached_property
    def derived(self) -> dict[Any, Layout | None]:
        """A cache of layouts that rules derived from this one, for the next run of the network."""
        return {}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(dim.size for dim in self.dims)

    @cached_property
    def samples(self) -> int:
        """Number of samples that can be told apart. It is too large after an operation that pairs samples."""
        return math.prod(f.size for dim in self.dims for f in dim.factors if f.axis == SAMPLE)

    @property
    def is_in_order(self) -> bool:
        """Whether the samples have the same order as in the batch."""
        steps = [f.step for dim in self.dims for f in dim.factors if f.axis == SAMPLE and f.size > 1]
        return steps == sorted(steps, reverse=True)

    @cached_property
    def _image_axes(self) -> int | None:
        """Number of spatial axes if the dimensions are [N, C, *S], the most common case. Otherwise None."""
        if len(self.dims) < 2 or [f.axis for dim in self.dims[:2] for f in dim.factors] != [SAMPLE, None]:
            return None
        axes = [dim.whole for dim in self.dims[2:]]
        is_in_order = all(axis and axis.number == i and axis.is_the_images for i, axis in enumerate(axes, start=1))
        return len(axes) if is_in_order else None

    @cached_property
    def _axes(self) -> dict[int, Axis | None]:
        """The spatial axes by number, each assembled from its pieces. None if these leave gaps."""
        pieces: defaultdict[int, list[Factor]] = defaultdict(list)
        for dim in self.dims:
            for axis, piece in dim.places:
                pieces[axis.number].append(piece)
        return {number: _tile(of_axis) for number, of_axis in pieces.items()}

    @cached_property
    def images(self) -> tuple[int, ...]:
        """The numbers of the image inputs that have places in it, in the order of its dimensions."""
        return tuple(dict.fromkeys((axis.number - 1) // AXES for dim in self.dims for axis, _ in dim.places))

    def as_of_one_image(self) -> Layout:
        """This layout with the axes of the first of its images, numbered from 1. Those of other images lose their places."""
        offset = AXES * self.images[0] if self.images else 0
        return self if not offset and len(self.images) < 2 else Layout(tuple(_renumber(dim, offset) for dim in self.dims))

    def coarsen(self, i: int) -> Dim:
        """Dimension `i`. If the finer positions of its axis became channels, it is the axis at a coarser resolution."""
        dim = self.dims[i]
        if len(dim.factors) != 1 or dim.whole or not isinstance(axis := dim.factors[0].axis, Axis):
            return dim
        left = self._axes[axis.number]
        return whole_dim(left) if left and left.length == dim.size else dim

    def per_sample(self, tensor: Tensor, n: int) -> Tensor:
        """Sum a tensor of this layout over all dimensions except the samples, [N]."""
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

    def is_image(self, axes: int) -> bool:
        """Whether the dimensions are those of [N, C, *S], at any resolution."""
        return self._image_axes == axes

    def on_plane(self, axes: int) -> bool:
        """Whether this layout has all spatial axes, each whole or in pieces that tile it."""
        return self._image_axes == axes or all(self._axes.get(number) for number in range(1, axes + 1))

    @property
    def is_cut(self) -> bool:
        """Whether a slice removed a part of the image: the plane then has more places than the tensor."""
        return self._image_axes is None and any(axis and axis.is_cut for axis in self._axes.values())

    @property
    def is_flat(self) -> bool:
        """Whether each sample is a row of channels, [N, K], without places, such as after a flatten."""
        return sum(any(f.axis != SAMPLE and f.size > 1 for f in dim.factors) for dim in self.dims) <= 1

    def to_plane(self, tensor: Tensor, n: int, axes: int) -> Tensor:
        """A tensor of this layout as [N, C, *S], a view if possible. C contains all that is neither sample nor place."""
        if self.is_image(axes):
            return tensor
        factors = [f for dim in self.dims for f in dim.factors]
        tensor = tensor.reshape([f.size for f in factors])
        for i, factor in enumerate(factors):
            if isinstance(factor.axis, Tokens):
                tensor = tensor.narrow(i, factor.axis.lead, factor.size - factor.axis.lead - factor.axis.tail)
        factors = [place for f in factors for place in _places_of(f)]
        tensor = tensor.reshape([f.size for f in factors])
        found = [axis for number in range(1, axes + 1) if (axis := self._axes[number])]
        belongs_to = [f.axis.number if isinstance(f.axis, Axis) else f.axis for f in factors]
        order: list[int] = []
        for axis in (SAMPLE, None, *range(1, axes + 1)):
            order += sorted((i for i, own in enumerate(belongs_to) if own == axis), key=lambda i: -factors[i].step)
        plane = tensor.permute(order).reshape(n, -1, *(axis.length for axis in found))
        for axis in found:
            plane = axis.place_on_image(plane, axis.number + 1)
        return plane


@lru_cache(maxsize=1 << 13)
def intern_layout(layout: Layout) -> Layout:
    """The same object for equal layouts. They are then compared by identity, and the next run uses the same `derived` layouts."""
    return layout


@lru_cache(maxsize=16)
def _layout_of_images(shape: tuple[int, ...], offset: int) -> Layout:
    spatial = (whole_dim(Axis(offset + number, size)) for number, size in enumerate(shape[2:], start=1))
    return Layout((Dim((Factor(SAMPLE, shape[0]),)), plain(shape[1]), *spatial))


def _renumber(dim: Dim, offset: int) -> Dim:
    """A dimension with the axes of one image, numbered from 1. Places of other images become plain entries."""
    if any(not 0 < axis.number - offset <= AXES for axis, _ in dim.places):
        return Dim(tuple(f if f.axis == SAMPLE else Factor(None, f.size) for f in dim.factors))
    return Dim(tuple(_shift_number(factor, offset) for factor in dim.factors))


def _shift_number(factor: Factor, offset: int) -> Factor:
    if isinstance(factor.axis, Tokens):
        return replace(factor, axis=replace(factor.axis, places=tuple(_shift_number(f, offset) for f in factor.axis.places)))
    if isinstance(factor.axis, Axis):
        return replace(factor, axis=replace(factor.axis, number=factor.axis.number - offset))
    return factor


def _places_of(factor: Factor) -> tuple[Factor, ...]:
    return factor.axis.places if isinstance(factor.axis, Tokens) else (factor,)


def _tile(pieces: list[Factor]) -> Axis | None:
    """The axis that pieces tile, at the resolution of the finest piece. None if they leave gaps or belong to several axes."""
    axis = pieces[0].axis
    assert isinstance(axis, Axis)
    finest = covered = min((f.step for f in pieces if f.size > 1), default=1)
    for piece in sorted(pieces, key=lambda f: f.step):
        if piece.axis != axis or (piece.size > 1 and piece.step != covered):
            return None
        covered *= piece.size
    return axis.resample(axis.length // finest) if covered == axis.length else None
