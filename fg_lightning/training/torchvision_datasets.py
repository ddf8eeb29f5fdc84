"""Torchvision's data sets by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union

import torchvision.datasets

from fg_lightning.errors import CannotRun
from fg_lightning.training.image_datamodule import (
    IMAGENET,
    ImageDataModule,
    Part,
    any_size_transforms,
    check_normalization,
    check_size,
    fixed_size_transforms,
    split_indices,
)
from fg_lightning.visualization import Normalization

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A data set of torchvision, and the arguments for its parts.

    Attributes:
        classes: number of classes.
        size: side of its square images in pixels. None if images differ in size.
        normalization: mean and standard deviation of every channel.
        train: arguments for the training images.
        val: arguments for the validation images. None: they are held out from the training images.
        test: arguments for the test images. None: they are held out from the training images.
        mirror: whether a mirror image shows the same class.
    """

    classes: int
    size: int | None = None
    normalization: Normalization = IMAGENET
    train: Arguments = field(default_factory=lambda: {"split": "train"})
    val: Arguments | None = None
    test: Arguments | None = field(default_factory=lambda: {"split": "test"})
    mirror: bool = True


OLD: dict[str, Any] = {"train": {"train": True}, "test": {"train": False}}
VAL: dict[str, Any] = {"val": {"split": "val"}}
WHOLE: dict[str, Any] = {"train": {}, "test": None}
DIGITS = Normalization((0.1307,), (0.3081,))

SOURCES: dict[str, Source] = {
    "MNIST": Source(10, 28, DIGITS, **OLD, mirror=False),
    "QMNIST": Source(10, 28, DIGITS, **OLD, mirror=False),
    "FashionMNIST": Source(10, 28, Normalization((0.2860,), (0.3530,)), **OLD),
    "KMNIST": Source(10, 28, Normalization((0.1918,), (0.3483,)), **OLD, mirror=False),
    "CIFAR10": Source(10, 32, Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), **OLD),
    "CIFAR100": Source(100, 32, Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)), **OLD),
    "SVHN": Source(10, 32, Normalization((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)), mirror=False),
    "STL10": Source(10, 96),
    "EuroSAT": Source(10, 64, **WHOLE),
    "PCAM": Source(2, 96, **VAL),
    "Country211": Source(211, val={"split": "valid"}),
    "DTD": Source(47, **VAL),
    "FGVCAircraft": Source(100, **VAL),
    "Flowers102": Source(102, **VAL),
    "Food101": Source(101),
    "GTSRB": Source(43, mirror=False),
    "Imagenette": Source(10, test={"split": "val"}),
    "OxfordIIITPet": Source(37, train={"split": "trainval"}),
    "RenderedSST2": Source(2, **VAL, mirror=False),
    "Caltech101": Source(101, **WHOLE),
    "Caltech256": Source(257, **WHOLE),
    "SUN397": Source(397, **WHOLE),
    "FakeData": Source(10, 224, **WHOLE),
}
"""Data sets by name. Means and standard deviations are those of all pixels of the training images, in 0..1, as commonly published
for these sets; for the others, ImageNet's."""

ANY_SIZE = 224
"""Default side in pixels after the transform, for images that differ in size."""


class TorchvisionDataModule(ImageDataModule):
    """A data set of torchvision, downloaded if it is missing.

    If it has no validation images, a share of the training images is held out. If it has no test images, the same share is held out
    for the test.

    Args:
        name: MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN, Food101, ... FakeData is noise and needs no download. Default: MNIST.
        root: Folder of the data set. Default: data.
        size: Width and height of the images in pixels. Default: their own, or 224 if they differ in size.
        mean: Mean of each channel, in 0..1, subtracted from the images. Default: the data set's.
        std: Standard deviation of each channel, by which the images are divided. Default: the data set's.
        **kwargs: see `ImageDataModule`.

    Raises:
        CannotRun: if the data set is unknown, or a number is out of range; in `setup`, if no training images are left.
        CannotRun: in `prepare_data`, if the data set is neither in `root` nor can be downloaded.

    Examples:
        >>> data = TorchvisionDataModule("CIFAR10", batch_size=128)
        >>> data.num_classes
        10
    """

    def __init__(
        self,
        name: str = "MNIST",
        root: Union[str, Path] = "data",
        size: Union[int, None] = None,
        mean: Union[tuple[float, ...], None] = None,
        std: Union[tuple[float, ...], None] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_size(size)
        if name not in SOURCES:
            close = get_close_matches(name.lower(), {known.lower(): known for known in SOURCES}, n=1)
            meant = next((f" (did you mean {known}?)" for known in SOURCES if [known.lower()] == close), "")
            raise CannotRun(
                f"there is no data set {name!r}{meant}; known names are {', '.join(SOURCES)}. For folders of images use "
                "ImageFolderDataModule"
            )
        self.source_name = name
        self.root = Path(root)
        self.source = SOURCES[name]
        self.size = size or self.source.size or ANY_SIZE
        self.normalization = check_normalization(mean, std, self.source.normalization)
        self.num_classes = self.source.classes

    def prepare_data(self) -> None:
        for given in (self.source.train, self.source.val, self.source.test):
            if given is not None:
                self._dataset(given, download=True)

    def setup(self, stage: str) -> None:
        source = self.source
        if source.size is None:
            random, plain = any_size_transforms(self.size, self.normalization, self.augment, source.mirror)
        else:
            random, plain = fixed_size_transforms(source.size, self.size, self.normalization, self.augment, source.mirror)
        train = self._dataset(source.train)
        own = {name: self._dataset(given) for name, given in (("val", source.val), ("test", source.test)) if given is not None}
        missing = [name for name in ("val", "test") if name not in own]
        *lots, rest = split_indices(len(train), [self.val_share] * len(missing), self.seed)
        names = class_names(train, self.num_classes)
        parts = {name: Part(dataset, range(len(dataset)), plain, names) for name, dataset in own.items()}
        parts |= {name: Part(train, lot, plain, names) for name, lot in zip(missing, lots, strict=True)}
        chosen = Part(train, rest, random, names), parts["val"], parts["test"]
        self.train, self.val, self.test = map(self._draw, chosen)

    def _dataset(self, given: Arguments, download: bool = False) -> Any:
        if self.source_name == "FakeData":
            return torchvision.datasets.FakeData(size=1000, image_size=(3, self.size, self.size), num_classes=self.num_classes)
        kind = getattr(torchvision.datasets, self.source_name)
        try:
            return kind(self.root, **given, **({"download": True} if download else {}))
        except (RuntimeError, OSError) as error:
            raise CannotRun(
                f"{self.source_name} is not in {self.root.resolve()}"
                + (f" and could not be downloaded ({error})" if download else f" ({error})")
                + f". Give its folder (--data.root), in the layout of torchvision.datasets.{self.source_name}"
            ) from error


def class_names(dataset: Any, count: int) -> list[str]:
    """The names of a data set's classes. Their numbers if it does not have `count` names."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    if len(names) != count:
        return [str(number) for number in range(count)]
    return [name if isinstance(name, str) else str(name[0]) for name in names]
