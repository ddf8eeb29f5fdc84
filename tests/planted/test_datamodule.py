"""The marks are where the masks say and what the docstring says, pixel by pixel; nothing else of a sample changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fg_lightning.demo import DigitsDataModule
from fg_lightning.errors import CannotRun, RandomImages, UnfitData
from fg_lightning.planted import PlantedShortcut
from tests.helpers.tiny_squares import Data

HEIGHT, WIDTH, NUM_CLASSES = 10, 12, 4


class Images(Dataset):
    """Noise of one kind, with labels 0, 1, 2, 3, 0, ..."""

    def __init__(self, kind="tensor", n=24, seed=0, transform=None, labels=None, shape=(HEIGHT, WIDTH)):
        random = np.random.default_rng(seed)
        channels = 3 if kind in ("rgb", "array") else 1
        self.pixels = random.uniform(-2, 3, (n, channels, *shape)).astype(np.float32)
        self.bytes = random.integers(1, 255, (n, channels, *shape), dtype=np.uint8)
        self.labels = [i % NUM_CLASSES for i in range(n)] if labels is None else labels
        self.kind, self.transform = kind, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = {
            "tensor": lambda: torch.from_numpy(self.pixels[index]),
            "double": lambda: torch.from_numpy(self.pixels[index]).double(),
            "bytes": lambda: torch.from_numpy(self.bytes[index]),
            "grey": lambda: Image.fromarray(self.bytes[index, 0]),
            "rgb": lambda: Image.fromarray(self.bytes[index].transpose(1, 2, 0)),
            "array": lambda: self.bytes[index].transpose(1, 2, 0),
        }[self.kind]()
        if self.transform is not None:
            image = self.transform(image)
        return image, self.labels[index]


class Noise(LightningDataModule):
    def __init__(self, kind="tensor", **options):
        super().__init__()
        self.train, self.test = (Images(kind, seed=seed, **options) for seed in (0, 1))

    def train_dataloader(self):
        return DataLoader(self.train, 5, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.test, 7)


def plant(base, *arguments, **options):
    data = PlantedShortcut(base, *arguments, **options)
    data.setup("test")
    return data


def channels_of(image):
    """[C, H, W] in the image's own numbers."""
    if isinstance(image, torch.Tensor):
        return image.double().numpy()
    array = np.asarray(image, float)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def own_and_planted(data, split="test"):
    dataset, view = data.dataset(split)
    for i in range(len(dataset)):
        yield channels_of(view.plane.image(i)), channels_of(dataset[i][0]), dataset[i][1]


# --- the patch -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "double", "bytes", "grey", "rgb", "array"])
@pytest.mark.parametrize("corner", ["top_left", "top_right", "bottom_left", "bottom_right"])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_a_patch_is_as_bright_as_its_class_says_and_nothing_else_changes(kind, corner, strength):
    data = plant(Noise(kind), "corner", strength, size=3, corner=corner)
    first = [channels_of(image) for image, _ in data.base.train]
    low, high = (0, 255) if kind not in ("tensor", "double") else (np.min(first), np.max(first))
    assert data.value_range == pytest.approx((low, high))
    assert data.num_classes == NUM_CLASSES
    mask = data.masks(1)[0, 0].numpy()
    for own, planted, label in own_and_planted(data):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                in_rows = y < 3 if "top" in corner else y >= HEIGHT - 3
                in_columns = x < 3 if "left" in corner else x >= WIDTH - 3
                assert mask[y, x] == (in_rows and in_columns)
                value = low + (high - low) * (label + 1) / NUM_CLASSES
                for channel in range(len(own)):
                    expected = own[channel, y, x]
                    if mask[y, x]:
                        expected = (1 - strength) * expected + strength * value
                    rounding = 1e-5 if kind in ("tensor", "double") else 0.5001
                    assert planted[channel, y, x] == pytest.approx(expected, abs=rounding if mask[y, x] else 0)


def test_kinds_of_images_stay():
    for kind, expected in (("grey", Image.Image), ("rgb", Image.Image), ("array", np.ndarray), ("bytes", torch.Tensor)):
        image = plant(Noise(kind)).dataset("test")[0][0][0]
        assert isinstance(image, expected)
        assert kind != "bytes" or image.dtype is torch.uint8
        assert kind not in ("grey", "rgb") or image.mode == {"grey": "L", "rgb": "RGB"}[kind]


def test_the_sizes_of_patch_and_margin_follow_the_image():
    for side, size, margin in ((28, 3, 4), (8, 1, 1), (224, 24, 32)):
        data = plant(Noise("grey", n=4, shape=(side, side)))
        assert data.masks(1).sum() == size**2
        assert data.margin == margin
        assert data.masks(5, margin).shape == (5, 1, side, side)
        assert (data.masks(5, margin).sum((1, 2, 3)) == (size + margin) ** 2).all()  # at a corner it grows to two sides
    assert plant(Noise("grey", n=4, shape=(28, 28)), "decoy").margin == 0


@pytest.mark.parametrize("corner", ["top_left", "bottom_right"])
def test_a_margin_ends_at_the_border(corner):
    data = plant(Noise(), "corner", size=2, corner=corner)
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    rows, columns = (slice(0, 5), slice(0, 5)) if corner == "top_left" else (slice(-5, None), slice(-5, None))
    expected[rows, columns] = True
    assert torch.equal(data.masks(1, 3)[0, 0], expected)
    assert data.masks(1, 100).all()


# --- the decoy -------------------------------------------------------------------------------------------------------------------


def halved(image):
    """Means of 2 x 2 pixels."""
    count, height, width = image.shape
    small = np.zeros((count, height // 2, width // 2))
    for c in range(count):
        for y in range(height // 2):
            for x in range(width // 2):
                small[c, y, x] = np.mean([image[c, 2 * y + i, 2 * x + j] for i in (0, 1) for j in (0, 1)])
    return small


@pytest.mark.parametrize("kind", ["tensor", "grey", "rgb"])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_an_image_stands_beside_a_decoy(kind, strength):
    data = plant(Noise(kind, shape=(8, 12)), "decoy", strength)
    low, rounding = data.value_range[0], 1e-5 if kind == "tensor" else 0.5001
    all_own = [own for own, _, _ in own_and_planted(data)]
    mask = data.masks(1)[0, 0].numpy()
    expected_mask = np.zeros((8, 12), bool)
    expected_mask[2:6, :6] = True
    assert (mask == expected_mask).all()
    for index, (own, planted, _) in enumerate(own_and_planted(data)):
        left, right = planted[:, 2:6, :6], planted[:, 2:6, 6:]
        assert left == pytest.approx((1 - strength) * low + strength * halved(own), abs=rounding)
        assert planted[:, [0, 1, 6, 7]] == pytest.approx(low, abs=1e-6)
        is_decoy = [np.allclose(right, halved(other), atol=rounding) for other in all_own]
        assert sum(is_decoy) == 1
        assert not is_decoy[index]


class Flat(Noise):
    """Images whose pixels all tell their index, of bytes, in two classes: 0 .. 19 of class 0, 20 .. 39 of class 1."""

    def __init__(self):
        super().__init__("grey", n=40, shape=(4, 4), labels=[i // 20 for i in range(40)])
        for part in (self.train, self.test):
            part.bytes = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)


def left_and_right(data):
    return [(int(planted[0, 1, 0]), int(planted[0, 1, 3])) for _, planted, _ in own_and_planted(data)]


def test_the_left_of_a_shuffled_pair_is_of_another_class_and_the_decoy_stays():
    label, shuffled, random = (left_and_right(plant(Flat(), "decoy", mark=mark)) for mark in ("label", "shuffled", "random"))
    for i in range(40):
        assert label[i][0] == i
        assert shuffled[i][0] // 20 != i // 20
        assert shuffled[i][1] == label[i][1] == random[i][0] != i
        assert random[i][1] == i  # the class is seen in the decoy's place
    assert 8 < sum(right // 20 != i // 20 for i, (_, right) in enumerate(label)) < 32  # the decoy's class says nothing


# --- whose mark ------------------------------------------------------------------------------------------------------------------


def marks_in(data, split="test"):
    """The class that each patch tells."""
    low, high = data.value_range
    brightness = [planted[0, 0, 0] for _, planted, _ in own_and_planted(data, split)]
    return [round((value - low) / (high - low) * data.num_classes) - 1 for value in brightness]


def test_a_shuffled_mark_is_never_that_of_the_label_and_takes_all_others():
    data = plant(Noise(n=400), mark="shuffled")
    labels = data.base.test.labels
    pairs = list(zip(labels, marks_in(data), strict=True))
    assert all(label != mark for label, mark in pairs)
    counts = [pairs.count((label, mark)) for label in range(NUM_CLASSES) for mark in range(NUM_CLASSES) if label != mark]
    assert min(counts) > 15  # 33 on average


def test_a_random_mark_knows_no_label():
    data = plant(Noise(n=400), mark="random")
    pairs = list(zip(data.base.test.labels, marks_in(data), strict=True))
    counts = [pairs.count((label, mark)) for label in range(NUM_CLASSES) for mark in range(NUM_CLASSES)]
    assert min(counts) > 10  # 25 on average, the label's own among them
    assert max(counts) < 45


def test_marks_are_the_same_each_time_and_others_for_other_seeds_and_splits():
    first, again, other = (marks_in(plant(Noise(n=100), mark="random", seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first != marks_in(plant(Noise(n=100), mark="random"), "train")


@pytest.mark.parametrize("shortcut", ["corner", "decoy"])
@pytest.mark.parametrize("mark", ["label", "shuffled", "random"])
def test_labels_stay(shortcut, mark):
    data = plant(Noise(), shortcut, mark=mark)
    assert [label for _, _, label in own_and_planted(data)] == data.base.test.labels


# --- loaders ---------------------------------------------------------------------------------------------------------------------


def test_loaders_and_their_transforms_are_the_users():
    data = plant(Data(augment=True), "corner", size=2)
    train, (images, labels) = data.train_dataloader(), next(iter(data.test_dataloader()))
    assert train.batch_size == 8
    assert type(train.sampler).__name__ == "RandomSampler"
    assert len(data.val_dataloader().dataset) == 10
    assert images.shape == (8, 1, 8, 8)  # after its transform, which scales bytes to -1 .. 1
    assert images[:, 0, :2, :2] == pytest.approx(labels.float().reshape(-1, 1, 1).expand(-1, 2, 2), abs=0.01)
    flipped = {tuple(image[0, [0, 7], 0].gt(0.95).tolist()) for images, labels in train for image in images[labels == 1]}
    assert (False, True) in flipped  # marks are there before the data set's own flip


@pytest.mark.slow
def test_worker_processes_give_the_same_images():
    alone, workers = (plant(Data(num_workers=n), "decoy").test_dataloader() for n in (0, 2))
    assert torch.equal(torch.cat([images for images, _ in alone]), torch.cat([images for images, _ in workers]))


class Hooked(Data):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1, batch[1]]


def test_hooks_of_the_datamodule_are_called():
    assert "on_after_batch_transfer" in vars(plant(Hooked()))
    assert "on_after_batch_transfer" not in vars(plant(Data()))


def test_samples_may_be_mappings():
    class Mapped(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return {"name": f"image {index}", "image": image, "label": np.int64(label)}

    data = Noise()
    data.test = Mapped("tensor", seed=1)
    data.train = Mapped("tensor")
    sample = plant(data).dataset("test")[0][3]
    assert sample["name"] == "image 3"
    assert sample["image"][0, 0, 0] == pytest.approx(plant(data).value_range[1])  # class 3 of 4 has the highest value


# --- bad input -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"shortcut": "edge"}, "shortcut must be one of corner, decoy, not 'edge'"),
        ({"strength": 1.5}, r"strength must be from 0 to 1, not 1\.5"),
        ({"strength": float("nan")}, "strength must be from 0 to 1"),
        ({"mark": "none"}, "mark must be one of label, shuffled, random, not 'none'"),
        ({"corner": "middle"}, "corner must be one of top_left"),
        ({"size": 0}, "size must be at least 1 pixel"),
        ({"shortcut": "decoy", "size": 3}, "size and corner are settings of the shortcut corner"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"value_range": (1, 1)}, "value_range must be a lower and a higher number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        PlantedShortcut(Noise(), **options)


@pytest.mark.ill_typed
def test_no_datamodule_is_refused():
    with pytest.raises(ValueError, match="base must be a LightningDataModule, not Images"):
        PlantedShortcut(Images())


@pytest.mark.parametrize(
    ("base", "options", "kind", "why"),
    [
        (lambda: Noise(labels=[0.5] * 8), {}, UnfitData, "no integer label was found beside the image"),
        (lambda: Noise(labels=[0] * 8), {}, CannotRun, "all train images have the label 0"),
        (lambda: Noise(labels=[0]), {"num_classes": 2}, CannotRun, "has one image"),
        (
            lambda: Noise(),
            {"size": 6},
            CannotRun,
            r"a patch of 6 pixels is too large for images of \(10, 12\); size must be 1 to 5",
        ),
        (
            lambda: Noise(shape=(2, 9)),
            {"shortcut": "decoy"},
            CannotRun,
            r"4 pixels or more on each side, but the images are \(2, 9\)",
        ),
        (lambda: Noise(shape=(4, 5, 6)), {}, UnfitData, "these have 3 spatial dimensions"),
    ],
)
def test_unfit_data_is_refused(base, options, kind, why):
    with pytest.raises(kind, match=why):
        plant(base(), **options)


def test_integers_of_unknown_range_are_refused():
    data = Noise()
    for part in (data.train, data.test):
        part.transform = lambda image: (image * 1000).int()
    with pytest.raises(UnfitData, match=r"these hold torch.int32; let the data set give them as float32"):
        plant(data, transform=torch.nn.Identity(), prepare=lambda image: (image * 1000).int())


def test_random_images_are_refused():
    data = Noise()
    data.test.transform = v2.GaussianNoise(sigma=0.3)
    with pytest.raises(RandomImages):
        plant(data)


def test_a_label_out_of_range_is_named():
    data = plant(Noise(), num_classes=3)
    with pytest.raises(ValueError, match="the label 3, but num_classes is 3: labels must be from 0 to 2"):
        data.dataset("test")[0][3]


def test_a_single_class_has_no_decoy_of_another():
    data = plant(Noise(labels=[1] * 8), "decoy", mark="shuffled")
    with pytest.raises(CannotRun, match="a shortcut needs two classes or more"):
        data.dataset("test")[0][0]


def test_images_of_several_sizes_are_named():
    data = plant(Noise())
    larger = Images(shape=(20, 20))
    data.base.test.pixels = larger.pixels
    with pytest.raises(CannotRun, match=r"one is \(20, 20\) and the first is \(10, 12\)"):
        data.dataset("test")[0][0]


def test_masks_are_unknown_before_setup():
    with pytest.raises(RuntimeError, match=r"call setup\('test'\) first"):
        PlantedShortcut(Noise()).masks(1)
    with pytest.raises(ValueError, match="margin must be a number of pixels, at least 0, not -1"):
        plant(Noise()).masks(1, -1)


def test_blank_images_have_no_range():
    data = Noise()
    for part in (data.train, data.test):
        part.pixels[:] = 0
    with pytest.raises(CannotRun, match=r"all pixels of 24 training images are 0; give value_range=\(low, high\)"):
        plant(data)
    assert plant(data, value_range=(0, 1)).dataset("test")[0][3][0].max() == 1


def test_planted_images_say_how_they_were_normalized() -> None:
    data = DigitsDataModule()
    assert PlantedShortcut(data).normalization == data.normalization
