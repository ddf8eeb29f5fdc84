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


MAKE_AGAIN = "Copy it again, or call SaliencyStore.make with the same arguments, which makes the damaged parts again"


class SaliencyStore:
    """Ranks of pixels in memory-mapped files. A mask of any fraction, in either order, is one comparison with the ranks.

    The store is a folder. It holds a file for each split with a rank for each pixel (0 is removed first; two bytes up to 65,536
    pixels, else four), a checksum of four bytes for each image, and `manifest.json`, which describes the data, network and method.
    Every process maps the files and nothing is pickled, so a store can be sent to loader workers, and its memory does not grow with
    the data set.

    Opening a store checks the manifest, the sizes and the checksums themselves, so that a store of any size opens quickly. `read`
    checks the ranks of the images that it reads, so that no rank is used that was changed on disk. `make` checks all ranks.

    Args:
        path: folder of a finished store, see `make`.

    Attributes:
        path: absolute path of the folder.
        manifest: the data, network, method and settings of the store.

    Raises:
        StoreError: if there is no store, it is not finished, or a file is missing, truncated or damaged.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path).resolve()
        self.manifest = read_manifest(self.path)
        self._mapped: dict[str, Ranks] = {}
        self._checksums: dict[str, npt.NDArray[np.uint32]] = {}
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
        """Reads the ranks of some images of a split, [N, *S], and checks them.

        Raises:
            StoreError: if they were changed after they were written, or the store has no such split.
        """
        numbers = list(indices)
        rows = np.asarray(self.ranks(split))[numbers]
        is_wrong = checksums_of(rows) != self._checksums_of(split)[numbers]
        if is_wrong.any():
            path = ranks_path(self.path, split)
            raise StoreError(
                f"{path} is damaged: the ranks of image {numbers[is_wrong.argmax()]} were changed after they were written. "
                f"{MAKE_AGAIN}"
            )
        return rows

    def check(self, view: SplitView) -> None:
        """Checks that the store belongs to some data.

        Args:
            view: a split of the data.

        Raises:
            StoreError: if it belongs to other images, another number of images or another size.
        """
        self.ranks(view.name)
        expected = self.manifest.splits[view.name]
        if len(view.plane) != expected.length:
            raise StoreError(
                f"the {view.name} data set has {len(view.plane)} images, but the saliency store {self.path} is for "
                f"{expected.length}; make a store for this data set"
            )
        if view.shape != self.manifest.shape:
            raise StoreError(
                f"the {view.name} images are {_size(view.shape)} before their transform, but the saliency store {self.path} is for "
                f"{_size(self.manifest.shape)}; make a store for this data set, or bring the images to that size with prepare=..."
            )
        if view.fingerprint() != expected.fingerprint:
            raise StoreError(
                f"the {view.name} images are not those that the saliency store {self.path} was made for ({expected.dataset}): "
                "their number is the same, but their content or order differs. Make a store for this data set; if setup splits at "
                "random, give random_split a generator with a seed, since the split differs each time without one"
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
            path: folder of the store.
            model: the trained network. It is called with the images as its only argument.
            data: the datamodule. Its images are explained after their evaluation transform and the batch hooks.
            method: a name in `fg_lightning.attribution.METHODS`, or a factory. Default: "fullgrad".
            settings: arguments of the method by name, as JSON. Default: none.
            target: the class that is explained: "predicted", "label", "random" (drawn for every image from the seed) or the index
                of a class. Masks can give away the class that they explain. Default: "predicted".
            batch_size: number of consecutive images that are explained as one batch, on any number of devices. Default: 50.
            seed: seed of the order of equal values, and of the target "random". Default: 0.
            prepare: function that brings an image to the size of the network's input. Default: see `views_of`.
            transform: transform of every image after that. Default: the transform of each data set.
            trainer: Trainer whose `predict` is used. Its devices and nodes share the batches. Default: one device, with a progress
                bar on a terminal.

        Raises:
            StoreError: if the folder holds a store of other data, another network or other settings.
            RandomImages: if an image changes when it is read again.
            UnfitData: if the data is not map-style, or its pixels do not correspond to those that the network sees.
            CannotRun: if images are of several sizes or numbers of channels, or there are no labels or classes to explain.
            ValueError: if the method or the target is unknown, or maps and images differ in size.
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

    def _checksums_of(self, split: str) -> npt.NDArray[np.uint32]:
        if split not in self._checksums:
            path = checksums_path(self.path, split)
            raw = path.read_bytes() if path.is_file() else b""
            if digest(raw) != self.manifest.splits[split].checksum:
                raise StoreError(f"{path} is missing or damaged. {MAKE_AGAIN}")
            self._checksums[split] = np.asarray(np.memmap(path, "<u4", "r"))
        return self._checksums[split]

    def _check_file(self, split: str) -> None:
        path, length = ranks_path(self.path, split), self.manifest.splits[split].length
        if not path.is_file():
            raise StoreError(f"{path} is missing. {MAKE_AGAIN}")
        expected = length * self.manifest.image_bytes
        if path.stat().st_size != expected:
            raise StoreError(
                f"{path} has {path.stat().st_size:,} bytes, but {length:,} images of {_size(self.manifest.shape)} take "
                f"{expected:,}: it is truncated, or from another store. {MAKE_AGAIN}"
            )
        self.read(split, sorted({0, length // 2, length - 1}))

    def _progress(self) -> str:
        num_done, total = StoreWriter(self.path, self.manifest).progress()
        return f"{num_done} of {total} batches of {self.manifest.batch_size} images are ranked"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
