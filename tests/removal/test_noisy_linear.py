"""Noisy linear imputation, against the system of equations written out pixel by pixel."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fg_lightning.removal import noisy_linear, top_pixels
from fg_lightning.removal import noisy_linear_fill as linear
from fg_lightning.removal.noisy_linear_fill import solve_removed


def solved(image: Tensor, mask: Tensor) -> Tensor:
    """One image [C, *S] with its mask [*S], by a dense solver in float64."""
    places = [tuple(place) for place in mask.nonzero().tolist()]
    number = {place: i for i, place in enumerate(places)}
    matrix = torch.eye(len(places), dtype=torch.float64)
    right = torch.zeros(len(places), len(image), dtype=torch.float64)
    for place, i in number.items():
        weights = {}
        for offset in product((-1, 0, 1), repeat=mask.ndim):
            neighbour = tuple(a + b for a, b in zip(place, offset, strict=True))
            if any(offset) and all(0 <= a < side for a, side in zip(neighbour, mask.shape, strict=True)):
                weights[neighbour] = 2.0 ** offset.count(0)
        for neighbour, weight in weights.items():
            share = weight / sum(weights.values())
            if neighbour in number:
                matrix[i, number[neighbour]] -= share
            else:
                right[i] += share * image[(slice(None), *neighbour)]
    result = image.double()
    result[:, mask] = torch.linalg.solve(matrix, right).T
    return result


def assert_solved(images: Tensor, mask: Tensor) -> None:
    exact = torch.stack([solved(image, goes[0]) for image, goes in zip(images, mask, strict=True)])
    # what is promised, for images in units of 0..1
    torch.testing.assert_close(solve_removed(images, mask).double(), exact, rtol=0, atol=1e-3)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def smooth(n: int, side: int) -> Tensor:
    return gaussian_blur(torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(1)), [21, 21], [5.0, 5.0])


def test_in_the_plane_a_pixel_weighs_a_sixth_beside_and_a_twelfth_across_the_corner() -> None:
    image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 100.0, 5.0], [6.0, 7.0, 8.0]]]])
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 1, 1] = True
    expected = (2 + 4 + 5 + 7) / 6 + (1 + 3 + 6 + 8) / 12
    assert float(solve_removed(image, mask)[0, 0, 1, 1]) == pytest.approx(expected, rel=1e-6)  # float32


def test_at_the_border_the_weights_of_the_neighbours_inside_grow() -> None:
    image = torch.tensor([[[[100.0, 2.0, 3.0], [4.0, 7.0, 5.0]]]])
    mask = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    mask[..., 0, 0] = True
    expected = (2 / 6 + 4 / 6 + 7 / 12) / (1 / 6 + 1 / 6 + 1 / 12)
    assert float(solve_removed(image, mask)[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-6)  # float32


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("side", [40, 33])
def test_scattered_and_compact_masks_are_solved(side: int, share: float) -> None:
    images = noise(2, 3, side, side)
    for maps in (noise(2, 1, side, side), smooth(2, side)):
        assert_solved(images, top_pixels(maps, share))


@pytest.mark.parametrize(
    "size", [(2,), (97,), (1, 1), (1, 50), (50, 1), (2, 2), (3, 70), (70, 2), (8, 9), (5, 6, 7), (1, 1, 40), (2, 9, 9)]
)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_any_size_in_one_two_and_three_dimensions_is_solved(size: tuple[int, ...], share: float) -> None:
    images, mask = noise(3, 2, *size), noise(3, 1, *size) < share
    mask.flatten(1)[:, -1] = False
    assert_solved(images, mask)


@pytest.mark.parametrize("left", [[(0, 0)], [(20, 13)], [(3, 4), (30, 39)], [(10, i) for i in range(40)]])
def test_nearly_everything_may_be_gone(left: list[tuple[int, int]]) -> None:
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    for place in left:
        mask[(0, 0, *place)] = False
    assert_solved(noise(1, 3, 40, 40), mask)


@pytest.mark.parametrize(("size", "iterations"), [((1500,), 4), ((56, 56), 5), ((14, 12, 13), 4)])
def test_few_iterations_are_enough(monkeypatch, size: tuple[int, ...], iterations: int) -> None:
    monkeypatch.setattr(linear, "MAX_ITERATIONS", iterations)
    images, mask = noise(1, 3, *size), torch.ones(1, 1, *size, dtype=torch.bool)
    mask[(0, 0, *(slice(side // 3) for side in size))] = False
    mask[(0, 0, *(-1 for _ in size))] = False
    assert_solved(images, mask)


def test_regions_of_a_large_image_are_solved() -> None:
    rows = torch.arange(224)[:, None].expand(224, 224)
    images = (rows / 223 * torch.tensor([1.0, 0.5, 0.25])[:, None, None])[None].expand(2, -1, -1, -1)
    mask = torch.stack([(rows > 20) & (rows < 200), (rows > 5) & (rows.T > 0)])[:, None]
    solution = solve_removed(images, mask)
    # A linear ramp is the mean of its neighbours wherever a row is left on either side.
    torch.testing.assert_close(solution[:1], images[:1], rtol=0, atol=1e-3)
    left = images[1][:, ~mask[1, 0]]
    assert (solution[1].flatten(1) >= left.min(1, keepdim=True).values - 1e-3).all()
    assert (solution[1].flatten(1) <= left.max(1, keepdim=True).values + 1e-3).all()


@pytest.mark.parametrize(("scale", "offset"), [(255.0, 0.0), (4.0, -2.0), (1e-3, 0.0), (1.0, 100.0)])
def test_accuracy_is_relative_to_the_range_of_the_image(scale: float, offset: float) -> None:
    images, mask = noise(1, 2, 32, 32), top_pixels(smooth(1, 32), 0.6)
    exact = solved(images[0], mask[0, 0])
    torch.testing.assert_close(
        (solve_removed(scale * images + offset, mask)[0].double() - offset) / scale, exact, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("colour", [0.0, 0.3, -200.0])
def test_an_image_of_one_colour_stays_as_it_is_at_once(monkeypatch, colour: float) -> None:
    iterations = []
    solve = linear.Grid.residual
    monkeypatch.setattr(linear.Grid, "residual", lambda grid, field: iterations.append(grid.shape) or solve(grid, field))
    images, mask = torch.full((1, 2, 21, 20), colour), top_pixels(smooth(1, 40)[..., :21, :20], 0.7)
    torch.testing.assert_close(solve_removed(images, mask), images, rtol=4e-6, atol=0)  # float32, from one grid to the next
    assert iterations.count((1, 2, 22, 20)) <= 3


def test_an_image_that_is_gone_altogether_becomes_its_means_and_the_others_are_solved() -> None:
    images, mask = noise(3, 2, 16, 16), top_pixels(noise(3, 1, 16, 16), 0.5)
    mask[1] = True
    imputed = noisy_linear(images, mask, noise=0)
    means = images[1].mean((1, 2), keepdim=True).expand(2, 16, 16)
    torch.testing.assert_close(imputed[1], means, rtol=0, atol=1e-6)  # float32
    torch.testing.assert_close(imputed[[0, 2]], solve_removed(images, mask & ~mask.all((1, 2, 3), keepdim=True))[[0, 2]])


def test_nothing_gone_nothing_changes() -> None:
    images = noise(2, 3, 9, 8)
    assert torch.equal(noisy_linear(images, torch.zeros(2, 1, 9, 8, dtype=torch.bool)), images)


@pytest.mark.parametrize("noise_level", [0.0, 0.01])
def test_an_image_is_imputed_as_if_it_were_alone(noise_level: float) -> None:
    images = noise(7, 3, 32, 32)
    mask = torch.cat([top_pixels(noise(4, 1, 32, 32), 0.3), top_pixels(smooth(3, 32), 0.9)])
    together = noisy_linear(images, mask, noise=noise_level)
    for i in range(7):
        # float32: sums over a batch are taken in another order
        torch.testing.assert_close(
            noisy_linear(images[i : i + 1], mask[i : i + 1], noise=noise_level)[0], together[i], rtol=0, atol=1e-5
        )
    assert torch.equal(noisy_linear(images, mask, noise=noise_level), together)


def test_noise_is_normal_on_removed_pixels_alone() -> None:
    images, mask = noise(4, 3, 64, 64), top_pixels(noise(4, 1, 64, 64), 0.5)
    added = noisy_linear(images, mask, noise=0.1) - noisy_linear(images, mask, noise=0)
    goes = mask.expand_as(images)
    assert (added[~goes] == 0).all()
    drawn = added[goes] / 0.1
    # 24,576 numbers: standard errors of 0.0064 (mean), 0.0045 (deviation) and 0.003 (share within one), and four of them
    assert abs(float(drawn.mean())) < 0.026
    assert abs(float(drawn.std()) - 1) < 0.018
    assert abs(float((drawn.abs() < 1).float().mean()) - 0.6827) < 0.012


def test_noise_is_the_same_for_every_share_and_another_for_every_image_and_seed() -> None:
    images = noise(2, 1, 16, 16)
    few, many = (top_pixels(noise(2, 1, 16, 16), share) for share in (0.3, 0.6))

    def added(mask: Tensor, seed: int = 0) -> Tensor:
        return noisy_linear(images, mask, noise=0.1, seed=seed) - noisy_linear(images, mask, noise=0)

    # float32: numbers of 0.1 were added to numbers of up to 1
    torch.testing.assert_close(added(few)[few], added(many)[few], rtol=0, atol=1e-6)
    assert not torch.allclose(added(many)[0][many[0] & many[1]], added(many)[1][many[0] & many[1]], atol=1e-2)
    assert not torch.allclose(added(many)[many], added(many, seed=1)[many], atol=1e-2)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    noisy_linear(noise(1, 1, 8, 8), noise(1, 1, 8, 8) < 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_that_require_gradients_and_autocast_make_no_difference() -> None:
    images, mask = noise(1, 2, 16, 16), top_pixels(smooth(1, 16), 0.5)
    expected = noisy_linear(images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(noisy_linear(images.clone().requires_grad_(), mask), expected)
    with torch.inference_mode():
        assert torch.equal(noisy_linear(images, mask), expected)
