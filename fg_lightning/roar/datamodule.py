"""A datamodule whose images lack the pixels that a method ranks first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from fg_lightning.errors import CannotRun, UnfitData
from fg_lightning.removal import Fill, Order, find_fill, noisy_linear, removal_mask
from fg_lightning.removal.fills import MeanAndStd
from fg_lightning.removal.pixel_ranking import check_fraction, check_order
from fg_lightning.roar.cells import MASKS
from fg_lightning.roar.changed_images import ChangedImages
from fg_lightning.roar.config import ROARConfig
from fg_lightning.roar.dataset_transforms import Transform
from fg_lightning.roar.dataset_views import NUM_EXAMINED, SplitView
from fg_lightning.roar.image_pixels import (
    Mask,
    Picture,
    apply_transform,
    channel_sums,
    fill_with_function,
    fill_with_values,
    holds_bytes,
    images_and_labels,
    planes,
    replace_image,
    spatial_shape,
)
from fg_lightning.roar.saliency_store import SaliencyStore
from fg_lightning.visualization.film_strips import spread_indices

Values = npt.NDArray[np.float64]

ZERO = np.zeros(1)


class Removal:
    """Which pixels of a ranked image are removed, and what replaces them.

    Args:
        fraction: the share of pixels, 0 to 1.
        order: "morf" or "lerf".
        fill: see `ROARDataModule`.
        keep: whether this share stays and all other pixels are removed.
        mean: mean of each channel, for the fill "dataset_mean".
        seed: seed of the fill "noisy_linear".
        normalization: (mean, std) of images that are already normalized, for the fill "black". None if they are not normalized.
    """

    def __init__(
        self,
        fraction: float,
        order: Order,
        fill: Fill,
        keep: bool,
        mean: Sequence[float],
        seed: int = 0,
        normalization: MeanAndStd | None = None,
    ) -> None:
        self.fraction = fraction
        self.order = order
        self.keep = keep
        self._is_black = False
        self._values: Values | None = None
        self._users_values: Values | None = None
        if isinstance(fill, str) and fill == "dataset_mean":
            self._values = np.asarray(mean, float)
        elif isinstance(fill, str) and fill == "noisy_linear":
            self._fill = find_fill(partial(noisy_linear, seed=seed))
        else:
            self._is_black = isinstance(fill, str) and fill == "black"
            self._fill = find_fill(fill, normalization=normalization if self._is_black else None)
            if not isinstance(fill, str) and not callable(fill):
                self._values = self._users_values = np.asarray(fill, float).reshape(-1)

    @property
    def is_none(self) -> bool:
        """Whether no pixel of any image is removed."""
        return self.fraction == (1 if self.keep else 0)

    def check(self, image: Picture) -> None:
        """Replaces one pixel of an image, so that errors are raised before the training.

        Raises:
            CannotRun: if the fill is numbers that are not in the image's units, or not one for each channel; if it is "black" and
                the image is normalized in an unknown way.
            UnfitData: if a fill function cannot be used on the image.
        """
        values = self._users_values
        if values is not None and _are_shares(values) and not planes(image).is_floating_point():
            raise CannotRun(
                f"pixels would be replaced by {values.tolist()}, but the images hold integers before their transform: give "
                f"numbers in their own units, such as {[round(255 * value) for value in values.tolist()]} in 0..255"
            )
        mask = np.zeros(spatial_shape(image), bool)
        mask.flat[0] = True
        try:
            self(image, mask)
        except ValueError as error:
            if not self._is_black:
                raise
            raise CannotRun(
                "fill black is 0 for images that are not normalized, but the data set's images have values below 0 before their "
                "transform, and their normalization is unknown. Give the datamodule an attribute normalization = (mean, std), such "
                "as ((0.5,), (0.5,)) for images from -1 to 1, or give the number for black as the fill"
            ) from error

    def mask(self, ranks: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which pixels of ranked images [N, *S] are removed."""
        mask = removal_mask(ranks, self.fraction, self.order)
        return np.logical_not(mask) if self.keep else mask

    def __call__(self, image: Picture, mask: Mask) -> Picture:
        values = ZERO if self._is_black and holds_bytes(image) else self._values  # takes a fiftieth of the function's time
        return fill_with_function(image, mask, self._fill) if values is None else fill_with_values(image, mask, values)


class MasksAlone(Removal):
    """Replaces the whole image by its mask: it shows only which pixels are removed.

    Args:
        fraction: the share of pixels, 0 to 1.
        order: "morf" or "lerf".
        keep: whether this share stays and all other pixels are removed.
        white: value of removed pixels in every channel. Other pixels are 0.
    """

    is_none = False

    def __init__(self, fraction: float, order: Order, keep: bool, white: float) -> None:
        super().__init__(fraction, order, 0.0, keep, [0.0])
        self.white = white

    def check(self, image: Picture) -> None:
        """Does nothing: any image can be replaced."""

    def __call__(self, image: Picture, mask: Mask) -> Picture:
        black = fill_with_values(image, np.ones_like(mask), np.zeros(1))
        return fill_with_values(black, mask, np.array([self.white]))


class MaskedDataset(Dataset[Any]):
    """A split's samples, whose images lose pixels before they are transformed.

    Args:
        view: the split.
        store: the store of its ranks.
        removal: which pixels are removed, and what replaces them.
        redraw: whether random ranks replace the store's. They are drawn with torch's generator whenever an image is read.
    """

    def __init__(self, view: SplitView, store: SaliencyStore, removal: Removal, redraw: bool = False) -> None:
        self._plane = view.plane
        self._transform = view.transform
        self._split = view.name
        self._store = store
        self._removal = removal
        self._redraw = redraw
        self._shape = store.manifest.shape

    def __len__(self) -> int:
        return len(self._plane)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A batch of samples, for torch's loaders. Each step runs for all images: to alternate between the steps takes longer."""
        if self._redraw and len(indices) > 1:  # the transform may draw from the same generator
            return [self[index] for index in indices]
        samples, place = [self._plane[index] for index in indices], self._plane.place
        if not self._removal.is_none:
            for index, sample in zip(indices, samples, strict=True):
                self._check_size(index, sample[place])
            masks = self._removal.mask(self._ranks(indices))
            images = [self._removal(sample[place], mask) for sample, mask in zip(samples, masks, strict=True)]
            samples = [replace_image(sample, place, image) for sample, image in zip(samples, images, strict=True)]
        return [apply_transform(sample, place, self._transform) for sample in samples]

    def _check_size(self, index: int, image: Picture) -> None:
        if spatial_shape(image) != self._shape:
            raise ValueError(
                f"image {index} of the {self._split} data is {spatial_shape(image)} before its transform, but its ranks are "
                f"{self._shape}: give images of one size, or bring them to one size with prepare=..."
            )

    def _ranks(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        if self._redraw:
            return torch.randperm(math.prod(self._shape)).numpy().reshape(1, *self._shape)
        return self._store.read(self._split, indices)


class ROARDataModule(ChangedImages):
    """Remove-and-retrain's data (Hooker et al., A Benchmark for Interpretability Methods in Deep Neural Networks, NeurIPS 2019).

    Train, validation and test images lose exactly round(fraction * number of pixels) pixels each, in the order of the store's
    ranks, before the data set's transform (augmentation, normalisation). Batches, samplers, workers and collation of the user's
    loaders stay.

    Args:
        base: datamodule over map-style data sets.
        store: store of the ranks of their pixels, or its folder.
        fraction: share of the pixels to remove, 0 to 1.
        order: "morf", the most relevant pixels first, or "lerf", the least relevant first. Default: "morf".
        fill: what replaces removed pixels: "dataset_mean", the training images' mean of each channel; "image_mean", the image's own
            mean; "black", 0 of the image (if images are normalized before their transform, the datamodule needs an attribute
            `normalization`, (mean, std)); "noisy_linear" (ROAD, Rong et al. 2022); a number, or one for each channel, in the units
            of the images before their transform, 0..255 for PIL images and bytes; or a function (images [1, C, *S] in 0..1, mask
            [1, 1, *S]) -> images. Default: "dataset_mean".
        keep: keep-and-retrain: whether the share `fraction` stays and all other pixels are removed. Default: False.
        prepare: function that brings an image to the size of the ranks. Default: the first steps of the evaluation transform, see
            `views_of`.
        transform: transform of images after the removal. Default: the data set's attribute `transform`.
        seed: seed of the fill "noisy_linear". Default: 0.
        control: "masks" replaces images by their masks, to measure how much the masks reveal. Every channel of a removed pixel is
            then 1 and of other pixels 0, in the units of the images before their transform (255 for bytes; the largest number of a
            few training images if that is more than 1), and the fill is not used. Default: None, no control.
        redraw: whether random ranks replace the store's, drawn whenever an image is read: the random baseline in the code of Hooker
            et al. Default: False.

    Raises:
        StoreError: if there is no store, or, in `setup`, if it belongs to other data.
        RandomImages: in `setup`, if the data gives different images for one index.
        UnfitData: in `setup`, if a data set is not map-style, or its pixels do not correspond to those that the network sees.
        CannotRun: in `setup`, if the fill's numbers are not in the images' units or not one for each channel, or black is unknown.
        ValueError: if the fraction is not in 0..1, or order, fill or control is unknown.

    Examples:
        >>> data = ROARDataModule(DigitsDataModule(), "stores/fullgrad", fraction=0.3)  # doctest: +SKIP
        >>> trainer.fit(DigitClassifier(), data)  # doctest: +SKIP
    """

    def __init__(
        self,
        base: LightningDataModule,
        store: Union[SaliencyStore, str, Path],
        fraction: float,
        order: Order = "morf",
        fill: Fill = "dataset_mean",
        keep: bool = False,
        *,
        prepare: Transform | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        control: str | None = None,
        redraw: bool = False,
    ) -> None:
        super().__init__(base, prepare, transform)
        check_fraction(fraction)
        check_order(order)
        if control not in (None, MASKS):
            raise ValueError(f"control must be {MASKS!r} or None, not {control!r}")
        self.store = store if isinstance(store, SaliencyStore) else SaliencyStore(store)
        self._make_removal = partial(Removal, fraction, order, fill, keep, self.store.manifest.channel_mean, seed)
        self.removal = self._make_removal()
        self._control, self._redraw = control, redraw

    def check_views(self, views: Mapping[str, SplitView]) -> None:
        if self._control == MASKS:
            white = _white(next(iter(views.values())))
            self.removal = MasksAlone(self.removal.fraction, self.removal.order, self.removal.keep, white)
        else:
            self.removal = self._make_removal(normalization=list(views.values())[-1].normalization)
        for view in views.values():
            self.store.check(view)
            if not self.removal.is_none:
                self.removal.check(view.plane.image(0))

    def change_images(self, view: SplitView) -> Dataset[Any]:
        return MaskedDataset(view, self.store, self.removal, self._redraw)

    def masks(self, split: str, num_images: int) -> npt.NDArray[np.bool_]:
        """Which pixels of the first images of a split are removed: [at most `num_images`, *S]."""
        return self.removal.mask(self.store.read(split, range(min(num_images, len(self.store.ranks(split))))))


def _white(view: SplitView) -> float:
    """White in images of a split: 255 for bytes, else 1, or the largest number of a few images if that is more."""
    images = [planes(view.plane.image(index)) for index in spread_indices(len(view.plane), NUM_EXAMINED)]
    return 255.0 if images[0].dtype is torch.uint8 else max(1.0, *(float(image.max()) for image in images))


def _are_shares(values: Values) -> bool:
    """Whether numbers seem to be on a scale of 0..1, such as 0.485, instead of 0..255."""
    return bool((abs(values) <= 1).all() and (values != values.round()).any())


def check_removal(config: ROARConfig, views: Mapping[str, SplitView], fractions: Iterable[float]) -> None:
    """Checks that pixels can be removed from the images of an experiment.

    Raises:
        CannotRun: if a fraction between 0 and 1 rounds to no pixel or to all of them, the fill does not fit the images, or there
            are no labels to explain.
        UnfitData: if a fill function cannot be used on the images.
    """
    view = list(views.values())[-1]
    num_pixels = math.prod(view.shape)
    for fraction in sorted(fractions):
        num_removed = round(fraction * num_pixels)
        if 0 < fraction < 1 and num_removed in (0, num_pixels):
            raise CannotRun(
                f"the fraction {fraction:g} of {num_pixels} pixels rounds to {num_removed or 'no'} pixels, so methods cannot "
                f"differ; give fractions from {1 / num_pixels:.4g} to {1 - 1 / num_pixels:.4g}"
            )
    image = view.plane.image(0)
    mean = [0.0] * len(channel_sums(image))
    for fill in config.fill_values.values():
        Removal(0.5, config.order, fill, config.mode == "kar", mean, normalization=view.normalization).check(image)
    if config.target == "label" and not _has_labels(view):
        raise CannotRun(
            "target label needs labels, but no integers [N] were found behind the images in a batch; let the data set give the "
            "label after the image, or use target predicted"
        )


def _has_labels(view: SplitView) -> bool:
    try:
        return images_and_labels(next(iter(view.loader)), view.plane.place)[1] is not None
    except UnfitData:  # a hook of the datamodule makes the images, and perhaps the labels
        return True
