"""Pixels of PIL images, replaced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fg_lightning.errors import UnfitData
from fg_lightning.removal import noisy_linear
from fg_lightning.roar.image_pixels import SMALL, Picture, fill_with_function, fill_with_values, spatial_shape


@pytest.mark.parametrize("side", [5, 90])
@pytest.mark.parametrize(
    ("mode", "values", "colour"),
    [
        ("L", [7.4], 7),
        ("L", [300.0], 255),
        ("RGB", [1.0, 2.6, 255.0], (1, 3, 255)),
        ("RGB", [9.0], (9, 9, 9)),
        ("RGB", [-3.0], (0, 0, 0)),
    ],
)
def test_masked_pixels_and_no_others_have_the_colour(side: int, mode: str, values: list[float], colour: object) -> None:
    assert (side * side < SMALL) == (side == 5)  # both ways of painting
    draw = np.random.default_rng(0)
    shape = (side, side + 1) if mode == "L" else (side, side + 1, 3)
    pixels = draw.integers(0, 256, shape, dtype=np.uint8)
    image, mask = Image.fromarray(pixels), draw.random((side, side + 1)) < 0.4
    painted = fill_with_values(image, mask, np.array(values))
    assert isinstance(painted, Image.Image)
    assert (painted.mode, painted.size) == (image.mode, image.size)
    for y in range(side):
        for x in range(side + 1):
            assert painted.getpixel((x, y)) == (colour if mask[y, x] else image.getpixel((x, y)))
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(("value", "nearest"), [(300.0, 255), (-2.0, 0), (7.6, 8)])
def test_bytes_of_every_kind_take_the_nearest_that_they_can_be(value: float, nearest: int) -> None:
    pixels, mask = np.full((2, 3), 100, np.uint8), np.eye(2, 3, dtype=bool)
    expected = np.where(mask, nearest, 100)
    for image in (pixels, Image.fromarray(pixels), torch.from_numpy(pixels)[None]):
        assert np.array_equal(np.asarray(fill_with_values(image, mask, np.array([value]))).squeeze(), expected)
    assert np.array_equal(
        np.asarray(fill_with_values(Image.fromarray(pixels.astype(np.int32)), mask, np.array([4000.0])))[0], [4000, 100, 100]
    )


@pytest.mark.parametrize("kind", [Image.fromarray, np.asarray, lambda pixels: torch.from_numpy(pixels)[None]])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_fill_function_changes_what_goes_and_nothing_else(kind: object, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9)).astype(dtype)
    mask = np.random.default_rng(1).random((6, 9)) < 0.3
    image: Picture = kind(pixels)  # type: ignore[operator]
    after = np.asarray(fill_with_function(image, mask, lambda images, where: 0 * images)).squeeze()
    assert after.dtype == dtype
    assert np.array_equal(after, np.where(mask, 0, pixels))


def test_integers_of_unknown_range_are_refused() -> None:
    pixels, mask = np.arange(0, 5400, 100, dtype=np.int32).reshape(6, 9), np.eye(6, 9, dtype=bool)
    for image in (Image.fromarray(pixels), pixels, torch.from_numpy(pixels.astype(np.int16))[None]):
        with pytest.raises(UnfitData, match=r"but these hold torch.int\d\d, .* give them as float32 in 0..1"):
            fill_with_function(image, mask, noisy_linear)


@pytest.mark.parametrize(("mode", "better"), [("I;16", "I"), ("RGBA", "RGB"), ("1", "RGB")])
def test_the_mode_to_convert_to_keeps_what_a_picture_holds(mode: str, better: str) -> None:
    picture = Image.new(mode, (3, 2))
    with pytest.raises(UnfitData, match=rf"are of mode '{mode}'; let the data set give image.convert\('{better}'\)"):
        spatial_shape(picture)
    assert spatial_shape(picture.convert(better)) == (2, 3)


def test_sixteen_bits_survive_the_advice() -> None:
    pixels = np.arange(0, 60000, 10000, dtype=np.uint16).reshape(2, 3)
    assert np.array_equal(np.asarray(Image.fromarray(pixels).convert("I")), pixels)
