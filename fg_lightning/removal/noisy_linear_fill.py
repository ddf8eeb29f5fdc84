"""Noisy linear imputation (Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022).

A removed pixel becomes the weighted mean of its eight neighbours, which may be removed themselves, plus a little noise. So it does
not stand out from its neighbours, and they do not determine it. The weights (1/6 beside, 1/12 across the corner), the borders
(neighbours outside the image do not count, and the others' weights increase) and the noise are those of the authors' code. This
module replaces their sparse solver by conjugate gradients, preconditioned by a multigrid V-cycle.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fg_lightning.removal.multigrid import Grid, crop, pad_to_even
from fg_lightning.removal.pixel_ranking import check_images_and_mask
from fg_lightning.sample_seeds import seeds_of

NOISE = 0.01
"""Standard deviation of the noise in the images' own units. The authors chose it, for images of about unit scale."""

TOLERANCE = 5e-4
"""The iteration ends after a correction of at most this size, relative to the range of the image. A next one would be at most half
as large."""

MAX_ITERATIONS = 50
"""Largest number of iterations of conjugate gradients. Five or six are enough if half of a photograph is removed."""

NUMBERS_AT_ONCE = 400_000
"""Numbers that are solved for at once on a CPU: few enough for its caches, and enough for efficient calls on small grids."""


def noisy_linear(
    images: Float[Tensor, "n c *s"], mask: Bool[Tensor, "n 1 *s"], *, noise: float = NOISE, seed: int = 0
) -> Float[Tensor, "n c *s"]:
    """Replaces removed pixels by the weighted mean of their neighbours, plus noise.

    If all pixels of an image are removed, they become its channel means. The noise depends only on the seed and the values of the
    image: it is the same each time, on every device, in every batch and for every fraction.

    Args:
        images: [N, C, *S], floating-point, with one, two or three spatial dimensions. In one and three, the neighbours' weights are
            those of [1, 2, 1] in every dimension, as in the plane.
        mask: bool [N, 1, *S], True where a pixel is removed.
        noise: standard deviation of the noise, in the images' own units. Default: 0.01.
        seed: seed of the noise. Default: 0.

    Returns:
        [N, C, *S]. Without the noise, it is within 1e-3 of the exact solution, relative to the range of each image.

    Raises:
        TypeError: if the images are not floating-point or the mask is not boolean.
        ValueError: if the mask does not fit the images.
    """
    check_images_and_mask(images, mask)
    images = images.detach()
    precise = images if images.dtype == torch.float64 else images.float()
    gone = mask.flatten(1).all(1)
    holes = mask
    if gone.any():
        precise, holes = precise.clone(), mask.clone()
        precise[gone] = precise[gone].mean(tuple(range(2, images.ndim)), keepdim=True).expand_as(precise[gone])
        holes[gone] = False
    with torch.autocast(images.device.type, enabled=False):
        filled = solve_removed(precise, holes)
    if noise:
        filled.addcmul_(mask.to(filled), _noise(images, seed).to(filled), value=noise)
    return filled.to(images.dtype)


def solve_removed(images: Float[Tensor, "n c *s"], removed: Bool[Tensor, "n 1 *s"]) -> Float[Tensor, "n c *s"]:
    """Solves for the removed pixels of images.

    Args:
        images: [N, C, *S], float32 or float64.
        removed: bool [N, 1, *S], True where a pixel is removed. At least one pixel of every image must be kept.

    Returns:
        [N, C, *S], within 1e-3 of the exact solution, relative to the range of each image.
    """
    numbers = NUMBERS_AT_ONCE if images.device.type == "cpu" else images.numel()
    at_once = max(1, numbers // max(1, images[:1].numel()))
    grid: Grid | None = None
    solution = torch.empty_like(images)
    for part, holes, target in zip(images.split(at_once), removed.split(at_once), solution.split(at_once), strict=True):
        if grid is None or grid.shape[0] != len(part):
            grid = Grid(images, tuple(part.shape))
        target.copy_(_conjugate_gradients(grid, part, holes) if holes.any() else part)
    return solution


def _conjugate_gradients(grid: Grid, images: Tensor, removed: Tensor) -> Tensor:
    """Solves a system for every channel of every image. Each stops when it is solved."""
    size = tuple(images.shape[2:])
    holes = removed.to(images.dtype)
    grid.remove(pad_to_even(holes))
    solution = grid.first_solution(pad_to_even(images * (1 - holes)))
    enough = _accuracy(crop(solution, size))
    direction = grid.new_field(images)
    direction.values.copy_(solution)
    residual = grid.residual(direction).clone()
    direction.values.zero_()
    unsolved, energy = torch.ones_like(enough, dtype=torch.bool), torch.zeros_like(enough)
    for _ in range(MAX_ITERATIONS):
        correction = grid.v_cycle(residual)
        before, energy = energy, grid.dot(residual, correction)
        torch.addcmul(correction, _ratio(energy, before), direction.values, out=direction.values)
        response = grid.residual(direction)
        step = torch.where(unsolved, _ratio(energy, -grid.dot(direction.values, response)), 0)
        solution.addcmul_(step, direction.values)
        residual.addcmul_(step, response)
        unsolved = unsolved & (grid.largest(correction) > enough)
        if not unsolved.any():
            break
    return crop(solution, size)


def _accuracy(values: Tensor) -> Tensor:
    """The size of a correction after which the iteration ends, for each image, [N, 1, 1 ...]; not below its precision."""
    everywhere = tuple(range(1, values.ndim))
    high, low = values.amax(everywhere, keepdim=True), values.amin(everywhere, keepdim=True)
    return TOLERANCE * (high - low) + 8 * torch.finfo(values.dtype).eps * torch.maximum(high, -low)


def _ratio(dividend: Tensor, divisor: Tensor) -> Tensor:
    return torch.where(divisor > 0, dividend / divisor, 0)


def _noise(images: Tensor, seed: int) -> Tensor:
    """Standard normal numbers, [N, C, *S], on the CPU."""
    noise = torch.empty(images.shape)
    for field, own in zip(noise, seeds_of(images, seed), strict=True):
        field.normal_(generator=torch.Generator().manual_seed(own))
    return noise
