"""What data sets of every make say of their images."""

import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision.transforms import Compose, Normalize, ToTensor, v2

from fg_lightning.callbacks.facts import Facts

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Images(Dataset):
    def __init__(self, transform=None, **attributes):
        self.transform = transform
        self.samples = list(range(100_000))
        vars(self).update(attributes)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.transform(index)


def closure():
    transform = Compose([ToTensor(), Normalize(MEAN, STD)])
    return lambda sample: transform(sample)


GLOBAL_TRANSFORM = v2.Compose([v2.ToDtype(torch.float32), v2.Normalize(MEAN, STD)])


def reads_a_global(sample):
    return GLOBAL_TRANSFORM(sample)


class Albumentations:
    class Normalize:
        mean, std, max_pixel_value = MEAN, STD, 255.0

    def __init__(self):
        self.transforms = [self.Normalize()]


PLACES = {
    "torchvision": lambda: DataLoader(Images(Compose([ToTensor(), Normalize(MEAN, STD)]))),
    "torchvision v2": lambda: DataLoader(Images(GLOBAL_TRANSFORM)),
    "tensors": lambda: DataLoader(Images(Normalize(torch.tensor(MEAN), torch.tensor(STD)))),
    "subset of a concatenation": lambda: DataLoader(Subset(ConcatDataset([Images(), Images(Normalize(MEAN, STD))]), [0, 5])),
    "closure": lambda: DataLoader(Images(closure())),
    "global": lambda: DataLoader(Images(reads_a_global)),
    "collate function": lambda: DataLoader(Images(), collate_fn=partial(reads_a_global)),
    "albumentations": lambda: DataLoader(Images(Albumentations())),
    "datamodule": lambda: SimpleNamespace(trainer=None, normalize=Normalize(MEAN, STD)),
    "bound method": lambda: DataLoader(Images(SimpleNamespace(step=Normalize(MEAN, STD)).step.forward)),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_normalization_is_found(place):
    found = Facts(PLACES[place]()).normalization()
    assert found.mean == pytest.approx(MEAN)
    assert found.std == pytest.approx(STD)


def test_where_there_is_none_there_is_none():
    endless = SimpleNamespace()
    endless.itself = endless
    nothing = DataLoader(Images(Compose([ToTensor()]), itself=endless))
    assert Facts(nothing, None, object()).normalization() is None
    assert Facts(nothing).class_names(3) is None


def test_the_first_root_goes_before_the_others():
    first, second = Normalize((0.1,), (1.0,)), Normalize((0.9,), (1.0,))
    assert Facts(DataLoader(Images(first)), DataLoader(Images(second))).normalization().mean == (0.1,)


class OfProperties(Images):
    @property
    def classes(self):
        return ["cat", "dog", "owl"]


class Failing(Images):
    @property
    def classes(self):
        raise RuntimeError("not downloaded")

    def __getattr__(self, name):
        raise KeyboardInterrupt(f"{name} must not be asked for")


NAMED = {
    "torchvision": lambda: DataLoader(Images(classes=["cat", "dog", "owl"])),
    "property": lambda: DataLoader(OfProperties()),
    "class attribute": lambda: DataLoader(type("Named", (Images,), {"classes": ["cat", "dog", "owl"]})()),
    "subset": lambda: DataLoader(Subset(Images(classes=("cat", "dog", "owl")), [0])),
    "Hugging Face": lambda: DataLoader(
        Images(_info=SimpleNamespace(features={"image": 0, "label": SimpleNamespace(names=["cat", "dog", "owl"])}))
    ),
    "torchvision's weights": lambda: SimpleNamespace(categories=["cat", "dog", "owl"]),
}


@pytest.mark.parametrize("place", NAMED)
def test_class_names_are_found(place):
    facts = Facts(NAMED[place]())
    assert facts.class_names(3) == ["cat", "dog", "owl"]
    assert facts.class_names(4) is None


def test_an_image_folder_may_have_fewer_classes_than_the_network():
    folder = DataLoader(Images(classes=["cat", "dog"], class_to_idx={"cat": 0, "dog": 1}))
    assert Facts(folder).class_names(1000) == ["cat", "dog"]
    assert Facts(folder).class_names(1) is None
    assert Facts(folder, Images(classes=["a", "b", "c"])).class_names(3) == ["a", "b", "c"]


def of_an_empty_cell():
    missing = 0

    def transform(sample):
        return missing

    del missing
    return transform


BROKEN = {"empty closure cell": of_an_empty_cell, "dead proxy": lambda: weakref.proxy(Images())}


@pytest.mark.parametrize("name", BROKEN)
def test_an_object_that_fails_at_everything_is_passed_over(name):
    broken = BROKEN[name]()
    data = DataLoader(Images(Normalize(MEAN, STD), broken=broken, classes=["cat", "dog"]))
    assert Facts(broken, data).normalization().mean == pytest.approx(MEAN)
    assert Facts(broken, data).class_names(2) == ["cat", "dog"]


def test_what_objects_make_up_or_fail_at_is_left_alone():
    assert Facts(Failing()).class_names(3) is None
