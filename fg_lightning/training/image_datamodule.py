"""The base of this package's datamodules, and how many classes and which images any datamodule has."""

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
    """How many classes a datamodule that is set up has; None if it does not say.

    Its attribute `num_classes`, the names in an attribute `classes` of it or its data sets, or the labels of a TensorDataset.
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
    """The shape [C, H, W] of the first image of a stage's data, None if it cannot be read by its index.

    Neither the global random state nor a loader that is read later notices.
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
    """A datamodule, the one that it changes, the data sets of both, and those that these are parts of."""
    for module in (data, getattr(data, "base", None)):
        if module is not None:
            yield module
            for value in vars(module).values():
                while isinstance(value, Sized) and hasattr(value, "__getitem__"):
                    yield value
                    value = getattr(value, "dataset", None)


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's training images, as torchvision's weights take them."""


class Part(Dataset[tuple[Tensor, int]]):
    """Some images of a data set, transformed.

    Args:
        dataset: of (PIL image, class).
        indices: of the images.
        transform: makes a PIL image into [C, H, W].
        classes: their names.
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
    """Loaders over the images that a subclass finds; `setup` leaves them as the parts `train`, `val` and `test`.

    Predictions are made for the test images.

    Args:
        batch_size: Number of images in a batch. Default: 64.
        num_workers: Number of worker processes of each data loader. Default: the number of processors, at most 8.
        augment: Whether to train on random crops, and on mirror images if these show the same class. Default: True.
        val_share: Share of the training images used for validation if there are no validation images, 0 to 1. Default: 0.1.
        max_images: Largest number of images in each part (training, validation, test). More are drawn from. Default: all are used.
        seed: Seed of the draws of images. Default: 0.

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
            raise CannotRun(f"num_workers must be at least 0, which loads in the training's own process, not {num_workers}")
        if not 0 < val_share < 1:
            raise CannotRun(f"val_share must lie between 0 and 1, not be {val_share}")
        if max_images is not None and max_images < 1:
            raise CannotRun(f"max_images must be at least 1, not {max_images}")
        self.batch_size = batch_size
        self.max_images = max_images
        self.num_workers = min(os.cpu_count() or 1, 8) if num_workers is None else num_workers
        self.augment = augment
        self.val_share = val_share
        self.seed = seed

    def _draw(self, part: Part) -> Part:
        """Not more than `max_images` of a part."""
        if self.max_images is None or self.max_images >= len(part):
            return part
        drawn = torch.randperm(len(part), generator=torch.Generator().manual_seed(self.seed))[: self.max_images]
        indices = [part.indices[i] for i in sorted(drawn.tolist())]
        return Part(part.dataset, indices, part.transform, part.classes)

    @property
    def classes(self) -> list[str]:
        """The names of the classes; once the data is set up."""
        return self.train.classes

    def train_dataloader(self) -> DataLoader[Any]:
        # A last batch of one image is more than batch norm can stand.
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
            batch_size=self.batch_size,  # by its name: Lightning makes the loader of predictions anew with a sampler of its own
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **settings,
        )


def split_indices(count: int, shares: Sequence[float], seed: int) -> list[list[int]]:
    """Some indices drawn at random for each share, and then all others; every one in order.

    Args:
        count: of all indices.
        shares: of each lot, 0 to 1; none is empty.
        seed: of the draw.

    Raises:
        CannotRun: if there are no others.
    """
    sizes = [max(round(share * count), 1) for share in shares]
    if sum(sizes) >= count:
        raise CannotRun(
            f"of {count} training images {' and '.join(map(str, sizes))} would be held out for validation and test, which leaves "
            "none to train on; hold out less (--data.val_share 0.1), or add images"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    lots = []
    for size in sizes:
        lots.append(sorted(order[:size]))
        order = order[size:]
    return [*lots, sorted(order)]


def fixed_size_transforms(native: int, size: int, normalization: Normalization, augment: bool, mirror: bool) -> tuple[Any, Any]:
    """For images that all have the same size: what is done to training images, and to all others.

    Args:
        native: how many pixels wide and high they are.
        size: how many they become.
        normalization: the last step.
        augment: whether training images are shifted by up to an eighth of their size, beyond which they are black.
        mirror: whether they are also mirrored, one time in two.
    """
    resize = [] if size == native else [v2.Resize([size, size], antialias=True)]
    random: list[Any] = [v2.RandomCrop(size, padding=size // 8), *_random_mirror(mirror)] if augment else []
    return v2.Compose([*resize, *random, *_tensor_steps(normalization)]), v2.Compose([*resize, *_tensor_steps(normalization)])


def any_size_transforms(size: int, normalization: Normalization, augment: bool, mirror: bool) -> tuple[Any, Any]:
    """For photographs of any size: what is done to training images, and to all others.

    Args:
        size: how many pixels wide and high they become: the middle of the image, whose shorter side is an eighth longer.
        normalization: the last step.
        augment: whether training images are crops of 8 to 100 % of the image instead, as is usual for ImageNet.
        mirror: whether they are also mirrored, one time in two.
    """
    middle = [v2.RGB(), v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
    random = [v2.RGB(), v2.RandomResizedCrop(size, antialias=True), *_random_mirror(mirror)]
    last = _tensor_steps(normalization)
    return v2.Compose([*(random if augment else middle), *last]), v2.Compose([*middle, *last])


def check_size(size: int | None) -> None:
    """Whether images can become so many pixels wide and high.

    Raises:
        CannotRun: if not.
    """
    if size is not None and size < 1:
        raise CannotRun(f"size must be at least 1 pixel, not {size}")


def check_normalization(mean: Sequence[float] | None, std: Sequence[float] | None, usual: Normalization) -> Normalization:
    """The usual normalization, or the user's own.

    Raises:
        CannotRun: if only one of mean and std is given, or they do not go together or with the images.
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
