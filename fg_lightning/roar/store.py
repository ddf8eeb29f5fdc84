"""The saliency store: for every image of a data set, the order in which its pixels go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn

from fg_lightning.attribution import Factory
from fg_lightning.errors import StoreError
from fg_lightning.roar.manifest import checksums_of, digest_of, read_manifest

if TYPE_CHECKING:
    from fg_lightning.roar.dataset_views import View

Ranks = npt.NDArray[Any]


MAKE_AGAIN = "Copy it again, or call SaliencyStore.make with the same arguments, which makes again what is damaged"


def ranks_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.ranks"


def checksums_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.checksums"


class SaliencyStore:
    """Ranks of pixels on disk, memory-mapped: any fraction and either order is one comparison with them.

    A folder with a file for every split, one rank a pixel (0 goes first; two bytes each up to 65,536 pixels, else four), a checksum
    of eight bytes for every image, and `manifest.json`, which says of what they are. Nothing is pickled, and files are mapped by
    every process that uses them, so a store can be sent to loader workers and costs no memory that grows with the data set.

    Opening a store checks sizes, the manifest and the checksums themselves; `read` checks the ranks of the images that it reads, so
    that nothing is used that was changed on disk, and a store of any size is open at once. `make` checks all of them.

    Args:
        path: the folder of a finished store; `make` makes one.

    Attributes:
        path: absolute.
        manifest: what it is of.

    Raises:
        StoreError: if there is none, it is not finished, or a file is missing, truncated or damaged.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path).resolve()
        self.manifest = read_manifest(self.path)
        self._mapped: dict[str, Ranks] = {}
        self._checksums: dict[str, npt.NDArray[np.uint64]] = {}
        if not self.manifest.finished:
            raise StoreError(
                f"the saliency store {self.path} is unfinished: {self._progress()}. Call SaliencyStore.make with the same "
                "arguments, and it goes on where it stopped"
            )
        for split in self.splits:
            self._check_file(split)

    @property
    def splits(self) -> list[str]:
        return list(self.manifest.splits)

    def ranks(self, split: str) -> Ranks:
        """The ranks of a split, [N, *S], as a read-only memory map; not checked, see `read`.

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
        """The ranks of some images of a split, [N, *S], which are as they were written.

        Raises:
            StoreError: if they are not, or the store has no such split.
        """
        places = list(indices)
        rows = np.asarray(self.ranks(split)[places])
        wrong = np.flatnonzero(checksums_of(rows) != self._checksums_of(split)[places])
        if wrong.size:
            path = ranks_path(self.path, split)
            raise StoreError(f"{path} is damaged: the ranks of image {places[wrong[0]]} are not as they were written. {MAKE_AGAIN}")
        return rows

    def check(self, view: View) -> None:
        """
        Args:
            view: a split of the data that the store should be of.

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
                f"the {view.name} images are {_by(view.shape)} before their transform, but the saliency store {self.path} is of "
                f"{_by(self.manifest.shape)}; make one of this data set, or bring the images to that size with prepare=..."
            )
        if view.fingerprint() != expected.fingerprint:
            raise StoreError(
                f"the {view.name} images are not those that the saliency store {self.path} was made of ({expected.dataset}): they "
                "are as many, but hold something else, or come in another order. Make a store of this data set; where setup splits "
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
        target: Literal["predicted", "label"] = "predicted",
        chunk: int = 50,
        seed: int = 0,
        prepare: Any = None,
        transform: Any = None,
        trainer: Trainer | None = None,
    ) -> SaliencyStore:
        """Explains every image of every split with `Trainer.predict`, and opens the store of it.

        Interrupted, it goes on where it stopped when it is called again; what is there and finished is opened.

        Args:
            path: the folder to make it in.
            model: the trained network; called on the images alone.
            data: the user's, whose images are explained as their evaluation transform and the batch hooks leave them.
            method: a name in `fg_lightning.attribution.METHODS` or a factory.
            settings: of the method, as JSON.
            target: the class explained; "label" tells the masks what the image shows, so that they may leak it.
            chunk: so many consecutive images are one batch, whatever shares the work.
            seed: of ties.
            prepare: see `views_of`.
            transform: see `views_of`.
            trainer: whose `predict` is used; its devices and nodes share the chunks. By default one on one device, with a progress
                bar on a terminal and silent elsewhere.

        Raises:
            StoreError: if a store of something else is there.
            RandomImages: if an image is another when it is read again.
            UnfitData: if the data is not map-style, or its pixels are not those of what the network sees, see `check_alignment`.
            CannotRun: if images are of several sizes or numbers of channels, or labels are to be explained and there are none.
            ValueError: if there is no such method, or maps and images are not of one size.
        """
        from fg_lightning.roar.compute_ranks import make_store

        make_store(
            Path(path).resolve(), model, data, method, dict(settings or {}), target, chunk, seed, prepare, transform, trainer
        )
        return cls(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}, "_checksums": {}}

    def _checksums_of(self, split: str) -> npt.NDArray[np.uint64]:
        if split not in self._checksums:
            path = checksums_path(self.path, split)
            raw = path.read_bytes() if path.is_file() else b""
            if digest_of(raw) != self.manifest.splits[split].checksum:
                raise StoreError(f"{path} is missing or damaged. {MAKE_AGAIN}")
            self._checksums[split] = np.memmap(path, "<u8", "r")
        return self._checksums[split]

    def _check_file(self, split: str) -> None:
        path, length = ranks_path(self.path, split), self.manifest.splits[split].length
        if not path.is_file():
            raise StoreError(f"{path} is missing. {MAKE_AGAIN}")
        expected = length * self.manifest.row
        if path.stat().st_size != expected:
            raise StoreError(
                f"{path} has {path.stat().st_size:,} bytes, but {length:,} images of {_by(self.manifest.shape)} take {expected:,}: "
                f"it is truncated or not of this store. {MAKE_AGAIN}"
            )
        self.read(split, sorted({0, length // 2, length - 1}))

    def _progress(self) -> str:
        from fg_lightning.roar.store_writer import Draft

        done, chunks = Draft(self.path, self.manifest).progress()
        return f"{done} of {chunks} chunks of {self.manifest.chunk} images are ranked"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
