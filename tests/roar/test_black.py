"""The fill black over images that are normalized before, after or never."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from fg_lightning.attribution import METHODS
from fg_lightning.demo import DigitsDataModule, load_digits
from fg_lightning.removal import find_fill
from fg_lightning.roar import CannotRun, ROARDataModule, SaliencyStore
from fg_lightning.roar.config import ROARConfig
from fg_lightning.roar.datamodule import Removal, check_removal
from fg_lightning.roar.dataset_views import views_of
from fg_lightning.roar.image_pixels import fill_with_function
from fg_lightning.visualization import Normalization
from tests.helpers.tiny_squares import Net


class Normalized(LightningDataModule):
    """Images from -1 to 1, as the demo's digits are, and their data set."""

    def __init__(self, normalization=None, transform=None, low=-1.0):
        super().__init__()
        self.normalization = normalization
        self.transform = transform
        self.low = low

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(4, 2, 6, 6, generator=generator) * (1 - self.low) + self.low

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), 0

    def test_dataloader(self):
        return DataLoader(self, 2)


def of_black(tmp_path, base):
    store = SaliencyStore.make(tmp_path / "store", nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), base, METHODS["random"])
    data = ROARDataModule(base, store, 0.5, fill="black")
    data.setup("fit")
    (images, _), *_ = data.test_dataloader()
    return images, torch.from_numpy(np.asarray(store.ranks("test")[:2]).astype(int))[:, None] < 18


@pytest.mark.parametrize("normalization", [((0.5, 0.25), (0.5, 0.25)), Normalization((0.5, 0.25), (0.5, 0.25)), (0.5, 0.5)])
def test_black_of_normalized_images_is_that_of_the_datamodules_normalization(tmp_path, normalization):
    base = Normalized(normalization)
    images, gone = of_black(tmp_path, base)
    assert torch.equal(images, torch.where(gone, torch.tensor(-1.0), base.images[:2]))


@pytest.mark.parametrize("transform", [None, v2.Normalize([0.5, 0.5], [0.25, 0.25])])
def test_black_is_zero_of_images_that_are_normalized_later_or_never(tmp_path, transform):
    base = Normalized(((0.5, 0.5), (0.25, 0.25)), transform, low=0.0)
    images, gone = of_black(tmp_path, base)
    before = torch.where(gone, torch.tensor(0.0), base.images[:2])
    assert torch.equal(images, before if transform is None else transform(before))


@pytest.mark.parametrize(
    "base", [Normalized(), Normalized((0.25, 0.5)), Normalized((0.5, 0.5), v2.Normalize([0.5, 0.5], [0.25, 0.25]))]
)
def test_black_that_is_not_known_is_refused_with_what_to_declare(tmp_path, base):
    with pytest.raises(CannotRun, match=r"Give the datamodule an attribute normalization = \(mean, std\), .* or give the number"):
        of_black(tmp_path, base)


@pytest.mark.parametrize("base", [Normalized(), Normalized((0.5, 0.5))])
def test_an_experiment_refuses_black_that_is_not_known_before_it_trains(tmp_path, base):
    base.setup("fit")
    views = views_of(base)
    config = ROARConfig(tmp_path, Normalized, Net, fills=["dataset_mean", "black"])
    if base.normalization is None:
        with pytest.raises(CannotRun, match="fill black is 0 for images that are not normalized"):
            check_removal(config, views, [0.5])
    else:
        check_removal(config, views, [0.5])


@pytest.mark.parametrize("kind", ["RGB", "L", "tensor", "array"])
def test_black_of_bytes_is_what_the_fill_function_makes(kind):
    pixels = np.random.default_rng(0).integers(1, 256, (6, 5, 3), dtype=np.uint8)
    image = {"tensor": torch.from_numpy(pixels).permute(2, 0, 1), "array": pixels}.get(kind)
    image = Image.fromarray(pixels).convert(kind) if image is None else image
    mask = np.random.default_rng(1).random((6, 5)) < 0.5
    filled = Removal(0.5, "morf", "black", False, [0.0])(image, mask)
    expected = fill_with_function(image, mask, find_fill("black"))
    assert type(filled) is type(expected)
    assert np.array_equal(np.asarray(filled), np.asarray(expected))
    assert np.asarray(filled).min() == 0


def test_black_of_the_demos_digits_is_their_paper():
    base = DigitsDataModule()
    base.setup("fit")
    assert views_of(base)["test"].normalization == base.normalization
    black = find_fill("black", normalization=base.normalization)
    image = load_digits().tensors[0][:1]
    assert torch.equal(black(image, torch.ones(1, 1, 28, 28, dtype=torch.bool)), image.min().expand_as(image))
