"""A datamodule whose images have lost the pixels that a method ranks first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from fg_lightning.removal import Fill, Order, find_imputer, noisy_linear, removed
from fg_lightning.removal.ranking import check_fraction, check_order
from fg_lightning.roar.pixels import Mask, Picture, imputed, spatial_shape, with_values
from fg_lightning.roar.store import SaliencyStore
from fg_lightning.roar.transforms import Transform
from fg_lightning.roar.views import View, finished, mapped, rebuilt, views_of, with_image

Values = npt.NDArray[np.float64]


class Removal:
    """Which pixels of a ranked image go, and what replaces them.

    Args:
        fraction: the share of pixels, 0 to 1.
        order: "morf" or "lerf".
        imputation: see `ROARDataModule`.
        keep: whether the share stays, and all others go.
        mean: what "mean" stands for: one number for every channel.
        seed: of "noisy_linear".
    """

    def __init__(self, fraction: float, order: Order, imputation: Fill, keep: bool, mean: Sequence[float], seed: int = 0) -> None:
        self.fraction = fraction
        self.order = order
        self.keep = keep
        self._values: Values | None = None
        if isinstance(imputation, str) and imputation == "mean":
            self._values = np.asarray(mean, float)
        elif isinstance(imputation, str) and imputation == "noisy_linear":
            self._impute = find_imputer(partial(noisy_linear, seed=seed))
        else:
            self._impute = find_imputer(imputation)
            if not isinstance(imputation, str) and not callable(imputation):
                self._values = np.asarray(imputation, float).reshape(-1)

    @property
    def is_none(self) -> bool:
        """Whether no pixel of any image goes."""
        return self.fraction == (1 if self.keep else 0)

    def mask(self, ranks: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which pixels of ranked images [N, *S] go."""
        chosen = removed(ranks, self.fraction, self.order)
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
            mask = self._removal.mask(np.asarray(self._store.ranks(self._split)[index])[None])[0]
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
        imputation: what replaces them: "mean", the training images' mean of every channel; "noisy_linear" (ROAD, Rong et al. 2022);
            a number or one for every channel in the images' own units before their transform, 0..255 for PIL images and bytes; or a
            function (images [1, C, *S] in 0..1, mask [1, 1, *S]) -> images.
        keep: keep-and-retrain: the share `fraction`, taken in this order, stays and all other pixels go.
        prepare: brings images to the size that the ranks are of, where the evaluation transform does not begin with that.
        transform: what is done to images after the removal, where it is no attribute `transform` of the data set.
        seed: of "noisy_linear".

    Raises:
        StoreError: if there is no store, or, in `setup`, if it is of other data.
        RandomImages: in `setup`, if the data gives another image each time for one index.
        TypeError: in `setup`, if a data set is not map-style.
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
        imputation: Fill = "mean",
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

    def prepare_data(self) -> None:
        self.base.prepare_data()

    def setup(self, stage: str) -> None:
        self.base.trainer = self.trainer
        for needed in ("fit", "test"):  # the evaluation transform is the test images'
            self.base.setup(needed)
        self._views = views_of(self.base, **self._given)
        for view in self._views.values():
            self.store.check(view)

    def teardown(self, stage: str) -> None:
        self.base.teardown(stage)

    def train_dataloader(self) -> Any:
        return mapped(self.base.train_dataloader(), "train", self._masked)

    def val_dataloader(self) -> Any:
        return mapped(self.base.val_dataloader(), "val", self._masked) if self._has("val") else []

    def test_dataloader(self) -> Any:
        return mapped(self.base.test_dataloader(), "test", self._masked) if self._has("test") else []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.base.on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return self.base.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.base.on_after_batch_transfer(batch, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)

    def masks(self, split: str, most: int) -> npt.NDArray[np.bool_]:
        """Which pixels go, of the first images of a split: [at most `most`, *S]."""
        return self.removal.mask(np.asarray(self.store.ranks(split)[:most]))

    def _has(self, split: str) -> bool:
        return any(name.split("_")[0] == split for name in self._views)

    def _masked(self, name: str, loader: DataLoader[Any]) -> DataLoader[Any]:
        return rebuilt(loader, Masked(self._views[name], self.store, self.removal))
