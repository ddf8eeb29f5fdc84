"""Pictures that are encoded quickly come back as they were."""

import io

import numpy as np
import pytest
from PIL import Image

from fg_lightning.visualization.png_encoding import encode_png
from fg_lightning.visualization.saliency_overlay import enlarge


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


def test_an_enlarged_picture_beside_a_gradient_is_stored_as_small_as_by_pillow():
    """Such as an overlay beside its colour bar. Runs of equal bytes alone would take several times as much."""
    picture = enlarge(np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8), 224)
    bar = np.broadcast_to(np.arange(224, dtype=np.uint8)[:, None, None], (224, 14, 3))
    both = np.concatenate([picture, bar], 1)
    by_pillow = io.BytesIO()
    Image.fromarray(both).save(by_pillow, "PNG")
    assert len(encode_png(both)) < 1.5 * len(by_pillow.getvalue())
