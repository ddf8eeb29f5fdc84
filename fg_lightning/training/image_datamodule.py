"""The base class of this package's datamodules. Functions for the number of classes and the image shape of any datamodule."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchvision.transforms import v2

from fg_lightning.errors import CannotRun
from fg_lightning.visualization import Normalization

LOADERS = {"fit": "train_dataloader", "validate": "val_dataloader", "test": "test_dataloader", "predict": "predict_dataloader"}


def count_classes(data: LightningDataModule) -> int | None:
    """The number of classes of a datamodule, after its `setup`. None if it is unknown.

    It comes from an attribute `num_classes` or `classes` (names) of the datamodule or its data sets, or from the labels of a
    TensorDataset.
    """
    for item in _data_objects(data):
        count, names = getattr(item, "num_classes", None), getattr(item, "classes", None)
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
        if isinstance(names, (list, tuple)) and names:  # an empty list names none
            return len(names)
        if isinstance(item, TensorDataset) and not item.tensors[-1].is_floating_point():
            return int(item.tensors[-1].max()) + 1
    return None


def image_shape(data: LightningDataModule, stage: str) -> tuple[int, ...] | None:
    """The shape [C, H, W] of the first image of a stage's data. None if the data cannot be read by index.

    It changes neither the global random state nor the loaders.
    """
    dataset = _dataset(data, LOADERS[stage])
    if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset) or not len(dataset):
        return None
    with isolate_rng():
        sample = dataset[0]  # type: ignore[index]
    image = sample[0] if isinstance(sample, (tuple, list)) else sample
    return tuple(image.shape) if isinstance(image, Tensor) and image.ndim == 3 else None


def _dataset(data: LightningDataModule, hook: str) -> Any:
    if getattr(data, hook).__qualname__.startswith("DataHooks."):
        return None
    loader = getattr(data, hook)()
    return getattr(loader, "dataset", None)


def _data_objects(data: LightningDataModule) -> Iterator[Any]:
    """A datamodule, the datamodule that it wraps, the data sets of both, and the data sets that these are parts of."""
    for module in (data, getattr(data, "base", None)):
        if module is not None:
            yield module
            for value in vars(module).values():
                while isinstance(value, Sized) and hasattr(value, "__getitem__"):
                    yield value
                    value = getattr(value, "dataset", None)


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's training images, as torchvision's weights need them."""


class Part(Dataset[tuple[Tensor, int]]):
    """Some images of a data set, transformed.

    Args:
        dataset: data set of (PIL image, class).
        indices: indices of the images.
        transform: function from a PIL image to a tensor [C, H, W].
        classes: names of the classes.
    """

    def __init__(
        self, dataset: Any, indices: Sequence[int], transform: Callable[[Image.Image], Tensor], classes: Sequence[str]
    ) -> None:
        self.dataset = dataset
        self.indices = indices
        self.transform = transform
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[self.indices[index]]
        return self.transform(image), int(label)


class ImageDataModule(LightningDataModule):
    """Loaders for the images that a subclass finds. Its `setup` sets the parts `train`, `val` and `test`.

    Predictions use the test images.

    Args:
        batch_size: Number of images in a batch. Default: 64.
        num_workers: Number of worker processes of each data loader. Default: the number of processors, at most 8.
        augment: Whether to train on random crops, and on mirror images if these show the same class. Default: True.
        val_share: Share of the training images used for validation if there are no validation images, 0 to 1. Default: 0.1.
        max_images: Largest number of images in each part (training, validation, test). From a larger part, a random sample is used.
            Default: all images.
        seed: Seed of the random splits and samples. Default: 0.

    Raises:
        CannotRun: if a number is out of range.
    """

    train: Part
    val: Part
    test: Part
    normalization: Normalization
    size: int

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int | None = None,
        augment: bool = True,
        val_share: float = 0.1,
        max_images: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise CannotRun(f"batch_size must be at least 1, not {batch_size}")
        if num_workers is not None and num_workers < 0:
            raise CannotRun(f"num_workers must be at least 0, not {num_workers}; 0 loads images in the process of the training")
        if not 0 < val_share < 1:
            raise CannotRun(f"val_share must be between 0 and 1, not {val_share}")
        if max_images is not None and max_images < 1:
            raise CannotRun(f"max_images must be at least 1, not {max_images}")
        self.batch_size = batch_size
        self.max_images = max_images
        self.num_workers = min(os.cpu_count() or 1, 8) if num_workers is None else num_workers
        self.augment = augment
        self.val_share = val_share
        self.seed = seed

    def _draw(self, part: Part) -> Part:
        """The part, or a random sample of `max_images` of it."""
        if self.max_images is None or self.max_images >= len(part):
            return part
        drawn = torch.randperm(len(part), generator=torch.Generator().manual_seed(self.seed))[: self.max_images]
        indices = [part.indices[i] for i in sorted(drawn.tolist())]
        return Part(part.dataset, indices, part.transform, part.classes)

    @property
    def classes(self) -> list[str]:
        """The names of the classes. Known after `setup`."""
        return self.train.classes

    def train_dataloader(self) -> DataLoader[Any]:
        # Batch norm fails on a last batch of one image.
        return self._loader(self.train, shuffle=True, drop_last=len(self.train) > self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test)

    def _loader(self, part: Part, **settings: Any) -> DataLoader[Any]:
        return DataLoader(
            part,
            batch_size=self.batch_size,  # by keyword: Lightning rebuilds the loader of predictions with its own sampler
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **settings,
        )


def split_indices(count: int, shares: Sequence[float], seed: int) -> list[list[int]]:
    """Draws random indices for each share, and returns them and then all others. Each list is sorted.

    Args:
        count: number of indices.
        shares: the shares, each 0 to 1. Each gets at least one index.
        seed: seed of the draw.

    Raises:
        CannotRun: if no others are left.
    """
    if count == 0:
        raise CannotRun("there are 0 training images; add at least one, and one for each part that is held out of them")
    sizes = [max(round(share * count), 1) for share in shares]
    if sum(sizes) >= count:
        held = " and ".join(f"{size} (a share of {share:g})" for size, share in zip(sizes, shares, strict=True))
        raise CannotRun(
            f"of {count} training images, {held} would be held out for validation and test, at least one for each, and none would "
            "be left for training; hold out a smaller share (--data.val_share), or add images"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    lots = []
    for size in sizes:
        lots.append(sorted(order[:size]))
        order = order[size:]
    return [*lots, sorted(order)]


def fixed_size_transforms(native: int, size: int, normalization: Normalization, augment: bool, mirror: bool) -> tuple[Any, Any]:
    """The transforms of training images and of all others, for data whose images all have the same size.

    Args:
        native: width and height of the images in pixels.
        size: width and height after the transform in pixels.
        normalization: mean and standard deviation of the last step.
        augment: whether training images are shifted by up to an eighth of their size, beyond which they are black.
        mirror: whether they are also mirrored, one time in two.
    """
    resize = [] if size == native else [v2.Resize([size, size], antialias=True)]
    random: list[Any] = [v2.RandomCrop(size, padding=size // 8), *_random_mirror(mirror)] if augment else []
    return v2.Compose([*resize, *random, *_tensor_steps(normalization)]), v2.Compose([*resize, *_tensor_steps(normalization)])


def any_size_transforms(size: int, normalization: Normalization, augment: bool, mirror: bool) -> tuple[Any, Any]:
    """The transforms of training images and of all others, for photographs of any size.

    Args:
        size: width and height after the transform in pixels: the middle of the image, whose shorter side is resized to 8/7 of it.
        normalization: mean and standard deviation of the last step.
        augment: whether training images are crops of 8 to 100 % of the image instead, as is usual for ImageNet.
        mirror: whether they are also mirrored, one time in two.
    """
    middle = [v2.RGB(), v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
    random = [v2.RGB(), v2.RandomResizedCrop(size, antialias=True), *_random_mirror(mirror)]
    last = _tensor_steps(normalization)
    return v2.Compose([*(random if augment else middle), *last]), v2.Compose([*middle, *last])


def check_size(size: int | None) -> None:
    """Checks the width and height of images.

    Raises:
        CannotRun: if it is less than 1 pixel.
    """
    if size is not None and size < 1:
        raise CannotRun(f"size must be at least 1 pixel, not {size}")


def check_normalization(mean: Sequence[float] | None, std: Sequence[float] | None, usual: Normalization) -> Normalization:
    """The usual normalization, or the user's own.

    Raises:
        CannotRun: if only one of mean and std is given, their length is not the number of channels, or a std is 0.
    """
    if mean is None and std is None:
        return usual
    if mean is None or std is None or len(mean) != len(std) or len(mean) != len(usual.mean) or not all(std):
        raise CannotRun(
            f"mean and std must be {len(usual.mean)} numbers each, one for every channel, and no std 0; not {mean} and {std}"
        )
    return Normalization(mean, std)


def _random_mirror(mirror: bool) -> list[Any]:
    return [v2.RandomHorizontalFlip()] if mirror else []


def _tensor_steps(normalization: Normalization) -> list[Any]:
    mean, std = list(normalization.mean), list(normalization.std)
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor(), v2.Normalize(mean, std)]
