"""Pixels of PIL images, replaced."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fg_lightning.roar.pixels import SMALL, with_values


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
    painted = with_values(image, mask, np.array(values))
    assert isinstance(painted, Image.Image)
    assert (painted.mode, painted.size) == (image.mode, image.size)
    for y in range(side):
        for x in range(side + 1):
            assert painted.getpixel((x, y)) == (colour if mask[y, x] else image.getpixel((x, y)))
    assert np.array_equal(np.asarray(image), pixels)
