"""What a transform does to images against what it may do: everything but move their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fg_lightning.errors import UnfitData
from fg_lightning.roar import RandomImages
from fg_lightning.roar.dataset_views import views_of

SCALED = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


class Pictures(Dataset):
    """Noise, as what `kind` makes of it."""

    def __init__(self, transform, shape=(6, 9), kind=Image.fromarray):
        pixels = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
        self.images = [kind(one) for one in pixels]
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), index % 2


def viewed(dataset, **given):
    class Test(LightningDataModule):
        def test_dataloader(self):
            return DataLoader(dataset, 2)

    return views_of(Test(), **given)["test"]


def turned(image):
    return image.transpose(Image.Transpose.TRANSPOSE)


@pytest.mark.parametrize(
    "transform",
    [
        v2.Compose(SCALED),
        v2.Compose([*SCALED, v2.GaussianBlur(3, 1.0), v2.Normalize([0.5], [0.2])]),
        v2.Compose([*SCALED, v2.Lambda(lambda image: (image - image.mean()) / image.std())]),
        v2.Compose([*SCALED, v2.RandomInvert(1.0), v2.RandomAutocontrast(1.0)]),
        v2.Compose([v2.Resize(20), v2.CenterCrop((12, 15)), *SCALED]),
        v2.Compose([*SCALED, v2.CenterCrop(4), v2.Pad((2, 1, 3, 1))]),  # the border is lost, but nothing moves
        v2.PILToTensor(),
    ],
)
def test_what_leaves_pixels_where_they_are(transform):
    assert viewed(Pictures(transform)).transform is not None


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomHorizontalFlip(1.0),
        v2.RandomVerticalFlip(1.0),
        v2.Lambda(lambda image: image.rotate(180)),
        v2.Lambda(turned),
        v2.Lambda(lambda image: image.rotate(90)),
        v2.Lambda(lambda image: image.resize((18, 18)).crop((5, 6, 14, 15))),  # shows the middle twice as large
    ],
)
def test_what_moves_pixels_is_refused(transform):
    with pytest.raises(UnfitData, match=r"the transform of the test images moves pixel \(\d, \d\) to \(\d, \d\)"):
        viewed(Pictures(v2.Compose([transform, *SCALED]), shape=(9, 9)))


def test_what_turns_images_is_prepared():
    dataset = Pictures(v2.Compose([v2.Lambda(turned), *SCALED]))
    with pytest.raises(UnfitData, match=r"are \(6, 9\) before their transform, but \(9, 6\) after it"):
        viewed(dataset)
    view = viewed(dataset, prepare=turned, transform=v2.Compose(SCALED))
    assert view.shape == (9, 6)
    assert torch.equal(view.transform(view.plane.image(2)), dataset[2][0])


@pytest.mark.parametrize("value", [0, 7, 255])
def test_blank_images_are_tried_too(value):
    def blank(pixels):
        return Image.new("L", (9, 9), value)

    assert viewed(Pictures(v2.Compose(SCALED), kind=blank)).shape == (9, 9)
    with pytest.raises(UnfitData, match="moves pixel"):
        viewed(Pictures(v2.Compose([v2.Lambda(turned), *SCALED]), kind=blank))


@pytest.mark.parametrize(("shape", "size"), [((9, 2), (9,)), ((3, 4, 5, 2), (3, 4, 5))])
def test_signals_and_volumes(shape, size):
    def tensor(pixels):
        return torch.from_numpy(np.moveaxis(pixels, -1, 0).copy()).float()

    assert viewed(Pictures(lambda image: image / 255, shape, tensor)).shape == size
    with pytest.raises(UnfitData, match="moves pixel"):
        viewed(Pictures(lambda image: image.flip(1), shape, tensor))


def test_what_is_done_beside_the_transform_is_refused():
    class Halved(Pictures):
        def __getitem__(self, index):
            image = self.transform(self.images[index])
            return (image / 2 + 0.1 if isinstance(image, torch.Tensor) else image), 0

    with pytest.raises(UnfitData, match=r"image 0 of the test data set is not its raw image after the attribute `transform`"):
        viewed(Halved(v2.Compose(SCALED)))
    own = v2.Compose([*SCALED, v2.Lambda(lambda image: image / 2 + 0.1)])
    assert viewed(Halved(v2.Compose(SCALED)), transform=own).transform is own


def test_chance_in_the_transform_is_told_from_chance_in_the_data_set():
    with pytest.raises(RandomImages, match="the evaluation transform, that of the test images, is random"):
        viewed(Pictures(v2.Compose([*SCALED, v2.GaussianNoise()])))

    class Noisy(Pictures):
        def __getitem__(self, index):
            return torch.rand(1, 6, 9), 0

    with pytest.raises(RandomImages, match="the test data set gives a different image each time for index 0"):
        viewed(Noisy(v2.Compose(SCALED)))


def test_a_transform_that_takes_something_else_is_named():
    def scaled(image):
        return v2.functional.to_image(image).float() / 255

    with pytest.raises(UnfitData, match=r"fails on its raw images \(ZeroDivisionError.*pass .* as transform="):
        viewed(Pictures(scaled), transform=lambda image: 1 / 0)
