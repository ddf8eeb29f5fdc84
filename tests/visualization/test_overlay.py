"""Images as the user sees them, with saliency over them."""

import matplotlib
import numpy as np
import pytest
import torch

from fg_lightning.visualization import Normalization, overlay, to_rgb
from fg_lightning.visualization.saliency_overlay import (
    COLORMAP,
    SIGNED_COLORMAP,
    add_colour_bar,
    colour_bar,
    enlarge,
    heat_levels,
    overlay_rgb,
    overlays_rgb,
    scale_to_unit,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def original(seed=0):
    return torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(seed))


def normalized(image, mean=MEAN, std=STD):
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_a_normalization_is_undone():
    image = original()
    expected = (255 * image).round().byte().permute(1, 2, 0).numpy()
    # a pixel may fall on the other side of a half
    assert np.abs(to_rgb(normalized(image), Normalization(MEAN, STD)).astype(int) - expected).max() <= 1
    of_bytes = Normalization([255 * m for m in MEAN], [255 * s for s in STD])
    assert np.abs(to_rgb(normalized(image), of_bytes).astype(int) - expected).max() <= 1
    one_for_all = Normalization([0.5], [0.5])
    assert np.abs(to_rgb(2 * image - 1, one_for_all).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("normalization", [None, Normalization((0.5, 0.5), (1, 1)), Normalization([100.0] * 3, [100.0] * 3)])
def test_without_a_normalization_that_fits_an_image_is_shown_by_its_own_range(normalization):
    image = normalized(original())
    picture = to_rgb(image, normalization)
    assert (picture.min(), picture.max()) == (0, 255)
    expected = 255 * (image - image.min()) / (image.max() - image.min())
    assert np.abs(picture - expected.permute(1, 2, 0).numpy()).max() <= 0.51  # rounding


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_than_three_are_shown_in_grey(channels):
    image = torch.rand(channels, 6, 5)
    picture = to_rgb(image)
    assert picture.shape == (6, 5, 3)
    assert (picture[..., 0] == picture[..., 1]).all()
    assert (picture[..., 0] == picture[..., 2]).all()


def test_a_constant_image_is_shown():
    assert to_rgb(torch.full((3, 4, 4), 7.0)).shape == (4, 4, 3)


@pytest.mark.parametrize(("mean", "std", "reason"), [((), (), "a mean and a std"), ((1,), (1, 2), "a mean"), ((1,), (0,), "zero")])
def test_a_normalization_that_makes_no_sense_is_refused(mean, std, reason):
    with pytest.raises(ValueError, match=reason):
        Normalization(mean, std)


def overlay_by_definition(image, values, strength=0.7):
    """Pixel by pixel."""
    grey = to_rgb(image).astype(float).mean(-1)
    low, high = values.min(), np.percentile(values, 99.5)
    picture = np.zeros((*values.shape, 3))
    for place in np.ndindex(values.shape):
        level = min(max((values[place] - low) / (high - low), 0), 1)
        colour = 255 * np.array(matplotlib.colormaps[COLORMAP](int(level * 255))[:3])
        opacity = strength * (0.5 + 0.5 * level)
        picture[place] = (1 - opacity) * grey[place] + opacity * colour
    return picture


def test_an_overlay_is_colour_over_grey():
    image, saliency = original(), torch.rand(1, 20, 30)
    drawn = overlay(image, saliency)
    assert drawn.shape == (120, 180, 3)
    expected = overlay_by_definition(image, saliency[0].numpy())
    assert np.abs(drawn[::6, ::6] - expected).max() <= 1  # rounding, and float32
    assert (drawn == drawn[::6, ::6].repeat(6, 0).repeat(6, 1)).all()


@pytest.mark.parametrize("is_signed", [False, True])
def test_overlays_that_are_drawn_together_are_those_drawn_one_by_one(is_signed):
    pictures = [to_rgb(original(seed)) for seed in range(4)]
    maps = (
        torch.randn(4, 1, 20, 30, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1, 100, 1e-20, 0])[:, None, None, None]
    )
    together = overlays_rgb(pictures, maps, is_signed=is_signed)
    for picture, saliency, drawn in zip(pictures, maps, together, strict=True):
        assert (enlarge(drawn) == overlay_rgb(picture, saliency, is_signed=is_signed)).all()


def test_one_pixel_does_not_take_all_the_contrast():
    values = np.random.default_rng(0).random((40, 40)).astype(np.float32)
    values[3, 3] = 1000
    assert heat_levels(values)[0].mean() > 0.4


def test_negative_values_are_told_from_positive_ones_and_zero_is_white():
    values = np.linspace(-1, 3, 50, dtype=np.float32).reshape(5, 10)
    level, is_signed = heat_levels(values)
    assert is_signed
    assert ((level > 0.5) == (values > 0)).all()
    zero, _ = heat_levels(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32))
    assert zero.tolist() == [[0.0, 0.5, 1.0]]
    middle = matplotlib.colormaps[SIGNED_COLORMAP](0.5)[:3]
    assert min(middle) > 0.9


def test_a_constant_map_is_drawn_at_its_lowest():
    assert scale_to_unit(np.ones((4, 4), dtype=np.float32)).max() == 0
    assert heat_levels(np.zeros((4, 4), dtype=np.float32))[1] is False


def test_the_colour_bar_goes_from_highest_to_lowest_and_its_lightness_falls_all_the_way():
    bar = colour_bar(50).astype(float)
    assert bar.shape == (50, 8, 3)
    lightness = bar[:, 0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) < 1).all()
    assert add_colour_bar(np.zeros((50, 30, 3), np.uint8)).shape == (50, 44, 3)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((28, 28), 112, (112, 112)),
        ((8, 20), 112, (112, 280)),
        ((300, 200), 112, (300, 200)),
        ((28, 28), 224, (224, 224)),
        ((96, 96), 224, (288, 288)),
    ],
)
def test_small_pictures_are_enlarged_by_a_whole_factor(size, side, expected):
    picture = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    drawn = enlarge(picture, side)
    assert drawn.shape[:2] == expected
    factor = expected[0] // size[0]
    assert (drawn[::factor, ::factor] == picture).all()
