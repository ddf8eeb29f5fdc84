"""A saliency store that is being written, by any number of processes, chunk by chunk."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fg_lightning.roar.errors import StoreError
from fg_lightning.roar.manifest import NAME, Manifest, read_manifest
from fg_lightning.roar.store import ranks_path


class Draft:
    """Ranks, channel sums and a byte for every chunk that is done, in files that are written in place.

    A chunk is marked as done after its ranks are on disk. Whoever is killed has lost the chunk at work; two who write the same one
    write the same.

    Args:
        folder: of the store.
        manifest: what it will be of.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def begin(self) -> None:
        """Makes what is not there yet.

        Raises:
            StoreError: if something else is there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / NAME).exists():
            difference = read_manifest(self.folder).difference(self.manifest)
            if difference:
                raise StoreError(f"{self.folder} holds a saliency store of something else: {difference}. Take another folder")
        else:
            self.manifest.write(self.folder)
        for split in self.manifest.splits:
            chunks = self._chunks(split)
            for path, size in (
                (ranks_path(self.folder, split), self.manifest.splits[split].length * self.manifest.row),
                (self._done(split), chunks),
            ):
                with path.open("ab") as file:
                    file.truncate(size)
            self._sums(split).touch()

    def remaining(self) -> list[tuple[str, int]]:
        """Split and number of every chunk that is not done."""
        return [
            (split, number)
            for split in self.manifest.splits
            for number, done in enumerate(np.fromfile(self._done(split), np.uint8))
            if not done
        ]

    def progress(self) -> tuple[int, int]:
        """How many chunks are done, and how many there are."""
        chunks = sum(map(self._chunks, self.manifest.splits))
        try:
            return chunks - len(self.remaining()), chunks
        except FileNotFoundError:
            return 0, chunks

    def places(self, split: str, number: int) -> range:
        """The images of a chunk."""
        chunk = self.manifest.chunk
        return range(number * chunk, min((number + 1) * chunk, self.manifest.splits[split].length))

    def write(self, split: str, number: int, ranks: npt.NDArray[Any], sums: npt.NDArray[np.float64]) -> None:
        """
        Args:
            split: by name.
            number: of the chunk.
            ranks: [chunk, *S].
            sums: of every channel over the chunk's pixels, [C].
        """
        rows = np.ascontiguousarray(ranks, self.manifest.dtype)
        _write_at(self._sums(split), sums.astype("<f8").tobytes(), number * sums.nbytes)
        _write_at(ranks_path(self.folder, split), rows.tobytes(), self.places(split, number).start * self.manifest.row)
        _write_at(self._done(split), b"\1", number)

    def finish(self) -> None:
        """Says in the manifest that everything is there, and removes what was needed to know.

        Raises:
            StoreError: if chunks are missing.
        """
        missing = self.remaining()
        if missing:
            raise StoreError(f"{len(missing)} chunks of the saliency store {self.folder} were not written; make it again to go on")
        split = next(iter(self.manifest.splits))  # the training images where there are any
        pixels = self.manifest.splits[split].length * self.manifest.pixels
        sums = np.fromfile(self._sums(split), "<f8").reshape(self._chunks(split), -1)
        mean = tuple((sums.sum(0) / pixels).tolist())
        replace(self.manifest, finished=True, channel_mean=mean).write(self.folder)
        for split in self.manifest.splits:
            self._done(split).unlink()
            self._sums(split).unlink()

    def _chunks(self, split: str) -> int:
        return math.ceil(self.manifest.splits[split].length / self.manifest.chunk)

    def _done(self, split: str) -> Path:
        return self.folder / f"{split}.done"

    def _sums(self, split: str) -> Path:
        return self.folder / f"{split}.sums"


def _write_at(path: Path, raw: bytes, offset: int) -> None:
    """Writes a part of a file, which is on disk afterwards."""
    handle = os.open(path, os.O_WRONLY)
    try:
        while raw:
            written = os.pwrite(handle, raw, offset)
            raw, offset = raw[written:], offset + written
        os.fsync(handle)
    finally:
        os.close(handle)
