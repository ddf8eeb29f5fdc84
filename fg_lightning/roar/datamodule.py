"""A datamodule whose images have lost the pixels that a method ranks first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset

from fg_lightning.errors import CannotRun
from fg_lightning.removal import Fill, Order, find_fill, noisy_linear, removal_mask
from fg_lightning.removal.pixel_ranking import check_fraction, check_order
from fg_lightning.roar.dataset_transforms import Transform
from fg_lightning.roar.dataset_views import View, mapped, rebuilt, views_of
from fg_lightning.roar.image_pixels import Mask, Picture, finished, imputed, planes, spatial_shape, with_image, with_values
from fg_lightning.roar.store import SaliencyStore

Values = npt.NDArray[np.float64]

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""What Lightning calls for every batch, the datamodule's or else the network's."""


class Removal:
    """Which pixels of a ranked image go, and what replaces them.

    Args:
        fraction: the share of pixels, 0 to 1.
        order: "morf" or "lerf".
        imputation: see `ROARDataModule`.
        keep: whether the share stays, and all others go.
        mean: what "dataset_mean" stands for: one number for every channel.
        seed: of "noisy_linear".
    """

    def __init__(self, fraction: float, order: Order, imputation: Fill, keep: bool, mean: Sequence[float], seed: int = 0) -> None:
        self.fraction = fraction
        self.order = order
        self.keep = keep
        self._values: Values | None = None
        self._given: Values | None = None
        if isinstance(imputation, str) and imputation == "dataset_mean":
            self._values = np.asarray(mean, float)
        elif isinstance(imputation, str) and imputation == "noisy_linear":
            self._impute = find_fill(partial(noisy_linear, seed=seed))
        else:
            self._impute = find_fill(imputation)
            if not isinstance(imputation, str) and not callable(imputation):
                self._values = self._given = np.asarray(imputation, float).reshape(-1)

    @property
    def is_none(self) -> bool:
        """Whether no pixel of any image goes."""
        return self.fraction == (1 if self.keep else 0)

    def check(self, image: Picture) -> None:
        """Replaces one pixel of an image, to raise now what replacing any would raise.

        Raises:
            CannotRun: if numbers are given that are not in the image's units, or not as many as it has channels.
            UnfitData: if the image holds what cannot be imputed.
        """
        if self._given is not None and _are_shares(self._given) and not planes(image).is_floating_point():
            raise CannotRun(
                f"pixels would be replaced by {self._given.tolist()}, but the images hold integers before their transform: give "
                f"numbers in their own units, such as {[round(255 * value) for value in self._given.tolist()]} in 0..255"
            )
        mask = np.zeros(spatial_shape(image), bool)
        mask.flat[0] = True
        self(image, mask)

    def mask(self, ranks: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which pixels of ranked images [N, *S] go."""
        chosen = removal_mask(ranks, self.fraction, self.order)
        return np.logical_not(chosen) if self.keep else chosen

    def __call__(self, image: Picture, mask: Mask) -> Picture:
        return imputed(image, mask, self._impute) if self._values is None else with_values(image, mask, self._values)


class Masked(Dataset[Any]):
    """A split's samples, whose images lose pixels before they are transformed.

    Args:
        view: the split.
        store: of its ranks.
        removal: which go.
    """

    def __init__(self, view: View, store: SaliencyStore, removal: Removal) -> None:
        self._plane = view.plane
        self._transform = view.transform
        self._split = view.name
        self._store = store
        self._removal = removal
        self._shape = store.manifest.shape

    def __len__(self) -> int:
        return len(self._plane)

    def __getitem__(self, index: int) -> Any:
        sample = self._plane[index]
        place = self._plane.place
        if not self._removal.is_none:
            image = sample[place]
            if spatial_shape(image) != self._shape:
                raise ValueError(
                    f"image {index} of the {self._split} data is {spatial_shape(image)} before its transform, but its ranks are "
                    f"{self._shape}: images of one size are needed, or prepare=..., which brings them to it"
                )
            mask = self._removal.mask(self._store.read(self._split, [index]))[0]
            sample = with_image(sample, place, self._removal(image, mask))
        return finished(sample, place, self._transform)


class ROARDataModule(LightningDataModule):
    """Remove-and-retrain's data (Hooker et al., A Benchmark for Interpretability Methods in Deep Neural Networks, NeurIPS 2019).

    Train, validation and test images lose exactly round(fraction * number of pixels) pixels each, in the order of the store's
    ranks, before whatever the data set's transform does to them (augmentation, normalisation). The loaders are the user's in all
    else: batches, samplers, workers, collation.

    Args:
        base: a datamodule over map-style data sets.
        store: the ranks of their pixels, or its folder.
        fraction: the share of pixels to remove, 0 to 1.
        order: "morf", the most relevant first, or "lerf", the least relevant first.
        imputation: what replaces them: "dataset_mean", the training images' mean of every channel; "noisy_linear" (ROAD, Rong et al. 2022);
            a number or one for every channel in the images' own units before their transform, 0..255 for PIL images and bytes; or a
            function (images [1, C, *S] in 0..1, mask [1, 1, *S]) -> images.
        keep: keep-and-retrain: the share `fraction`, taken in this order, stays and all other pixels go.
        prepare: brings images to the size that the ranks are of, where the evaluation transform does not begin with that.
        transform: what is done to images after the removal, where it is no attribute `transform` of the data set.
        seed: of "noisy_linear".

    Raises:
        StoreError: if there is no store, or, in `setup`, if it is of other data.
        RandomImages: in `setup`, if the data gives another image each time for one index.
        UnfitData: in `setup`, if a data set is not map-style, or its pixels are not those of what the network sees.
        CannotRun: in `setup`, if numbers to replace pixels with are not in the images' units, or not one for every channel.
        ValueError: if the fraction lies outside 0..1, or order or imputation are unknown.

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
        imputation: Fill = "dataset_mean",
        keep: bool = False,
        *,
        prepare: Transform | None = None,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_fraction(fraction)
        check_order(order)
        self.base = base
        self.store = store if isinstance(store, SaliencyStore) else SaliencyStore(store)
        self.removal = Removal(fraction, order, imputation, keep, self.store.manifest.channel_mean, seed)
        self._given = {"prepare": prepare, "transform": transform}
        self._views: dict[str, View] = {}
        for hook in HOOKS:  # where the base has none, the network's is called, which one here would keep from it
            if is_overridden(hook, base, LightningDataModule):
                setattr(self, hook, getattr(base, hook))

    def prepare_data(self) -> None:
        self.base.prepare_data()

    def setup(self, stage: str) -> None:
        self.base.trainer = self.trainer
        if self._views:
            return
        for needed in ("fit", "test"):  # the evaluation transform is the test images'
            self.base.setup(needed)
        views = views_of(self.base, **self._given)
        for view in views.values():
            self.store.check(view)
            if not self.removal.is_none:
                self.removal.check(view.plane.image(0))
        self._views = views

    def teardown(self, stage: str) -> None:
        self.base.teardown(stage)
        if is_overridden("teardown", self.base, LightningDataModule):
            self._views = {}  # the base may have let go of its data

    def train_dataloader(self) -> Any:
        return mapped(self.base.train_dataloader(), "train", self._masked)

    def val_dataloader(self) -> Any:
        return mapped(self.base.val_dataloader(), "val", self._masked) if self._has("val") else []

    def test_dataloader(self) -> Any:
        return mapped(self.base.test_dataloader(), "test", self._masked) if self._has("test") else []

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)

    def masks(self, split: str, most: int) -> npt.NDArray[np.bool_]:
        """Which pixels go, of the first images of a split: [at most `most`, *S]."""
        return self.removal.mask(self.store.read(split, range(min(most, len(self.store.ranks(split))))))

    def _has(self, split: str) -> bool:
        return any(name.split("_")[0] == split for name in self._views)

    def _masked(self, name: str, loader: DataLoader[Any]) -> DataLoader[Any]:
        return rebuilt(loader, Masked(self._views[name], self.store, self.removal))


def _are_shares(values: Values) -> bool:
    """Whether numbers are of a scale that ends at 1, such as 0.485, rather than at 255."""
    return bool((abs(values) <= 1).all() and (values != values.round()).any())
