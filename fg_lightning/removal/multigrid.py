"""Multigrid for noisy linear imputation: every removed pixel becomes the weighted mean of its neighbours.

New memory costs more time than the arithmetic on it. So frequent operations work in place, on views that are made once.

The neighbours' weights are those of the kernel [1, 2, 1] in every dimension without its centre: in the plane 1/6 beside a pixel and
1/12 across its corner. Neighbours outside the image do not count, and the weights of the others increase accordingly. If each
equation is multiplied by the sum of its neighbours' weights, this is a symmetric system over the removed pixels, A x = b. The other
pixels contribute b.

Two pixels in every dimension form one pixel of the next coarser grid. It is removed there if they all are removed (Briggs, Henson
& McCormick, A Multigrid Tutorial, 2000).
"""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, add


class Scratch:
    """Two buffers for intermediate results, each as large as a grid with its border."""

    def __init__(self, like: Tensor, shape: tuple[int, ...]) -> None:
        self._buffers = like.new_empty(2, math.prod(shape))

    def view(self, which: int, shape: tuple[int, ...]) -> Tensor:
        return self._buffers[which, : math.prod(shape)].view(shape)


class Field:
    """Values on a grid, with a border of zeros around them.

    Args:
        like: a tensor with the precision and the device to work with.
        shape: (N, C, *S).
        scratch: memory that `binomial` overwrites. Fields that do not need it at the same time share it.

    Attributes:
        framed: [N, C, *S + 2], with the border.
        values: [N, C, *S], a view without the border. Writing to it sets the field.
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
        """Sums with weights [1, 2, 1] in every dimension, computed as [1, 1] twice. The result is in scratch memory."""
        for left, right, target in self._steps:
            add(left, right, out=target)
        return self._sum


def framed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], *(side + 2 for side in shape[2:]))


class Interpolation:
    """Linear interpolation from a coarse grid to a fine one with twice as many pixels in every dimension, and its transpose.

    In every dimension, a fine pixel is its coarse pixel plus 1/3 of the nearer neighbour of that: 4/3 of their mean with weights
    3/4 and 1/4.

    Args:
        coarse: input of `to_fine`, [N, C, *S + 2]: values with a border of zeros.
        sums: output of `to_coarse`, [N, C, *S].

    Attributes:
        fine: output of `to_fine` and input of `to_coarse`, [N, C, *2S].
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


COARSEST = 64
"""A grid of at most so many pixels is solved exactly."""


class Grid:
    """The system on one grid, the coarser grids below it, and the buffers to solve it in.

    Args:
        like: a tensor with the precision and the device to work with.
        shape: (N, C, *S) of the images.

    Attributes:
        shape: (N, C, *S'), with even sides. Pixels outside the image are neither removed nor kept.
        right: right-hand sides that the next finer grid writes, [N, C, *S'].
        whole: whether no pixel is removed, so that there is nothing to solve.
    """

    def __init__(self, like: Tensor, shape: tuple[int, ...]) -> None:
        axes = len(shape) - 2
        self.shape = (*shape[:2], *(side + side % 2 for side in shape[2:]))
        self._scratch = Scratch(like, framed_shape(self.shape))
        self.field = self.new_field(like)
        self.right = like.new_zeros(self.shape)
        self._inside = pad_to_even(like.new_ones(1, 1, *shape[2:]))
        weights = Field(like, (1, 1, *self.shape[2:]), self._scratch)
        weights.values.copy_(self._inside)
        degree = (weights.binomial() - 2**axes * self._inside).clamp_min(1)
        self._diagonal = degree + 2**axes
        wide = max(1, sum(side > 1 for side in shape[2:]))
        # 4/3 would best damp the errors that the next grid cannot represent. It does not damp a checkerboard if one side is wide.
        self._damping = 1.3 * (1 - 0.5**wide) / degree
        # Relaxation: x + damping (b - A x) = kept x + damping (b + binomial sum of x).
        self._kept = 1 - self._damping * self._diagonal
        self._shares = torch.full_like(self._inside, 0.75**axes)
        for dim in range(2, len(shape)):
            for end in (0, -1):  # a pixel at the border has only one coarse pixel
                self._shares.select(dim, end).mul_(4 / 3)
        self._removed, self._relaxation, self._share = (like.new_zeros(shape[0], 1, *self.shape[2:]) for _ in range(3))
        self._coarser: Grid | None = None
        if math.prod(self.shape[2:]) > COARSEST:
            halves = tuple(side // 2 for side in self.shape[2:])
            self._coarser = Grid(like, (*shape[:2], *halves))
            framed = crop(self._coarser.field.framed, tuple(half + 2 for half in halves))
            self._transfer = Interpolation(framed, crop(self._coarser.right, halves))
            # In d dimensions, second differences at twice the spacing are 2^(d-2) times those at the spacing.
            self._scale = 2.0 ** (2 - wide)

    def new_field(self, like: Tensor) -> Field:
        return Field(like, self.shape, self._scratch)

    def remove(self, removed: Tensor) -> None:
        """Sets up the system.

        Args:
            removed: [N, 1, *S'], 1 where a pixel is removed, else 0.
        """
        self.whole = not bool(removed.any())
        if self.whole:
            return
        self._removed.copy_(removed)
        torch.mul(removed, self._damping, out=self._relaxation)
        torch.mul(removed, self._shares, out=self._share)
        left = self._inside - removed
        if self._coarser is None:
            self._inverse = self._invert(left)
        else:
            self._counts = pool(left)
            self._coarser.remove(pad_to_even((self._counts == 0).to(left)))

    def residual(self, field: Field) -> Float[Tensor, "n c *s"]:
        """b - A x of a field that holds x and the kept pixels; -A x of a field that holds only x. In scratch memory."""
        return field.binomial().addcmul_(self._diagonal, field.values, value=-1).mul_(self._removed)

    def v_cycle(self, right: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        """A symmetric approximation of A's inverse, applied to right-hand sides. The result is in `field`."""
        values, coarser = self.field.values, self._coarser
        if coarser is None:
            solved = self._inverse @ right.flatten(2).mT
            return values.copy_(solved.mT.unflatten(2, self.shape[2:]))
        torch.mul(right, self._relaxation, out=values)
        if not coarser.whole:
            torch.mul(self.field.binomial().addcmul_(self._kept, right), self._share, out=self._transfer.fine)
            self._transfer.to_coarse()
            coarser.v_cycle(coarser.right if self._scale == 1 else coarser.right.mul_(self._scale))
            values.addcmul_(self._share, self._transfer.to_fine())
        weighted = self.field.binomial().add_(right).mul_(self._relaxation)
        return torch.addcmul(weighted, self._kept, values, out=values)

    def first_solution(self, images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        """Full multigrid: writes a first solution from the coarser grids into images that are 0 in removed pixels."""
        coarser = self._coarser
        if coarser is None:
            self.field.values.copy_(images)
            return images.add_(self.v_cycle(self.residual(self.field).clone()))
        means = pad_to_even(pool(images) / self._counts.clamp_min(1))
        if not coarser.whole:
            means = coarser.first_solution(means)
            coarser.field.values.copy_(means)
            means.add_(coarser.v_cycle(coarser.residual(coarser.field).clone()))
        coarser.field.values.copy_(means)
        return images.addcmul_(self._share, self._transfer.to_fine())

    def dot(self, a: Tensor, b: Tensor) -> Float[Tensor, "n c *ones"]:
        """The scalar product of every channel. It overwrites scratch memory that holds no sum."""
        product = torch.mul(a, b, out=self._scratch.view(0, self.shape))
        return product.sum(tuple(range(2, a.ndim)), keepdim=True)

    def largest(self, a: Tensor) -> Float[Tensor, "n c *ones"]:
        """The largest magnitude in every channel. It overwrites scratch memory that holds no sum."""
        magnitude = torch.abs(a, out=self._scratch.view(0, self.shape))
        return magnitude.amax(tuple(range(2, a.ndim)), keepdim=True)

    def _invert(self, left: Tensor) -> Float[Tensor, "n p p"]:
        """The inverse of A over all P pixels of the grid, 0 for those that are not removed."""
        kernels = [2 * torch.eye(side) + torch.ones(side - 1).diag(1) + torch.ones(side - 1).diag(-1) for side in self.shape[2:]]
        weights = reduce(torch.kron, kernels).to(left)
        removed = self._removed.flatten(1)
        among = removed[:, :, None] * removed[:, None]
        system = torch.diag_embed(removed * self._diagonal.flatten(1) + 1 - removed) - among * weights
        return torch.linalg.inv(system) * among


def pad_to_even(values: Tensor) -> Tensor:
    """Adds zeros behind the last pixel of every odd side."""
    if all(side % 2 == 0 for side in values.shape[2:]):
        return values
    return F.pad(values, [width for side in reversed(values.shape[2:]) for width in (0, side % 2)])


def crop(values: Tensor, size: tuple[int, ...]) -> Tensor:
    for dim, side in enumerate(size, start=2):
        values = values.narrow(dim, 0, side)
    return values


def pool(values: Tensor) -> Tensor:
    """Sums of two pixels in every dimension."""
    for dim in range(2, values.ndim):
        even, odd = values.unflatten(dim, (-1, 2)).unbind(dim + 1)
        values = even + odd
    return values
