"""Noisy linear imputation (Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022).

A removed pixel becomes the weighted mean of its eight neighbours, some of which are removed themselves, and a little noise, so that
it neither stands out from its neighbours nor follows from them. Weights (1/6 beside, 1/12 across the corner), borders (neighbours
outside the image do not count, the others' weights grow) and noise are those of the authors' code; in place of their sparse solver
stand conjugate gradients with a multigrid V-cycle for preconditioner.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fg_lightning.removal.batch import check_batch
from fg_lightning.removal.multigrid import Grid, cropped, evened
from fg_lightning.sample_seeds import seeds_of

NOISE = 0.01
"""Standard deviation of the noise in the images' own units: the authors' choice, for images in units of about 1."""

TOLERANCE = 5e-4
"""How large the last correction may be, relative to the range of the image; the next would be half of it or less."""

MOST_ITERATIONS = 50
"""Of conjugate gradients; five or six are needed where half of a photograph is gone."""

AT_ONCE = 400_000
"""So many numbers are solved for together on a CPU: few enough for its caches, enough to make small grids worth their calls."""


def noisy_linear(
    images: Float[Tensor, "n c *s"], mask: Bool[Tensor, "n 1 *s"], *, noise: float = NOISE, seed: int = 0
) -> Float[Tensor, "n c *s"]:
    """Removed pixels as the weighted mean of their neighbours, and noise.

    An image that is removed altogether becomes its channel means, the constants nearest to it. The noise is drawn from the seed
    and what the image holds: the same each time, on every device, whatever else is in the batch and whatever share is removed.

    Args:
        images: [N, C, *S] with one, two or three spatial dimensions. In one and three the neighbours' weights are those of
            [1, 2, 1] in every dimension, of which the plane's are a case.
        mask: True where a pixel goes.
        noise: its standard deviation, in the images' own units.
        seed: of the noise.

    Returns:
        [N, C, *S]; but for the noise within 1e-3 of the exact solution, relative to the range of each image.

    Raises:
        TypeError: if the images are not floating-point or the mask is not boolean.
        ValueError: if the mask does not go with the images.
    """
    check_batch(images, mask)
    images = images.detach()
    precise = images if images.dtype == torch.float64 else images.float()
    gone = mask.flatten(1).all(1)
    holes = mask
    if gone.any():
        precise, holes = precise.clone(), mask.clone()
        precise[gone] = precise[gone].mean(tuple(range(2, images.ndim)), keepdim=True).expand_as(precise[gone])
        holes[gone] = False
    with torch.autocast(images.device.type, enabled=False):
        imputed = infilled(precise, holes)
    if noise:
        imputed.addcmul_(mask.to(imputed), _noise(images, seed).to(imputed), value=noise)
    return imputed.to(images.dtype)


def infilled(images: Float[Tensor, "n c *s"], removed: Bool[Tensor, "n 1 *s"]) -> Float[Tensor, "n c *s"]:
    """Images with their removed pixels solved for.

    Args:
        images: [N, C, *S], float32 or float64.
        removed: True where a pixel is removed; something must be left of every image.

    Returns:
        [N, C, *S], within 1e-3 of the exact solution, relative to the range of each image.
    """
    numbers = AT_ONCE if images.device.type == "cpu" else images.numel()
    at_once = max(1, numbers // max(1, images[:1].numel()))
    grid: Grid | None = None
    solved = torch.empty_like(images)
    for part, holes, target in zip(images.split(at_once), removed.split(at_once), solved.split(at_once), strict=True):
        if grid is None or grid.shape[0] != len(part):
            grid = Grid(images, tuple(part.shape))
        target.copy_(_solved(grid, part, holes) if holes.any() else part)
    return solved


def _solved(grid: Grid, images: Tensor, removed: Tensor) -> Tensor:
    """Conjugate gradients; every channel of every image is a system of its own and stops on its own."""
    size = tuple(images.shape[2:])
    holes = removed.to(images.dtype)
    grid.remove(evened(holes))
    solution = grid.filled(evened(images * (1 - holes)))
    enough = _accuracy(cropped(solution, size))
    direction = grid.new_field(images)
    direction.values.copy_(solution)
    residual = grid.lacking(direction).clone()
    direction.values.zero_()
    unsolved, energy = torch.ones_like(enough, dtype=torch.bool), torch.zeros_like(enough)
    for _ in range(MOST_ITERATIONS):
        correction = grid.v_cycle(residual)
        before, energy = energy, grid.dot(residual, correction)
        torch.addcmul(correction, _ratio(energy, before), direction.values, out=direction.values)
        response = grid.lacking(direction)
        step = torch.where(unsolved, _ratio(energy, -grid.dot(direction.values, response)), 0)
        solution.addcmul_(step, direction.values)
        residual.addcmul_(step, response)
        unsolved = unsolved & (grid.largest(correction) > enough)
        if not unsolved.any():
            break
    return cropped(solution, size)


def _accuracy(values: Tensor) -> Tensor:
    """The largest last correction of each image, [N, 1, 1 ...]; never below its precision."""
    everywhere = tuple(range(1, values.ndim))
    high, low = values.amax(everywhere, keepdim=True), values.amin(everywhere, keepdim=True)
    return TOLERANCE * (high - low) + 8 * torch.finfo(values.dtype).eps * torch.maximum(high, -low)


def _ratio(dividend: Tensor, divisor: Tensor) -> Tensor:
    return torch.where(divisor > 0, dividend / divisor, 0)


def _noise(images: Tensor, seed: int) -> Tensor:
    """Standard normal numbers, [N, C, *S], on the CPU."""
    drawn = torch.empty(images.shape)
    for field, own in zip(drawn, seeds_of(images, seed), strict=True):
        field.normal_(generator=torch.Generator().manual_seed(own))
    return drawn
