"""A datamodule that adds a mark to its images. The mark shows the class, and its place is known."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args

import numpy as np
import torch
from jaxtyping import Bool
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from fg_lightning.errors import CannotRun, UnfitData
from fg_lightning.planted.marks import MARGIN_SHARE, PATCH_SHARE, Corner, CornerPatch, DecoyPair
from fg_lightning.roar.changed_images import ChangedImages
from fg_lightning.roar.dataset_transforms import Transform
from fg_lightning.roar.dataset_views import Plane, SplitView
from fg_lightning.roar.image_pixels import Picture, apply_transform, fill_with_function, planes, replace_image, spatial_shape
from fg_lightning.visualization.film_strips import spread_indices

Shortcut = Literal["corner", "decoy"]

Mark = Literal["label", "shuffled", "random"]

NUM_MEASURED = 256
"""Number of training images whose lowest and highest values are measured, if they are not bytes."""

MAX_DRAWS = 1000
"""Largest number of random draws to find an image of another class."""


class PlantedDataset(Dataset[Any]):
    """A split's samples, whose images get their marks before they are transformed.

    Args:
        view: the split.
        shortcut: draws the marks.
        mark: the class whose mark an image gets, see `PlantedShortcut`.
        seed: seed of all random draws. They are the same each time an image is read.
    """

    def __init__(self, view: SplitView, shortcut: Union[CornerPatch, DecoyPair], mark: Mark, seed: int) -> None:
        self._plane = view.plane
        self._transform = view.transform
        self._shortcut = shortcut
        self._mark = mark
        self._seed = [seed, zlib.crc32(view.name.encode())]

    def __len__(self) -> int:
        return len(self._plane)

    def __getitem__(self, index: int) -> Any:
        sample, place = self._plane[index], self._plane.place
        random = np.random.default_rng([*self._seed, index])
        if isinstance(self._shortcut, CornerPatch):
            planted = self._add_patch(sample, random)
        else:
            planted = self._pair_with_decoy(sample, index, random)
        return apply_transform(replace_image(sample, place, planted), place, self._transform)

    def _add_patch(self, sample: Any, random: np.random.Generator) -> Picture:
        shortcut, label = self._shortcut, label_of(sample, self._plane.place)
        assert isinstance(shortcut, CornerPatch)
        count = shortcut.num_classes
        if not 0 <= label < count:
            raise ValueError(
                f"an image has the label {label}, but num_classes is {count}: labels must be from 0 to {count - 1}; correct one of "
                "them"
            )
        if self._mark == "random":
            mark = int(random.integers(count))
        else:
            mark = label if self._mark == "label" else (label + 1 + int(random.integers(count - 1))) % count
        return _replace_pixels(sample[self._plane.place], lambda image: shortcut.draw(image, mark), shortcut.shape)

    def _pair_with_decoy(self, sample: Any, index: int, random: np.random.Generator) -> Picture:
        shortcut, place = self._shortcut, self._plane.place
        assert isinstance(shortcut, DecoyPair)
        own = sample[place]
        other = self._plane.image((index + 1 + int(random.integers(len(self) - 1))) % len(self))
        pair = {"label": (own, other), "random": (other, own)}.get(self._mark)
        left, right = pair or (self._image_of_another_class(label_of(sample, place), random), other)
        draw = lambda _: shortcut.draw(_in_units(left, shortcut.shape), _in_units(right, shortcut.shape))  # noqa: E731
        return _replace_pixels(own, draw, shortcut.shape)

    def _image_of_another_class(self, label: int, random: np.random.Generator) -> Picture:
        for _ in range(MAX_DRAWS):
            sample = self._plane[int(random.integers(len(self)))]
            if label_of(sample, self._plane.place) != label:
                image: Picture = sample[self._plane.place]
                return image
        raise CannotRun(f"all of {MAX_DRAWS} images drawn at random have the label {label}; a shortcut needs two classes or more")


class PlantedShortcut(ChangedImages):
    """Adds a mark to every image. The mark shows the class, and its place is known.

    A network that is trained on such images learns the mark instead of the image. To verify that, measure its accuracy with marks
    of other classes (`mark="shuffled"`): it falls. Saliency maps should then lie on the mark. `masks` gives its place.

    Marks are added before the data set's transform (augmentation, normalisation), to images of the size of the network's input.
    Labels and all else about the user's loaders stay the same.

    Args:
        base: datamodule over map-style data sets. A sample holds an image and, after it, an integer label.
        shortcut: "corner", a patch in a corner, whose brightness tells the class; or "decoy", the image at half its size beside
            another image of the data set, the decoy, of an unrelated class, after BlockMNIST (Shah et al., Do Input Gradients
            Highlight Discriminative Features?, NeurIPS 2021).
        strength: opacity of the mark, 0 to 1. Below 1, the mark is blended with the image, or with the background beside the decoy.
            Default: 1.
        mark: "label", the mark of the image's label; "shuffled", the mark of a random other class; "random", the mark of a class
            that is drawn independently of the label, so that the mark is uninformative. With "random", the image itself still shows
            the class: beside the patch, or in the place of the decoy. Default: "label".
        size: side of the patch in pixels. Default: 3 for images of 28 pixels, in proportion for others.
        corner: "top_left", "top_right", "bottom_left" or "bottom_right". Default: "top_left".
        num_classes: number of classes, each with its own brightness. Default: one more than the highest label of all training
            images.
        value_range: lowest and highest value of a mark, in the units of the images before their transform. Default: 0 and 255 for
            bytes, such as PIL images; else the lowest and the highest value of 256 training images.
        seed: seed of the random classes and decoys. They are the same each time an image is read. Default: 0.
        prepare: function that brings an image to the size of the network's input, see `ROARDataModule`.
        transform: transform of images after the marks are added, see `ROARDataModule`.

    Attributes:
        margin: number of pixels around a mark that count as part of it, for coarse maps: 4 for a patch in images of 28 pixels, 0
            for a decoy. Known after `setup`.

    Raises:
        ValueError: if an argument is invalid.
        UnfitData: in `setup`, if a data set is not map-style, has no integer labels, or its images are not [C, H, W] of bytes or
            floating-point numbers.
        RandomImages: in `setup`, if the data gives different images for one index.
        CannotRun: in `setup`, if there are fewer than two classes, or the images are too small for the mark.

    Examples:
        >>> data = PlantedShortcut(DigitsDataModule(), "corner")  # doctest: +SKIP
        >>> trainer.fit(DigitClassifier(), data)  # doctest: +SKIP
        >>> trainer.test(datamodule=PlantedShortcut(DigitsDataModule(), "corner", mark="shuffled"))  # doctest: +SKIP
        >>> relevance_mass(maps, data.masks(len(maps), data.margin))  # doctest: +SKIP
    """

    def __init__(
        self,
        base: LightningDataModule,
        shortcut: Shortcut = "corner",
        strength: float = 1.0,
        mark: Mark = "label",
        *,
        size: int | None = None,
        corner: Corner = "top_left",
        num_classes: int | None = None,
        value_range: tuple[float, float] | None = None,
        seed: int = 0,
        prepare: Transform | None = None,
        transform: Transform | None = None,
    ) -> None:
        if not isinstance(base, LightningDataModule):
            raise ValueError(f"base must be a LightningDataModule, not {type(base).__name__}")
        super().__init__(base, prepare, transform)
        check_shortcut(shortcut, strength, size, corner)
        if mark not in get_args(Mark):
            raise ValueError(f"mark must be one of {', '.join(get_args(Mark))}, not {mark!r}")
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {num_classes}")
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ValueError(f"value_range must be a lower and a higher number, not {value_range}")
        self.shortcut = shortcut
        self.strength = strength
        self.mark = mark
        self.size = size
        self.corner = corner
        self.num_classes = num_classes
        self.value_range = value_range
        self.seed = seed
        self.margin = 0

    def check_views(self, views: Mapping[str, SplitView]) -> None:
        first = next(iter(views.values()))
        for view in views.values():
            label_of(view.plane[0], view.plane.place)
            if len(view.plane) < 2:
                raise CannotRun(f"the {view.name} data set has one image, but a mark of another class needs two or more")
        shape, unit = _check_image(first.plane.image(0))
        if self.value_range is None:
            self.value_range = (0.0, 255.0) if unit == 255 else _measure_range(first.plane)
        low, high = (value / unit for value in self.value_range)
        if self.shortcut == "corner":
            if self.num_classes is None:
                self.num_classes = _count_classes(first)
            size = self.size or max(1, round(PATCH_SHARE * min(shape)))
            if size > min(shape) // 2:
                raise CannotRun(f"a patch of {size} pixels is too large for images of {shape}; size must be 1 to {min(shape) // 2}")
            self.margin = round(MARGIN_SHARE * min(shape))
            self._drawing: Union[CornerPatch, DecoyPair] = CornerPatch(
                shape, self.num_classes, (low, high), self.strength, size, self.corner
            )
        else:
            if min(shape) < 4:
                raise CannotRun(f"two images side by side need 4 pixels or more on each side, but the images are {shape}")
            self._drawing = DecoyPair(shape, (low, high), self.strength)

    def change_images(self, view: SplitView) -> PlantedDataset:
        return PlantedDataset(view, self._drawing, self.mark, self.seed)

    def masks(self, num_images: int, margin: int = 0) -> Bool[Tensor, "n 1 h w"]:
        """Masks of the mark, [N, 1, H, W]: True on the mark, which lies at the same place in all images.

        Args:
            num_images: number of masks, N.
            margin: number of pixels around the mark that count as part of it, up to the image's border. Default: 0.

        Raises:
            ValueError: if the margin is negative.
            RuntimeError: if it is called before `setup`.
        """
        mask = torch.zeros(self.shape, dtype=torch.bool)
        mask[self.area(margin)] = True
        return mask.expand(num_images, 1, *mask.shape)

    def area(self, margin: int = 0) -> tuple[slice, slice]:
        """The rows and columns of the mark and of `margin` pixels around it. Raises what `masks` does."""
        if margin < 0:
            raise ValueError(f"margin must be a number of pixels, at least 0, not {margin}")
        return self._drawn.area(margin)

    @property
    def shape(self) -> tuple[int, int]:
        """The images' size, (H, W). Known after `setup`."""
        return self._drawn.shape

    @property
    def _drawn(self) -> Union[CornerPatch, DecoyPair]:
        if not self._views:
            raise RuntimeError("the images' size is unknown before the datamodule is set up; call setup('test') first")
        return self._drawing

    def dataset(self, split: str) -> tuple[PlantedDataset, SplitView]:
        """The samples with marks of a split, and the split itself, by its name."""
        return self.change_images(self._views[split]), self._views[split]

    @property
    def splits(self) -> list[str]:
        """The names of the splits: train, val, test; test_0, test_1 if there are several loaders. Known after `setup`."""
        return list(self._views)


def check_shortcut(shortcut: str, strength: float, size: int | None, corner: str) -> None:
    """Raises ValueError if one of these arguments of `PlantedShortcut` is invalid."""
    if shortcut not in get_args(Shortcut):
        raise ValueError(f"shortcut must be one of {', '.join(get_args(Shortcut))}, not {shortcut!r}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be from 0 to 1, not {strength}")
    if corner not in get_args(Corner):
        raise ValueError(f"corner must be one of {', '.join(get_args(Corner))}, not {corner!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    if shortcut != "corner" and (size is not None or corner != "top_left"):
        raise ValueError(f"size and corner are settings of the shortcut corner; leave them out for {shortcut}")


def label_of(sample: Any, place: Any) -> int:
    """The label of a sample: its first integer, except for the image.

    Raises:
        UnfitData: if there is none.
    """
    items = sample.items() if isinstance(sample, Mapping) else enumerate(sample)
    for key, value in items:
        if key == place or isinstance(value, (bool, np.bool_)):
            continue
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
            value = value.item()
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return int(value)
    raise UnfitData(
        f"no integer label was found beside the image in a sample of type {type(sample).__name__}, but a mark needs the label; "
        "let the data set give (image, label)"
    )


def _count_classes(view: SplitView) -> int:
    """One more than the highest label of a split."""
    raw: Any = view.plane.raw
    count = 1 + max(label_of(raw[i], view.plane.place) for i in range(len(raw)))
    if count < 2:
        raise CannotRun(f"all {view.name} images have the label 0, but a mark needs two classes or more")
    return count


def _check_image(image: Picture) -> tuple[tuple[int, int], int]:
    """The size of an image, and the number by which `_in_units` divides it: 255 for bytes, else 1."""
    shape = spatial_shape(image)
    dtype = planes(image).dtype
    if len(shape) != 2:
        raise UnfitData(f"marks can be added to images [C, H, W], but these have {len(shape)} spatial dimensions")
    if not (dtype.is_floating_point or dtype is torch.uint8):
        raise UnfitData(
            f"marks can be added to images of bytes or floating-point numbers, but these hold {dtype}; let the data set give them "
            "as float32"
        )
    return (shape[0], shape[1]), 255 if dtype is torch.uint8 else 1


def _measure_range(plane: Plane) -> tuple[float, float]:
    images = [planes(plane.image(i)) for i in spread_indices(len(plane), NUM_MEASURED)]
    low, high = min(float(image.min()) for image in images), max(float(image.max()) for image in images)
    if not low < high:
        raise CannotRun(f"all pixels of {len(images)} training images are {low:g}; give value_range=(low, high)")
    return low, high


def _in_units(image: Picture, shape: tuple[int, int]) -> Tensor:
    """The image's channels as floating-point numbers, bytes as 0..1: the input of the function of `fill_with_function`.

    Raises:
        CannotRun: if the image has another size than the first.
    """
    if spatial_shape(image) != shape:
        raise CannotRun(
            f"images must be of one size before their transform, but one is {spatial_shape(image)} and the first is {shape}; bring "
            "them to one size with prepare=..., such as torchvision.transforms.v2.Resize((224, 224))"
        )
    pixels = planes(image)
    return pixels if pixels.is_floating_point() else pixels.float() / 255


def _replace_pixels(image: Picture, draw: Any, shape: tuple[int, int]) -> Picture:
    """An image of the same kind, drawn by a function of its channels."""
    _in_units(image, shape)
    return fill_with_function(image, np.ones(shape, bool), lambda images, mask: draw(images[0])[None])
