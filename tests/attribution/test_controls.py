"""The controls against SciPy's and torchvision's filters."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torchvision.transforms.functional import gaussian_blur

from fg_lightning.attribution import METHODS
from fg_lightning.attribution.controls import blur
from tests.helpers.attribution_cases import NETS, TARGETS, assert_close, maps_of, net


@pytest.mark.parametrize("net_name", NETS)
def test_edges_are_scipys_sobel(net_name: str) -> None:
    model, x = net(net_name)

    def magnitude(plane: np.ndarray) -> np.ndarray:
        return np.sqrt(sum(scipy.ndimage.sobel(plane, axis, mode="nearest") ** 2 for axis in range(plane.ndim)))

    expected = [[sum(magnitude(channel) for channel in image)] for image in x.numpy()]
    assert_close(maps_of("edges", model, x), torch.from_numpy(np.array(expected)))


def test_blurred_maps_are_torchvisions_gaussian_blur() -> None:
    model, x = net()
    plain = maps_of("fullgrad", model, x, TARGETS)
    assert_close(maps_of("blurred_fullgrad", model, x, TARGETS, sigma=1.2), gaussian_blur(plain, [9, 9], [1.2, 1.2]))
    assert_close(maps_of("blurred_random", model, x, seed=3), blur(maps_of("random", model, x, seed=3), 10 / 28))


@pytest.mark.parametrize("size", [(30,), (12, 11, 13)])
def test_a_blur_along_every_axis_is_scipys(size: tuple[int, ...]) -> None:
    x = torch.rand(1, 1, *size)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 1.5, mode="mirror", radius=5)
    assert_close(blur(x, 1.5)[0, 0], torch.from_numpy(expected))


def test_a_blur_wider_than_the_image_still_has_its_size() -> None:
    x = torch.rand(2, 1, 1, 4)
    assert blur(x, 50.0).shape == x.shape


def test_a_blur_of_no_width_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma must be more than 0 pixels, not 0"):
        METHODS["blurred_random"](net()[0], sigma=0)


def test_random_maps_are_uniform_and_differ_between_images_and_seeds() -> None:
    model, _ = net()
    maps = maps_of("random", model, torch.rand(2, 2, 100, 100))
    # 10,000 uniform numbers: their mean has a standard deviation of 0.003
    assert (maps.mean((1, 2, 3)) - 0.5).abs().max() < 0.015
    assert 0 <= maps.min() < 0.01
    assert 0.99 < maps.max() < 1
    assert not torch.equal(maps[0], maps[1])
    x = torch.rand(1, 2, 10, 8)
    assert not torch.equal(maps_of("random", model, x), maps_of("random", model, x, seed=1))
