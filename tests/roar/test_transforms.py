"""The ways in which data sets call their transform, and data sets that do not call what they are said to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from fg_lightning.errors import UnfitData
from fg_lightning.roar import CannotRun, ROARDataModule, SaliencyStore
from fg_lightning.roar.dataset_transforms import strip_transform
from fg_lightning.roar.dataset_views import views_of

PIXELS = np.random.default_rng(0).random((12, 5, 7, 3), dtype=np.float32)
"""Twelve images [5, 7, 3] in 0..1."""


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1) * 2 - 1


class Called(Dataset):
    """A data set whose `__getitem__` calls its transform in its own way."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        return self.transform(PIXELS[index].copy()), index % 2


class ByName(Called):
    def __getitem__(self, index):
        return self.transform(image=PIXELS[index].copy())["image"], index % 2


class Jointly(Called):
    def __getitem__(self, index):
        return self.transform(PIXELS[index].copy(), index % 2)


class OfSamples(Called):
    def __getitem__(self, index):
        return self.transform({"image": PIXELS[index].copy(), "label": index % 2})


class OfPairs(Called):
    def __getitem__(self, index):
        return self.transform((PIXELS[index].copy(), index % 2))


CALLED = {
    Called: tensor,
    ByName: lambda image: {"image": tensor(image)},
    Jointly: lambda image, label: (tensor(image), label),
    OfSamples: lambda sample: {"image": tensor(sample["image"]), "label": sample["label"]},
    OfPairs: lambda sample: (tensor(sample[0]), sample[1]),
}


class Split(LightningDataModule):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self):
        return DataLoader(self.make(), 4)


def image_of(sample):
    return sample["image"] if isinstance(sample, dict) else sample[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(60, 2))
    return SaliencyStore.make(tmp_path_factory.mktemp("store"), net, Split(lambda: Called(tensor)), "gradient")


@pytest.mark.parametrize("kind", CALLED)
@pytest.mark.parametrize("whole", [lambda one: one, lambda one: ConcatDataset([Subset(one, range(5)), Subset(one, range(5, 12))])])
def test_pixels_go_before_the_transform_however_it_is_called(kind, whole, store):
    data = ROARDataModule(Split(lambda: whole(kind(CALLED[kind]))), store, 0.4, fill=[0.25, 0.5, 1.0])
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    for index, ranks in enumerate(store.ranks("train")):
        expected = PIXELS[index].copy()
        expected[np.asarray(ranks) < 14] = [0.25, 0.5, 1.0]
        assert torch.equal(image_of(dataset[index]), tensor(expected))
        assert list(dataset[index].values() if isinstance(dataset[index], dict) else dataset[index])[1] == index % 2


def test_a_transform_that_was_applied_before_is_not_applied_again():
    class Kept(Called):
        def __init__(self):
            self.transform = tensor
            self.images = [tensor(pixels) for pixels in PIXELS]

        def __getitem__(self, index):
            return self.images[index], 0

    class Around(Dataset):
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            if name == "inner":
                raise AttributeError(name)
            return getattr(self.inner, name)

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, index):
            return self.inner[index]

    for dataset in (Kept(), Around(Called(tensor))):
        view = views_of(Split(lambda given=dataset: given))["train"]
        assert view.transform is None
        assert torch.equal(view.plane.image(3), tensor(PIXELS[3]))


def test_the_data_set_keeps_its_transform():
    dataset = ByName(CALLED[ByName])
    bare, _ = strip_transform(dataset)
    assert np.array_equal(bare[2][0], PIXELS[2])
    assert torch.equal(dataset[2][0], tensor(PIXELS[2]))


def test_what_cannot_be_taken_apart_says_what_to_pass():
    class Several(Called):
        def __getitem__(self, index):
            return self.transform(image=PIXELS[index], weight=1.0)["image"], 0

    dataset = Several(lambda image, weight: {"image": tensor(image)})
    with pytest.raises(UnfitData, match=r"with 0 arguments and image, weight by name.*transform=\.\.\., a function from image"):
        strip_transform(dataset)
    bare, transform = strip_transform(dataset, tensor)
    assert transform is tensor
    assert np.array_equal(bare[1][0], PIXELS[1])

    class Processed(Called):
        def __getitem__(self, index):
            return self.transform(PIXELS[index])["pixel_values"], 0

    with pytest.raises(
        UnfitData, match=r"Processed cannot give its images without its transform \(IndexError: .*self.transform last"
    ):
        strip_transform(Processed(lambda image: {"pixel_values": tensor(image)}))


def test_parts_with_different_transforms_take_one_for_all():
    parts = ConcatDataset([Called(tensor), Called(torch.from_numpy)])
    with pytest.raises(CannotRun, match=r"different transforms; .* transform=\.\.\."):
        strip_transform(parts)
    bare, transform = strip_transform(parts, tensor)
    assert transform is tensor
    assert np.array_equal(bare[15][0], PIXELS[3])
