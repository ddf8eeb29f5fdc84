"""Pictures of the images, whatever kind the data set gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader

from fg_lightning.roar.dataset_views import views_of, write_examples

BYTES = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
BYTES[:, 0, 0], BYTES[:, 0, 1] = 0, 255

KINDS = {
    "PIL": [Image.fromarray(image) for image in BYTES],
    "bytes": [*BYTES],
    "floats": [*(BYTES / np.float32(255))],
    "tensors": [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in BYTES],
    "standardised": [torch.from_numpy(image).permute(2, 0, 1) / 50 - 3 for image in BYTES],
}


def written(folder, images):
    class Test(LightningDataModule):
        def test_dataloader(self):
            return DataLoader([(image, 0) for image in images], 2)

    write_examples(folder, views_of(Test())["test"])
    return [np.asarray(Image.open(path)) for path in sorted((folder / "examples").glob("*.png"))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_shown_as_it_is(tmp_path, kind):
    assert np.array_equal(written(tmp_path, KINDS[kind]), BYTES)


def test_grey_and_other_channels_are_shown_in_grey(tmp_path):
    grey = np.stack([BYTES[..., 0]] * 3, -1)
    assert np.array_equal(written(tmp_path, [Image.fromarray(image) for image in BYTES[..., 0]]), grey)
    assert np.array_equal(written(tmp_path, [np.stack([image[..., 0]] * 5, -1) for image in BYTES]), grey)
    deep = [Image.fromarray(image.astype(np.int32) * 16) for image in BYTES[..., 0]]  # 12 bits
    assert np.array_equal(written(tmp_path, deep), grey)


def test_a_dark_picture_stays_dark(tmp_path):
    dark = [image // 4 for image in BYTES]
    assert np.array_equal(written(tmp_path, [Image.fromarray(image) for image in dark]), dark)
