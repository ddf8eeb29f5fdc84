"""The images of the control, which are the masks alone, and masks that are drawn anew, against masks by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fg_lightning.roar import ROARDataModule, SaliencyStore
from fg_lightning.roar.cells import MASKS
from tests.helpers.tiny_squares import SIDE, Data, Net

NUM_IMAGES = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, SIDE, SIDE, 3), dtype=np.uint8)

KINDS = {
    "PIL": ([Image.fromarray(image) for image in PIXELS], 255),
    "grey PIL": ([Image.fromarray(image[..., 0]) for image in PIXELS], 255),
    "16 bits": ([Image.fromarray(image[..., 0].astype(np.int32) * 16) for image in PIXELS], 16 * int(PIXELS[..., 0].max())),
    "bytes": ([*PIXELS], 255),
    "floats": ([*(PIXELS / np.float32(255))], 1),
    "large floats": ([*PIXELS.astype(np.float32)], float(PIXELS.max())),
    "tensors": ([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in PIXELS], 1),
    "standardised": ([torch.from_numpy(image).permute(2, 0, 1) / 200 - 0.6 for image in PIXELS], 1),
}
"""Images, and the number that stands for 1."""


def to_tensor(image):
    pixels = image.numpy().transpose(1, 2, 0) if isinstance(image, torch.Tensor) else np.asarray(image)
    return torch.from_numpy(pixels.astype(np.float32).reshape(SIDE, SIDE, -1).transpose(2, 0, 1).copy())


class Pictures(Dataset):
    def __init__(self, images, transform=to_tensor):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), index % 2


def data_of(images, transform=to_tensor):
    class Wild(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Pictures(images, transform), 5)

        def test_dataloader(self):
            return DataLoader(Pictures(images), 5)

    return Wild()


def removed(store, index, fraction):
    return np.asarray(store.ranks("train")[index]) < round(fraction * SIDE * SIDE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_every_channel_is_1_where_a_pixel_is_removed_and_else_0(tmp_path, kind, fraction):
    images, white = KINDS[kind]
    store = SaliencyStore.make(tmp_path / "s", Net(), data_of(images), "edges")
    data = ROARDataModule(data_of(images), store, fraction, fill=[1.0, 2.0], control=MASKS)  # the fill does not matter
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    for index in range(NUM_IMAGES):
        image, label = dataset[index]
        mask = np.where(removed(store, index, fraction), np.float32(white), np.float32(0))
        assert np.array_equal(image.numpy(), np.repeat(mask[None], to_tensor(images[0]).shape[0], 0))
        assert label == index % 2


def test_masks_are_augmented_and_normalized_like_images(store):
    data = ROARDataModule(Data(augment=True), store, 0.5, control=MASKS)
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    seen = {tuple(dataset[3][0].flatten().tolist()) for _ in range(20)}
    mask = np.where(removed(store, 3, 0.5), 1.0, -1.0)
    assert seen == {tuple(mask.flatten()), tuple(mask[::-1].flatten())}


def test_a_control_that_is_unknown_is_refused(store):
    with pytest.raises(ValueError, match="control must be 'masks' or None, not 'mask'"):
        ROARDataModule(Data(), store, 0.5, control="mask")


@pytest.mark.parametrize("control", [None, MASKS])
def test_masks_may_be_drawn_anew_whenever_an_image_is_read(store, control):
    data = ROARDataModule(Data(), store, 0.25, fill=255, redraw=True, control=control)
    data.setup("fit")
    (images, _), (again, _) = (next(iter(data.test_dataloader())) for _ in range(2))
    assert not torch.equal(images, again)
    if control == MASKS:
        assert [int(image.eq(1).sum()) for image in images] == [16] * len(images)
    dataset = data.train_dataloader().dataset
    torch.manual_seed(0)
    first = dataset[5][0]
    torch.manual_seed(0)
    assert torch.equal(dataset[5][0], first)
    torch.manual_seed(0)
    mask = torch.randperm(64).reshape(8, 8) < 16
    assert bool(first[0][mask].eq(1).all())


def test_drawn_masks_are_uniform(store):
    """Each of 64 pixels is removed in a quarter of 2,000 readings; 0.25 +- 5 standard deviations."""
    data = ROARDataModule(Data(), store, 0.25, control=MASKS, redraw=True)
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    torch.manual_seed(0)
    share = torch.stack([dataset[0][0][0].eq(1) for _ in range(2000)]).float().mean(0)
    assert float((share - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 2000) ** 0.5
