"""What data sets of every make say of their images."""

import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import Compose, Normalize, ToTensor, v2
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import normalize

from fg_lightning.recording.dataset_metadata import DatasetMetadata

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


class WithTransform(Images):
    transform_of_all = Normalize(MEAN, STD)

    def __init__(self):
        super().__init__()


class ReadsAGlobal(Images):
    def __getitem__(self, index):
        return GLOBAL_TRANSFORM(index)


PLACES = {
    "torchvision": lambda: DataLoader(Images(Compose([ToTensor(), Normalize(MEAN, STD)]))),
    "torchvision v2": lambda: DataLoader(Images(GLOBAL_TRANSFORM)),
    "tensors": lambda: DataLoader(Images(Normalize(torch.tensor(MEAN), torch.tensor(STD)))),
    "subset of a concatenation": lambda: DataLoader(Subset(ConcatDataset([Images(), Images(Normalize(MEAN, STD))]), [0, 5])),
    "class attribute": lambda: DataLoader(WithTransform()),
    "global of the data set's own method": lambda: DataLoader(ReadsAGlobal()),
    "closure": lambda: DataLoader(Images(closure())),
    "global": lambda: DataLoader(Images(reads_a_global)),
    "collate function": lambda: DataLoader(Images(), collate_fn=partial(reads_a_global)),
    "albumentations": lambda: DataLoader(Images(Albumentations())),
    "datamodule": lambda: SimpleNamespace(trainer=None, normalize=Normalize(MEAN, STD)),
    "bound method": lambda: DataLoader(Images(SimpleNamespace(step=Normalize(MEAN, STD)).step.forward)),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_normalization_is_found(place):
    found = DatasetMetadata(PLACES[place]()).normalization()
    assert found.mean == pytest.approx(MEAN)
    assert found.std == pytest.approx(STD)


def test_where_there_is_none_there_is_none():
    endless = SimpleNamespace()
    endless.itself = endless
    nothing = DataLoader(Images(Compose([ToTensor()]), itself=endless))
    assert DatasetMetadata(nothing, None, object()).normalization() is None
    assert DatasetMetadata(nothing).class_names(3) is None


def test_the_first_root_goes_before_the_others():
    first, second = Normalize((0.1,), (1.0,)), Normalize((0.9,), (1.0,))
    assert DatasetMetadata(DataLoader(Images(first)), DataLoader(Images(second))).normalization().mean == (0.1,)


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
    facts = DatasetMetadata(NAMED[place]())
    assert facts.class_names(3) == ["cat", "dog", "owl"]
    assert facts.class_names(4) is None


def test_names_of_another_number_of_classes_are_none():
    folder = DataLoader(Images(classes=["cat", "dog"], class_to_idx={"cat": 0, "dog": 1}))
    assert DatasetMetadata(folder).class_names(1000) is None
    assert DatasetMetadata(folder).class_names(1) is None
    assert DatasetMetadata(folder, Images(classes=["a", "b", "c"])).class_names(3) == ["a", "b", "c"]


def test_names_of_samples_are_no_classes():
    assert DatasetMetadata(DataLoader(Images(names=["a.png", "b.png", "c.png"]))).class_names(3) is None


COUNTED = {
    "names": (lambda: Images(classes=["cat", "dog", "owl"]), {3}),
    "labels in a list": (lambda: Images(targets=[0, 4, 1]), {5}),
    "labels in a tensor": (lambda: Images(labels=torch.tensor([0, 6], dtype=torch.uint8)), {7}),
    "labels in an array": (lambda: Images(_labels=np.array([3, 1])), {4}),
    "tensors": (lambda: TensorDataset(torch.rand(4, 3), torch.arange(4)), {4}),
    "names and labels": (lambda: Images(classes=["cat", "dog", "owl"], targets=[0, 1, 1, 0]), {2, 3}),
    "a part": (lambda: Subset(Images(targets=[0, 4, 1]), [0]), {5}),
    "numbers": (lambda: Images(targets=[0.5, 1.0]), set()),
    "texts": (lambda: Images(labels="abc", targets=["x"]), set()),
    "matrices": (lambda: Images(targets=torch.zeros(4, 3).long()), set()),
    "nothing": (lambda: Images(), set()),
}


@pytest.mark.parametrize("name", COUNTED)
def test_the_number_of_classes_is_read_from_names_and_labels(name):
    data, counts = COUNTED[name]
    assert DatasetMetadata(DataLoader(data())).class_counts() == counts


# --- numbers of every make


class Kornia(nn.Module):
    """Buffers, as kornia.enhance.Normalize (0.9) keeps them."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)


def named(name, **attributes):
    """An object of a class of that name, as a library that is not there has it."""
    made = type(name, (), {})()
    vars(made).update(attributes)
    return made


NORMALIZING = {
    "kornia.enhance": lambda: type("Normalize", (Kornia,), {})(MEAN, STD),
    "kornia.augmentation": lambda: named("Normalize", flags={"mean": torch.tensor([MEAN]), "std": torch.tensor([STD])}),
    "albumentations": lambda: named("Normalize", mean=MEAN, std=STD, max_pixel_value=255.0, normalization="standard"),
    "MONAI": lambda: named("NormalizeIntensity", subtrahend=np.array(MEAN), divisor=np.array(STD), nonzero=False),
    "MONAI, for dictionaries": lambda: named(
        "NormalizeIntensityd", normalizer=named("NormalizeIntensity", subtrahend=MEAN, divisor=STD, nonzero=False)
    ),
    "Hugging Face": lambda: named("ViTImageProcessor", image_mean=list(MEAN), image_std=list(STD), do_normalize=True),
    "torchvision's preset": lambda: ImageClassification(crop_size=8, mean=MEAN, std=STD),
    "torchvision's function": lambda: partial(normalize, mean=list(MEAN), std=list(STD)),
    "planes": lambda: named("Normalize", mean=torch.tensor(MEAN).reshape(1, 3, 1, 1), std=torch.tensor(STD).reshape(3, 1, 1)),
}


@pytest.mark.parametrize("name", NORMALIZING)
@pytest.mark.parametrize("wrapped", [lambda t: t, lambda t: Compose([t]), lambda t: [{"image": t}], lambda t: lambda x: t(x)])
def test_the_numbers_of_a_normalization_are_read(name, wrapped):
    found = DatasetMetadata(DataLoader(Images(wrapped(NORMALIZING[name]())))).normalization()
    assert found.mean == pytest.approx(MEAN)
    assert found.std == pytest.approx(STD)


UNREADABLE = {
    "statistics of each image": lambda: named("Normalize", mean=MEAN, std=STD, normalization="image_per_channel"),
    "no numbers": lambda: named("Normalize", mean=None, std=None),
    "other words": lambda: named("Normalize", mean="imagenet", std="imagenet"),
    "a std of zero": lambda: named("Normalize", mean=MEAN, std=(0.2, 0.0, 0.2)),
    "NaN": lambda: named("Normalize", mean=(float("nan"),) * 3, std=STD),
    "objects": lambda: named("Normalize", mean=(object(),), std=(object(),)),
    "a row for every sample": lambda: named("Normalize", mean=torch.rand(4, 3), std=torch.rand(4, 3)),
    "on no device": lambda: named("Normalize", mean=torch.rand(3, device="meta"), std=torch.rand(3, device="meta")),
    "MONAI, by the image": lambda: named("NormalizeIntensity", subtrahend=None, divisor=None, nonzero=False),
    "MONAI, what is not zero": lambda: named("NormalizeIntensity", subtrahend=MEAN, divisor=STD, nonzero=True),
    "Hugging Face, not applied": lambda: named("ViTImageProcessor", image_mean=MEAN, image_std=STD, do_normalize=False),
    "another function": lambda: partial(max, mean=MEAN, std=STD),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_normalization_whose_numbers_cannot_be_read_is_none(name):
    assert DatasetMetadata(DataLoader(Images(UNREADABLE[name]()))).normalization() is None


def test_a_normalization_that_did_not_make_the_images_is_passed_over():
    raw = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    training, validation = Normalize((0.1, 0.1, 0.1), (0.5, 0.5, 0.5)), Normalize(MEAN, STD)
    made = validation(raw)
    facts = DatasetMetadata(DataLoader(Images(ToTensor())), DataLoader(Images([training, validation])))
    assert facts.normalization(raw) is None
    assert facts.normalization(255 * raw) is None
    assert facts.normalization(made).mean == pytest.approx(MEAN)


class Hooked(nn.Module):
    """Normalizes whole batches; another one in its forward has not touched them."""

    def __init__(self, where):
        super().__init__()
        self.inside = Normalize((0.9,), (0.9,))
        self.transforms = nn.Sequential(nn.Identity(), Normalize(MEAN, STD))
        setattr(type(self), where, lambda self, batch, dataloader_idx: self.transforms(batch))

    def forward(self, images):
        return self.inside(images)


@pytest.mark.parametrize("where", ["on_after_batch_transfer", "on_before_batch_transfer", "forward"])
def test_what_a_modules_hooks_apply_is_read_but_not_what_its_forward_applies(where):
    module = type("Module", (Hooked,), {})(where)
    found = DatasetMetadata.from_model(module, DataLoader(Images())).normalization()
    assert (None if found is None else found.mean) == (None if where == "forward" else pytest.approx(MEAN))


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
    assert DatasetMetadata(broken, data).normalization().mean == pytest.approx(MEAN)
    assert DatasetMetadata(broken, data).class_names(2) == ["cat", "dog"]


def test_what_objects_make_up_or_fail_at_is_left_alone():
    assert DatasetMetadata(Failing()).class_names(3) is None
