"""Torchvision's data sets by name, and folders of images."""

import inspect
import itertools
from functools import partial

import pytest
import torch
import torchvision.datasets
from PIL import Image
from torchvision.transforms import v2

from fg_lightning.errors import CannotRun
from fg_lightning.recording.dataset_metadata import DatasetMetadata
from fg_lightning.training import ImageFolderDataModule, TorchvisionDataModule
from fg_lightning.training.image_datamodule import IMAGENET, any_size_transforms, fixed_size_transforms, split_indices
from fg_lightning.training.torchvision_datasets import SOURCES, class_names


def images_in(folder, classes, count, colour=0):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (colour, 100 * number, i)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", SOURCES)
def test_torchvision_takes_the_arguments_that_stand_in_the_table(name):
    taken = inspect.signature(getattr(torchvision.datasets, name)).parameters
    source = SOURCES[name]
    for given in (source.train, source.val, source.test):
        assert set(given or ()) <= set(taken)
    assert "download" in taken or name in ("FakeData", "QMNIST")  # one has none, one hands it on


def test_parts_are_disjoint_and_the_same_each_time():
    first, second = (TorchvisionDataModule("FakeData", size=32, num_workers=0, seed=3) for _ in range(2))
    first.setup("fit")
    second.setup("fit")
    parts = [set(part.indices) for part in (first.train, first.val, first.test)]
    assert [len(part) for part in parts] == [800, 100, 100]
    assert set.union(*parts) == set(range(1000))
    assert list(first.val.indices) == list(second.val.indices)


def test_of_each_part_no_more_than_asked_is_drawn():
    whole, some = (TorchvisionDataModule("FakeData", size=32, num_workers=0, max_images=count) for count in (None, 100))
    whole.setup("fit")
    some.setup("fit")
    parts = [(part.indices, others.indices) for part, others in ((getattr(some, n), getattr(whole, n)) for n in ("train", "val"))]
    assert [len(drawn) for drawn, _ in parts] == [100, 100]
    assert all(set(drawn) <= set(every) for drawn, every in parts)
    assert list(parts[0][0]) != list(parts[0][1])[:100]  # drawn, not the first


def test_lots_are_drawn_as_asked():
    lots = split_indices(10, [0.2, 0.01], seed=0)
    assert [len(lot) for lot in lots] == [2, 1, 7]
    assert sorted(itertools.chain(*lots)) == list(range(10))
    assert split_indices(10, [0.2], seed=1) != split_indices(10, [0.2], seed=0)


@pytest.mark.parametrize(("count", "shares"), [(20, [0.5, 0.5]), (20, [0.7, 0.7]), (2, [0.1, 0.1]), (1, [0.1])])
def test_lots_that_leave_none_to_train_on_are_refused(count, shares):
    held = rf"\d+ \(a share of {shares[0]}\)"
    with pytest.raises(CannotRun, match=f"^of {count} training images, {held}.*none would be left for training"):
        split_indices(count, shares, seed=0)


@pytest.mark.parametrize("shares", [[], [0.1, 0.1]])
def test_no_training_images_are_refused(shares):
    with pytest.raises(CannotRun, match="there are 0 training images; add at least one"):
        split_indices(0, shares, seed=0)


def test_a_batch_is_normalized_images_and_classes():
    data = TorchvisionDataModule("FakeData", size=32, batch_size=16, num_workers=0)
    data.setup("fit")
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (16, 3, 32, 32)
    assert labels.dtype == torch.int64
    raw, label = data.val.dataset[data.val.indices[0]]
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(images[0], (v2.functional.pil_to_tensor(raw) / 255 - mean) / std)  # float32
    assert labels[0] == label


def test_the_monitor_finds_normalization_and_names():
    data = TorchvisionDataModule("FakeData", size=32, num_workers=0)
    data.setup("fit")
    facts = DatasetMetadata(data.val_dataloader())
    assert tuple(facts.normalization().mean) == pytest.approx(IMAGENET.mean)
    assert facts.class_names(10) == [str(number) for number in range(10)]


@pytest.mark.parametrize("make", [partial(fixed_size_transforms, 32), any_size_transforms])
def test_training_images_alone_are_random_and_only_if_asked(make):
    image = v2.functional.to_pil_image(torch.rand(3, 32, 32))
    random, plain = make(32, IMAGENET, True, True)
    assert not all(torch.equal(random(image), random(image)) for _ in range(5))
    assert torch.equal(plain(image), plain(image))
    calm, _ = make(32, IMAGENET, False, True)
    assert torch.equal(calm(image), plain(image))
    assert random(image).shape == plain(image).shape == (3, 32, 32)


@pytest.mark.parametrize(("name", "mirrored"), [("MNIST", False), ("SVHN", False), ("CIFAR10", True), ("Food101", True)])
def test_what_is_another_class_in_a_mirror_is_not_mirrored(name, mirrored, monkeypatch):
    monkeypatch.setattr(TorchvisionDataModule, "_dataset", lambda self, given: [()] * 20)
    data = TorchvisionDataModule(name)
    data.setup("fit")
    assert mirrored == any(isinstance(step, v2.RandomHorizontalFlip) for step in data.train.transform.transforms)


def test_pictures_of_any_kind_and_size_become_the_same():
    _, plain = any_size_transforms(32, IMAGENET, True, True)
    for mode, size in (("L", (50, 80)), ("RGBA", (20, 20)), ("RGB", (100, 40))):
        assert plain(Image.new(mode, size)).shape == (3, 32, 32)


def test_names_come_from_the_data_set_where_it_has_them():
    class Named:
        classes = (("tench", "Tinca tinca"), "dog")

    assert class_names(Named(), 2) == ["tench", "dog"]
    assert class_names(Named(), 3) == ["0", "1", "2"]
    assert class_names(object(), 1) == ["0"]


def test_what_is_not_there_and_cannot_be_had_is_named_with_its_folder(tmp_path):
    with pytest.raises(CannotRun, match=f"CIFAR10 is not in {tmp_path}.*--data.root"):
        TorchvisionDataModule("CIFAR10", root=tmp_path).setup("fit")


def test_unknown_data_sets_are_refused_with_those_that_exist():
    with pytest.raises(CannotRun, match=r"did you mean CIFAR10\?.*FashionMNIST"):
        TorchvisionDataModule("cifar-10")


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 0},
        {"num_workers": -1},
        {"val_share": 0.0},
        {"max_images": 0},
        {"mean": (0.5,)},
        {"mean": (0.5,), "std": (0.0,)},
        {"size": 0},
    ],
)
def test_numbers_out_of_range_are_refused(given):
    with pytest.raises(CannotRun):
        TorchvisionDataModule("MNIST", **given)


def test_folders_for_every_part_are_taken_as_they_are(tmp_path):
    for part, count in (("train", 5), ("valid", 2), ("test", 1)):
        images_in(tmp_path / part, ("cat", "dog"), count)
    data = ImageFolderDataModule(tmp_path, size=16, num_workers=0, batch_size=2)
    data.setup("fit")
    assert [len(part) for part in (data.train, data.val, data.test)] == [10, 4, 2]
    assert data.classes == ["cat", "dog"]
    assert data.num_classes == 2
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 16, 16)


def test_one_folder_is_split(tmp_path):
    images_in(tmp_path, ("cat", "dog"), 10)
    data = ImageFolderDataModule(tmp_path, num_workers=0, val_share=0.2)
    data.setup("fit")
    parts = [set(part.indices) for part in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert set.union(*parts) == set(range(20))


def test_without_test_images_the_test_is_on_the_validation_images(tmp_path):
    for part in ("train", "val"):
        images_in(tmp_path / part, ("cat", "dog"), 2)
    data = ImageFolderDataModule(tmp_path, num_workers=0)
    data.setup("test")
    assert data.test is data.val


def test_folders_that_make_no_sense_are_refused_with_their_names(tmp_path):
    with pytest.raises(CannotRun, match=r"no folder .*nowhere"):
        ImageFolderDataModule(tmp_path / "nowhere")
    with pytest.raises(CannotRun, match=r"CLASS/image\.jpg"):
        ImageFolderDataModule(tmp_path)
    images_in(tmp_path / "train", ("cat", "dog"), 1)
    images_in(tmp_path / "val", ("cat", "fox"), 1)
    with pytest.raises(CannotRun, match="dog, fox are in only one of them"):
        ImageFolderDataModule(tmp_path).setup("fit")
    with pytest.raises(CannotRun, match="size must be at least 1 pixel, not 0"):
        ImageFolderDataModule(tmp_path, size=0)


def test_hidden_folders_are_no_classes(tmp_path):
    images_in(tmp_path, ("cat", "dog"), 10)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    data = ImageFolderDataModule(tmp_path, num_workers=0)
    data.setup("fit")
    assert data.num_classes == 2
    assert data.classes == ["cat", "dog"]


def test_a_class_without_images_is_named(tmp_path):
    images_in(tmp_path, ("cat", "dog"), 10)
    (tmp_path / "fox").mkdir()
    with pytest.raises(CannotRun, match=r"for the classes fox\..*Remove the folder of this class, or put images into it"):
        ImageFolderDataModule(tmp_path).setup("fit")


@pytest.mark.parametrize("name", ["broken.jpg", "cut_off.png"])
def test_a_file_that_is_no_image_is_named(name, tmp_path):
    images_in(tmp_path, ("cat", "dog"), 10)
    whole = (tmp_path / "cat" / "0.png").read_bytes()
    (tmp_path / "cat" / name).write_bytes(whole[:60] if name.endswith("png") else b"no image")
    data = ImageFolderDataModule(tmp_path, size=8, batch_size=1, num_workers=0)
    data.setup("fit")
    with pytest.raises(CannotRun, match=f"cat/{name} cannot be read as an image.*; remove it"):
        list(itertools.chain(data.train_dataloader(), data.val_dataloader(), data.test_dataloader()))
