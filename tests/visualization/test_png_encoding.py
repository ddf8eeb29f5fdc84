"""Pictures that are encoded quickly come back as they were."""

import io

import numpy as np
import pytest
from PIL import Image

from fg_lightning.visualization.png_encoding import encode_png


@pytest.mark.parametrize("kind", ["noise", "black", "smooth"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (40, 61)])
def test_a_png_holds_every_pixel(size, kind):
    height, width = size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "smooth":
        picture = (np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([1, 3, 7])).astype(np.uint8)
    picture *= kind != "black"
    with Image.open(io.BytesIO(encode_png(picture))) as read:
        read.load()  # which checks the checksums
        assert (read.format, read.mode, read.size) == ("PNG", "RGB", (width, height))
        assert (np.asarray(read) == picture).all()


def test_a_view_of_another_picture_is_encoded_as_it_looks():
    whole = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    view = whole[::-2, 3:20]
    assert (np.asarray(Image.open(io.BytesIO(encode_png(view)))) == view).all()
