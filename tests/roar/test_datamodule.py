"""Masked images against removing pixels one by one; loaders, transforms and kinds of images as the user has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from tiny import SIDE, TENSOR, Data, Net, Squares
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torchvision.transforms import v2

from fg_lightning.roar import ROARDataModule, SaliencyStore
from fg_lightning.roar.pixels import imputed, spatial_shape, with_values
from fg_lightning.roar.quiet import quiet
from fg_lightning.roar.transforms import split_transform, taken_apart

PIXELS = SIDE * SIDE


def masked(store, base=None, fraction=0.3, **settings):
    data = ROARDataModule(base or Data(), store, fraction, **settings)
    data.setup("fit")
    return data


def bare(dataset, index):
    """A sample's image as PIL, before its transform."""
    return np.asarray(dataset.pixels[index])


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("keep", [False, True])
def test_exactly_the_rounded_share_goes_in_the_order_of_the_ranks(store, fraction, order, keep):
    data = masked(store, fraction=fraction, order=order, keep=keep, imputation=7.0)
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
    data = masked(store, Data(augment=True), fraction=0.5, imputation=0)
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
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, **silent)
    with quiet():
        trainer.fit(Net(), ROARDataModule(Data(), store.path, 0.3))


def test_an_image_of_a_base_dict_batch(net, tmp_path):
    class Named(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return {"label": label, "image": image}

    class Dicts(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Named(10, transform=TENSOR), 5)

    made = SaliencyStore.make(tmp_path / "s", net, Dicts(), "edges")
    data = masked(made, Dicts(), fraction=1.0, imputation=0)
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


def test_masks_lie_on_the_plane_that_the_network_sees(net, tmp_path):
    """Images of twice the size, resized by the evaluation transform and cropped at random by the training's."""
    big = v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE), TENSOR])

    class Big(Squares):
        def __getitem__(self, index):
            image = Image.fromarray(self.pixels[index]).resize((2 * SIDE, 2 * SIDE + 2 * (index % 3)))
            return self.transform(image), self.labels[index]

    class Photos(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Big(10, transform=v2.Compose([v2.RandomResizedCrop(SIDE), TENSOR])), 5)

        def test_dataloader(self):
            return DataLoader(Big(10, transform=big), 5)

    made = SaliencyStore.make(tmp_path / "s", net, Photos(), "gradient")
    assert made.manifest.shape == (SIDE, SIDE)
    data = masked(made, Photos(), fraction=0.5, imputation=0)
    for images in (next(iter(data.train_dataloader()))[0], next(iter(data.test_dataloader()))[0]):
        assert images.shape == (5, 1, SIDE, SIDE)
    assert next(iter(data.test_dataloader()))[0].eq(-1).sum() >= 5 * PIXELS // 2


def test_images_of_unequal_size_say_what_to_do(net, tmp_path):
    class Unequal(Squares):
        def __getitem__(self, index):
            return TENSOR(Image.fromarray(self.pixels[index][: SIDE - index // 5])), self.labels[index]

    class Wild(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Unequal(10), 5)

    with pytest.raises(ValueError, match=r"before its transform, others are \(8, 8\): bring them to the network's size first"):
        SaliencyStore.make(tmp_path / "s", net, Wild(), "edges")


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
    tensor = with_values(torch.from_numpy(pixels.transpose(2, 0, 1).copy()), mask, values)
    assert tensor.dtype is getattr(torch, np.dtype(dtype).name)
    assert np.array_equal(tensor.numpy().transpose(1, 2, 0), expected)
    array = with_values(pixels, mask, values)
    assert array.dtype == dtype
    assert np.array_equal(array, expected)
    if dtype is np.uint8:
        picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        ours = with_values(picture, mask, values)
        assert (ours.mode, ours.size) == (picture.mode, picture.size)
        assert np.array_equal(np.asarray(ours).reshape(expected.shape), expected)


def test_an_imputer_sees_bytes_as_fractions():
    picture = Image.fromarray(np.full((4, 4, 3), 51, np.uint8))
    mask = np.eye(4, dtype=bool)
    seen = []

    def double(images, where):
        seen.append((images.shape, images.dtype, float(images.max()), where.shape))
        return torch.where(where, 2 * images, images)

    changed = np.asarray(imputed(picture, mask, double))
    assert seen == [((1, 3, 4, 4), torch.float32, pytest.approx(0.2), (1, 1, 4, 4))]
    assert np.array_equal(changed, np.where(mask[..., None], 102, 51) * np.ones(3, int))


@pytest.mark.parametrize("imputation", ["noisy_linear", 12.0, [12.0], lambda images, mask: images * 0])
def test_imputations(store, imputation):
    data = masked(store, imputation=imputation)
    image, _ = data.test_dataloader().dataset[0]
    again, _ = masked(store, imputation=imputation).test_dataloader().dataset[0]
    assert torch.equal(image, again)
    gone = torch.from_numpy(np.asarray(store.ranks("test")[0]).astype(int)) < round(0.3 * PIXELS)
    plain = TENSOR(Image.fromarray(bare(Squares(20, seed=1), 0)))
    if not callable(imputation):
        assert torch.equal(image[0][~gone], plain[0][~gone])
    assert not torch.equal(image[0][gone], plain[0][gone])


def test_a_transform_is_found_in_subsets_and_parts_and_left_where_it_is():
    dataset = Squares(6, transform=TENSOR)
    for wrapped in (Subset(Subset(dataset, [4, 2, 0]), [1, 0]), ConcatDataset([dataset, dataset])):
        images, transform = taken_apart(wrapped)
        assert transform is TENSOR
        assert isinstance(images[0][0], Image.Image)
        assert isinstance(wrapped[0][0], torch.Tensor)
    with pytest.raises(ValueError, match="different transforms"):
        taken_apart(ConcatDataset([dataset, Squares(6, transform=v2.ToImage())]))


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
    with pytest.raises(ValueError, match="a percentage is divided by 100"):
        ROARDataModule(Data(), store, 30)
    with pytest.raises(ValueError, match="order must be"):
        ROARDataModule(Data(), store, 0.3, order="most")
    with pytest.raises(ValueError, match="fill must be"):
        ROARDataModule(Data(), store, 0.3, imputation="median")
    with pytest.raises(TypeError, match=r"modes L, RGB.*'P'.*convert\('RGB'\)"):
        spatial_shape(Image.new("P", (4, 4)))
    data = masked(store, imputation=[1.0, 2.0])
    with pytest.raises(ValueError, match="2 numbers to fill pixels with, but the images have 1 channels"):
        data.test_dataloader().dataset[0]
