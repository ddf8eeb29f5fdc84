"""Masked images against removing pixels one by one; loaders, transforms and kinds of images as the user has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torchvision.transforms import v2

from fg_lightning.attribution import METHODS
from fg_lightning.removal import ranks, top_pixels
from fg_lightning.roar import CannotRun, ROARDataModule, SaliencyStore
from fg_lightning.roar.cell_training import silence_lightning
from fg_lightning.roar.dataset_transforms import split_transform, strip_transform
from fg_lightning.roar.image_pixels import fill_with_function, fill_with_values, spatial_shape
from tests.helpers.tiny_squares import SIDE, TENSOR, Data, Net, Squares

PIXELS = SIDE * SIDE
SILENT = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def masked(store, base=None, fraction=0.3, **settings):
    data = ROARDataModule(base or Data(), store, fraction, **settings)
    data.setup("fit")
    return data


def set_up(data):
    data.setup("fit")
    return data


def bare(dataset, index):
    """A sample's image as PIL, before its transform."""
    return np.asarray(dataset.pixels[index])


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("keep", [False, True])
def test_exactly_the_rounded_share_goes_in_the_order_of_the_ranks(store, fraction, order, keep):
    data = masked(store, fraction=fraction, order=order, keep=keep, fill=7.0)
    count = round(fraction * PIXELS)
    images = torch.cat([images for images, _ in data.test_dataloader()])
    for index, image in enumerate(images):
        expected = bare(Squares(20, seed=1), index).copy()
        places = np.asarray(store.ranks("test")[index])
        chosen = places < count if order == "morf" else places >= PIXELS - count
        assert chosen.sum() == count
        expected[~chosen if keep else chosen] = 7
        assert torch.equal(image, TENSOR(Image.fromarray(expected)))


def test_the_mean_is_that_of_the_training_images(store):
    data = masked(store, fraction=1.0)
    (images, _), *_ = data.val_dataloader()
    grey = TENSOR(Image.fromarray(np.full((SIDE, SIDE), Squares(50).pixels[:40].mean().round(), np.uint8)))
    assert torch.equal(images, grey.expand_as(images))


def test_pixels_go_before_the_augmentation(store):
    data = masked(store, Data(augment=True), fraction=0.5, fill=0)
    dataset = data.train_dataloader().dataset
    ours = {tuple(dataset[3][0].flatten().tolist()) for _ in range(20)}
    image = bare(Squares(50), 3).copy()
    image[np.asarray(store.ranks("train")[3]) < PIXELS // 2] = 0
    both = [TENSOR(Image.fromarray(image)), TENSOR(Image.fromarray(image[::-1].copy()))]
    assert ours == {tuple(one.flatten().tolist()) for one in both}


def test_loaders_are_the_users_in_all_else(store):
    base = Data(batch_size=6)
    base.setup("fit")
    generator = torch.Generator().manual_seed(3)
    base.train_dataloader = lambda: DataLoader(base.train, 6, shuffle=True, drop_last=True, generator=generator)
    loader = masked(store, base).train_dataloader()
    assert (loader.batch_size, loader.drop_last, loader.generator) == (6, True, generator)
    assert type(loader.sampler).__name__ == "RandomSampler"
    assert len(list(loader)) == 6


@pytest.mark.parametrize("options", [{}, {"fill": "noisy_linear"}, {"fraction": 0.0}, {"redraw": True}])
def test_a_batch_is_made_of_what_its_images_are_one_by_one(store, options):
    """Also where a random transform, or ranks that are drawn anew, draw from torch's generator."""
    dataset = masked(store, Data(augment=True), **{"fraction": 0.5, **options}).train_dataloader().dataset
    indices = [7, 3, 3, 20, 11]
    torch.manual_seed(0)
    batch = dataset.__getitems__(indices)
    torch.manual_seed(0)
    singles = [dataset[index] for index in indices]
    for (image, label), (alone, own) in zip(batch, singles, strict=True):
        assert torch.equal(image, alone)
        assert label == own


def test_workers_give_the_same(store):
    alone, shared = (masked(store, Data(num_workers=workers)) for workers in (0, 2))
    for (a, _), (b, _) in zip(alone.test_dataloader(), shared.test_dataloader(), strict=True):
        assert torch.equal(a, b)


def test_nothing_goes_at_fraction_0_and_a_network_trains(store, net):
    plain = Data()
    plain.setup("fit")
    data = masked(store, fraction=0.0)
    for (a, _), (b, _) in zip(plain.test_dataloader(), data.test_dataloader(), strict=True):
        assert torch.equal(a, b)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, **SILENT)
    with silence_lightning():
        trainer.fit(Net(), ROARDataModule(Data(), store.path, 0.3))


class OfData(Data):
    """Its batches are changed on the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        assert self.trainer is not None  # a hook may ask it whether it is a training
        return 3 * batch[0] - 1, batch[1]


class OfNet(Net):
    """Its batches are changed on the device, unless the datamodule does that."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return 5 * batch[0] + 1, batch[1]


class Seeing(Callback):
    """Keeps the images that a network is given."""

    def __init__(self):
        self.images = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images.append(batch[0])

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.images.append(batch[0])


@pytest.mark.parametrize(("base", "model", "factor", "shift"), [(OfData, Net, 3, -1), (Data, OfNet, 5, 1), (OfData, OfNet, 3, -1)])
def test_batches_go_through_the_hooks_that_they_would_go_through_without_us(base, model, factor, shift, store, tmp_path):
    torch.manual_seed(0)
    net, seeing = model(), Seeing()
    made = SaliencyStore.make(tmp_path / "s", net, base(), "input_x_gradient", batch_size=20)
    plain = torch.stack([image for image, _ in set_up(base()).test])
    expected = ranks(METHODS["input_x_gradient"](net).attribute(factor * plain + shift), list(range(20)))
    assert np.array_equal(made.ranks("test"), expected.numpy())
    trainer = Trainer(max_steps=1, accelerator="cpu", num_sanity_val_steps=0, limit_val_batches=0, callbacks=[seeing], **SILENT)
    with silence_lightning():
        trainer.fit(net, ROARDataModule(base(), store, 1.0, fill=0))
        trainer.test(net, ROARDataModule(base(), store, 1.0, fill=0), verbose=False)
    assert len(seeing.images) == 4
    assert all(torch.equal(images, torch.full_like(images, shift - factor)) for images in seeing.images)  # all black, which is -1


def test_the_base_is_set_up_once_unless_it_lets_go_of_its_data(store):
    stages = []

    class Counting(Data):
        def setup(self, stage):
            stages.append(stage)
            super().setup(stage)

    class Leaving(Counting):
        def teardown(self, stage):
            del self.train, self.val, self.test

    for base, expected in ((Counting, ["fit", "test"]), (Leaving, ["fit", "test"] * 2)):
        stages.clear()
        trainer = Trainer(max_steps=1, accelerator="cpu", num_sanity_val_steps=0, limit_val_batches=0, **SILENT)
        data = ROARDataModule(base(), store, 0.3)
        with silence_lightning():
            trainer.fit(Net(), data)
            trainer.test(Net(), data, verbose=False)
        assert stages == expected


def test_an_image_of_a_base_dict_batch(net, tmp_path):
    class Named(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return {"label": label, "image": image}

    class Dicts(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Named(10, transform=TENSOR), 5)

    made = SaliencyStore.make(tmp_path / "s", net, Dicts(), "edges")
    data = masked(made, Dicts(), fraction=1.0, fill=0)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].eq(-1).all()
    assert batch["label"].tolist() == [0, 1, 0, 1, 0]


def test_tensors_without_a_transform(net, tmp_path):
    class Tensors(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.randn(12, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), labels), 4)

    labels = torch.arange(12) % 2
    made = SaliencyStore.make(tmp_path / "s", net, Tensors(), "gradient")
    data = masked(made, Tensors(), fraction=0.25)
    plain = Tensors().train_dataloader().dataset.tensors[0]
    images = torch.cat([images for images, _ in data.train_dataloader()])
    gone = torch.from_numpy(np.asarray(made.ranks("train")).astype(int))[:, None] < PIXELS // 4
    # The mean is summed in float64 and rounded once.
    assert torch.equal(images, torch.where(gone, plain.double().mean().float(), plain))


def test_masks_lie_on_the_plane_that_the_network_sees(tmp_path):
    """Photographs of several sizes, resized and cropped to 6 x 10 for the test, and in another way at random for the training."""
    high, wide = 6, 10
    sized = [v2.Resize((high + 2, wide)), v2.CenterCrop((high, wide))]

    class Big(Squares):
        def __getitem__(self, index):
            image = Image.fromarray(self.pixels[index]).resize((2 * wide, 2 * wide + 2 * (index % 3)))
            return self.transform(image), self.labels[index]

    class Photos(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Big(10, transform=v2.Compose([v2.RandomResizedCrop((high, wide)), TENSOR])), 5)

        def test_dataloader(self):
            return DataLoader(Big(10, transform=v2.Compose([*sized, TENSOR])), 5)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (high - 2) * (wide - 2), 2))
    made = SaliencyStore.make(tmp_path / "s", net, Photos(), "gradient", batch_size=10)
    assert made.manifest.shape == (high, wide)
    data = masked(made, Photos(), fraction=0.5, fill=0)
    assert next(iter(data.train_dataloader()))[0].shape == (5, 1, high, wide)
    plain = torch.stack([Photos().test_dataloader().dataset[i][0] for i in range(10)])
    gone = top_pixels(METHODS["gradient"](net).attribute(plain), 0.5, seed=range(10))
    images = torch.cat([images for images, _ in data.test_dataloader()])
    assert torch.equal(images, torch.where(gone, -1.0, plain))


def test_images_of_unequal_size_say_what_to_do(net, tmp_path):
    class Unequal(Squares):
        def __getitem__(self, index):
            return TENSOR(Image.fromarray(self.pixels[index][: SIDE - index // 5])), self.labels[index]

    class Wild(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Unequal(10), 5)

    with pytest.raises(CannotRun, match=r"image 5 .* is \[1, 7, 8\] before its transform.* others are \[1, 8, 8\]: bring"):
        SaliencyStore.make(tmp_path / "s", net, Wild(), "edges")


def test_images_of_unequal_channels_say_what_to_do(net, tmp_path):
    class Mixed(Squares):
        def __getitem__(self, index):
            return self.transform(Image.fromarray(self.pixels[index]).convert("RGB" if index == 8 else "L")), 0

    class Wild(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Mixed(10, transform=v2.Compose([v2.Lambda(lambda image: image.convert("L")), TENSOR])), 5)

    with pytest.raises(CannotRun, match=r"image 8 .* is \[3, 8, 8\] before its transform"):
        SaliencyStore.make(tmp_path / "s", net, Wild(), "edges", batch_size=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_keeps_its_kind(dtype, channels):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (5, 6, channels)).astype(dtype)
    mask = generator.random((5, 6)) < 0.5
    values = np.array([10.0, 20.4, 30.0][:channels])
    expected = pixels.copy()
    for y, x in zip(*np.nonzero(mask), strict=True):
        expected[y, x] = values.round() if dtype is np.uint8 else values
    tensor = fill_with_values(torch.from_numpy(pixels.transpose(2, 0, 1).copy()), mask, values)
    assert tensor.dtype is getattr(torch, np.dtype(dtype).name)
    assert np.array_equal(tensor.numpy().transpose(1, 2, 0), expected)
    array = fill_with_values(pixels, mask, values)
    assert array.dtype == dtype
    assert np.array_equal(array, expected)
    if dtype is np.uint8:
        picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        ours = fill_with_values(picture, mask, values)
        assert (ours.mode, ours.size) == (picture.mode, picture.size)
        assert np.array_equal(np.asarray(ours).reshape(expected.shape), expected)


def test_a_fill_function_sees_bytes_as_fractions():
    picture = Image.fromarray(np.full((4, 4, 3), 51, np.uint8))
    mask = np.eye(4, dtype=bool)
    seen = []

    def double(images, where):
        seen.append((images.shape, images.dtype, float(images.max()), where.shape))
        return torch.where(where, 2 * images, images)

    changed = np.asarray(fill_with_function(picture, mask, double))
    assert seen == [((1, 3, 4, 4), torch.float32, pytest.approx(0.2), (1, 1, 4, 4))]
    assert np.array_equal(changed, np.where(mask[..., None], 102, 51) * np.ones(3, int))


@pytest.mark.parametrize("fill", ["noisy_linear", "image_mean", "black", 12.0, [12.0], lambda images, mask: images * 0])
def test_fills(store, fill):
    data = masked(store, fill=fill)
    image, _ = data.test_dataloader().dataset[0]
    again, _ = masked(store, fill=fill).test_dataloader().dataset[0]
    assert torch.equal(image, again)
    gone = torch.from_numpy(np.asarray(store.ranks("test")[0]).astype(int)) < round(0.3 * PIXELS)
    plain = TENSOR(Image.fromarray(bare(Squares(20, seed=1), 0)))
    if not callable(fill):
        assert torch.equal(image[0][~gone], plain[0][~gone])
    assert not torch.equal(image[0][gone], plain[0][gone])


def test_a_transform_is_found_in_subsets_and_parts_and_left_where_it_is():
    dataset = Squares(6, transform=TENSOR)
    for wrapped in (Subset(Subset(dataset, [4, 2, 0]), [1, 0]), ConcatDataset([dataset, dataset])):
        images, transform = strip_transform(wrapped)
        assert transform is TENSOR
        assert isinstance(images[0][0], Image.Image)
        assert isinstance(wrapped[0][0], torch.Tensor)
    with pytest.raises(ValueError, match="different transforms"):
        strip_transform(ConcatDataset([dataset, Squares(6, transform=v2.ToImage())]))


def test_what_puts_an_image_on_its_plane_is_told_from_the_rest():
    resize, crop = v2.Resize(9), v2.CenterCrop(8)
    steps, rest = split_transform(v2.Compose([resize, crop, v2.RandomVerticalFlip(), TENSOR]))
    assert steps == [resize, crop]
    assert len(rest.transforms) == 2
    assert split_transform(TENSOR) == ([], TENSOR)
    assert split_transform(None) == ([], None)


def test_torchvisions_presets_are_taken_apart():
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(crop_size=6, resize_size=7)
    steps, rest = split_transform(preset)
    picture = Image.fromarray(Squares(1, channels=3).pixels[0])
    parts = picture
    for step in [*steps, rest]:
        parts = step(parts)
    assert torch.allclose(parts, preset(picture), atol=1e-6)  # the same steps; float32 may be rounded elsewhere


def test_wrong_arguments_are_refused(store, tmp_path):
    with pytest.raises(ValueError, match="divide a percentage by 100"):
        ROARDataModule(Data(), store, 30)
    with pytest.raises(ValueError, match="order must be"):
        ROARDataModule(Data(), store, 0.3, order="most")
    with pytest.raises(ValueError, match="fill must be"):
        ROARDataModule(Data(), store, 0.3, fill="median")
    with pytest.raises(TypeError, match=r"modes L, RGB.*'P'.*convert\('RGB'\)"):
        spatial_shape(Image.new("P", (4, 4)))
    with pytest.raises(CannotRun, match="the fill has 2 numbers, but the images have 1 channels"):
        masked(store, fill=[1.0, 2.0])
    with pytest.raises(CannotRun, match=r"replaced by \[0.485\], but the images hold integers .* such as \[124\] in 0..255"):
        masked(store, fill=0.485)
    assert masked(store, fraction=0.0, fill=0.485)  # where none is replaced
