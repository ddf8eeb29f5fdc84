"""The saliency store: for every image of a data set, the order in which its pixels are removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from fg_lightning.attribution import Factory, find_method
from fg_lightning.errors import StoreError
from fg_lightning.roar.compute_ranks import compute_ranks
from fg_lightning.roar.dataset_views import SplitView, set_up, views_of
from fg_lightning.roar.experiment_folder import describe, digest
from fg_lightning.roar.explained_class import Target, check_target
from fg_lightning.roar.saliency_store_files import (
    MANIFEST_FILE,
    Manifest,
    SplitIdentity,
    StoreWriter,
    checksums_of,
    checksums_path,
    model_fingerprint,
    ranks_path,
    read_manifest,
)

Ranks = npt.NDArray[Any]


MAKE_AGAIN = "Copy it again, or call SaliencyStore.make with the same arguments, which makes again what is damaged"


class SaliencyStore:
    """Ranks of pixels on disk, memory-mapped: any fraction and either order is one comparison with them.

    A folder with a file for each split, one rank for each pixel (0 is removed first; two bytes up to 65,536 pixels, else four),
    a checksum of eight bytes for each image, and `manifest.json` with what they are of. Nothing is pickled, and every process maps
    the files, so a store can be sent to loader workers, and its memory does not grow with the data set.

    Opening a store checks sizes, the manifest and the checksums themselves. `read` checks the ranks of the images that it reads: no
    rank is used that was changed on disk, and a store of any size opens at once. `make` checks all ranks.

    Args:
        path: the folder of a finished store; `make` makes one.

    Attributes:
        path: absolute.
        manifest: what the store is of.

    Raises:
        StoreError: if there is no store, it is not finished, or a file is missing, truncated or damaged.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path).resolve()
        self.manifest = read_manifest(self.path)
        self._mapped: dict[str, Ranks] = {}
        self._checksums: dict[str, npt.NDArray[np.uint64]] = {}
        if not self.manifest.finished:
            raise StoreError(
                f"the saliency store {self.path} is unfinished: {self._progress()}. Call SaliencyStore.make with the same "
                "arguments, and it continues where it stopped"
            )
        for split in self.splits:
            self._check_file(split)

    @property
    def splits(self) -> list[str]:
        return list(self.manifest.splits)

    def ranks(self, split: str) -> Ranks:
        """The ranks of a split, [N, *S], as a read-only memory map. They are not checked, see `read`.

        Raises:
            StoreError: if the store has no such split.
        """
        if split not in self.manifest.splits:
            raise StoreError(f"the saliency store {self.path} has the splits {', '.join(self.splits)}, but not {split!r}")
        if split not in self._mapped:
            shape = (self.manifest.splits[split].length, *self.manifest.shape)
            self._mapped[split] = np.memmap(ranks_path(self.path, split), self.manifest.dtype, "r", shape=shape)
        return self._mapped[split]

    def read(self, split: str, indices: Iterable[int]) -> Ranks:
        """The ranks of some images of a split, [N, *S], checked.

        Raises:
            StoreError: if they were changed after they were written, or the store has no such split.
        """
        numbers = list(indices)
        rows = np.asarray(self.ranks(split))[numbers]
        is_wrong = checksums_of(rows) != self._checksums_of(split)[numbers]
        if is_wrong.any():
            path = ranks_path(self.path, split)
            raise StoreError(
                f"{path} is damaged: the ranks of image {numbers[is_wrong.argmax()]} are not as they were written. {MAKE_AGAIN}"
            )
        return rows

    def check(self, view: SplitView) -> None:
        """Checks that the store is of some data.

        Args:
            view: a split of the data.

        Raises:
            StoreError: if it is of other data, another number of images or another size.
        """
        self.ranks(view.name)
        expected = self.manifest.splits[view.name]
        if len(view.plane) != expected.length:
            raise StoreError(
                f"the {view.name} data set has {len(view.plane)} images, but the saliency store {self.path} is of "
                f"{expected.length}; make one of this data set"
            )
        if view.shape != self.manifest.shape:
            raise StoreError(
                f"the {view.name} images are {_size(view.shape)} before their transform, but the saliency store {self.path} is of "
                f"{_size(self.manifest.shape)}; make one of this data set, or bring the images to that size with prepare=..."
            )
        if view.fingerprint() != expected.fingerprint:
            raise StoreError(
                f"the {view.name} images are not those that the saliency store {self.path} was made of ({expected.dataset}): they "
                "are as many, but hold something else, or come in another order. Make a store of this data set; if setup splits "
                "at random, it is another one each time, unless random_split is given a generator with a seed"
            )

    @classmethod
    def make(
        cls,
        path: Union[str, Path],
        model: nn.Module,
        data: LightningDataModule,
        method: Union[str, Factory] = "fullgrad",
        *,
        settings: Mapping[str, Any] | None = None,
        target: Target = "predicted",
        batch_size: int = 50,
        seed: int = 0,
        prepare: Any = None,
        transform: Any = None,
        trainer: Trainer | None = None,
    ) -> SaliencyStore:
        """Explains every image of every split with `Trainer.predict`, and opens the store.

        If it is interrupted and called again, it continues where it stopped. A finished store is opened.

        Args:
            path: the folder of the store.
            model: the trained network. It is called on the images alone.
            data: the user's. Its images are explained after their evaluation transform and the batch hooks.
            method: a name in `fg_lightning.attribution.METHODS` or a factory.
            settings: of the method, as JSON.
            target: the class that is explained: "predicted", "label", "random" (drawn for every image from the seed) or its number.
                Masks give away the class that they explain: the label, or what the network predicts.
            batch_size: number of consecutive images that are explained as one batch, on any number of devices.
            seed: of ties, and of the target "random".
            prepare: see `views_of`.
            transform: see `views_of`.
            trainer: its `predict` is used, and its devices and nodes share the batches. Default: one device, with a progress bar on
                a terminal.

        Raises:
            StoreError: if a store of something else is there.
            RandomImages: if an image changes when it is read again.
            UnfitData: if the data is not map-style, or its pixels are not those that the network sees, see `check_alignment`.
            CannotRun: if images are of several sizes or numbers of channels, or there are no labels or classes to explain.
            ValueError: if there is no such method or target, or maps and images are not of one size.
        """
        factory = find_method(method)
        check_target(target)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 image, not {batch_size}")
        set_up(data)
        views = views_of(data, prepare=prepare, transform=transform)
        manifest = Manifest(
            method=describe(method),
            settings=dict(settings or {}),
            target=target,
            model=model_fingerprint(model),
            shape=next(iter(views.values())).shape,
            batch_size=batch_size,
            splits={
                name: SplitIdentity(len(view.plane), view.fingerprint(), type(view.loader.dataset).__name__)
                for name, view in views.items()
            },
            seed=seed,
        )
        folder = Path(path).resolve()
        writer = StoreWriter(folder, manifest)
        num_damaged = None
        if (folder / MANIFEST_FILE).exists() and read_manifest(folder).finished and not read_manifest(folder).difference(manifest):
            num_damaged = writer.reopen()
        if num_damaged:
            rank_zero_warn(
                f"the saliency store {folder} was changed after it was written, as its checksums show: {num_damaged} "
                f"{'batch' if num_damaged == 1 else 'batches'} of {batch_size} images are made again"
            )
        if num_damaged != 0:
            compute_ranks(writer, views, data, model, factory, trainer)
        return cls(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}, "_checksums": {}}

    def _checksums_of(self, split: str) -> npt.NDArray[np.uint64]:
        if split not in self._checksums:
            path = checksums_path(self.path, split)
            raw = path.read_bytes() if path.is_file() else b""
            if digest(raw) != self.manifest.splits[split].checksum:
                raise StoreError(f"{path} is missing or damaged. {MAKE_AGAIN}")
            self._checksums[split] = np.asarray(np.memmap(path, "<u8", "r"))
        return self._checksums[split]

    def _check_file(self, split: str) -> None:
        path, length = ranks_path(self.path, split), self.manifest.splits[split].length
        if not path.is_file():
            raise StoreError(f"{path} is missing. {MAKE_AGAIN}")
        expected = length * self.manifest.image_bytes
        if path.stat().st_size != expected:
            raise StoreError(
                f"{path} has {path.stat().st_size:,} bytes, but {length:,} images of {_size(self.manifest.shape)} take "
                f"{expected:,}: it is truncated or not of this store. {MAKE_AGAIN}"
            )
        self.read(split, sorted({0, length // 2, length - 1}))

    def _progress(self) -> str:
        num_done, total = StoreWriter(self.path, self.manifest).progress()
        return f"{num_done} of {total} batches of {self.manifest.batch_size} images are ranked"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
