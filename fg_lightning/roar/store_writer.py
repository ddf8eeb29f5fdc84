"""A saliency store that is being written, by any number of processes, chunk by chunk."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fg_lightning.atomic_files import sweep, write_atomically
from fg_lightning.errors import StoreError
from fg_lightning.roar.manifest import NAME, SIZE, Manifest, checksums_of, digest_of, read_manifest
from fg_lightning.roar.store import checksums_path, ranks_path


class Draft:
    """Ranks, their checksums, channel sums and a byte for every chunk that is done, in files that are written in place.

    A chunk is marked as done after its ranks are on disk, and counts as done as long as they have their checksums. Whoever is
    killed has lost the chunk at work; two who write the same one write the same.

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
        sweep(self.folder)
        if (self.folder / NAME).exists():
            difference = read_manifest(self.folder).difference(self.manifest)
            if difference:
                raise StoreError(f"{self.folder} holds a saliency store of something else: {difference}. Take another folder")
        else:
            self.manifest.write(self.folder)
        for split in self.manifest.splits:
            length = self.manifest.splits[split].length
            for path, size in (
                (ranks_path(self.folder, split), length * self.manifest.row),
                (checksums_path(self.folder, split), length * SIZE),
                (self._done(split), self._chunks(split)),
            ):
                with path.open("ab") as file:
                    file.truncate(size)
            self._sums(split).touch()
            for number, done in enumerate(np.fromfile(self._done(split), np.uint8)):
                if done and not self._is_intact(split, number):
                    _write_at(self._done(split), b"\0", number)

    def reopen(self) -> int:
        """Makes a draft again of a finished store of which chunks are damaged.

        Returns:
            How many chunks are, of all splits together; of 0 nothing was done.

        Raises:
            StoreError: if its manifest cannot be read.
        """
        there = read_manifest(self.folder)
        intact = {split: self._intact(split, there.splits[split].checksum) for split in there.splits}
        damaged = sum(flags.count(0) for flags in intact.values())
        if damaged:
            for split, flags in intact.items():
                write_atomically(self._done(split), flags)
            replace(there, finished=False).write(self.folder)  # its mean of the channels stays
        else:
            self._clean_up()
        return damaged

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
        raw = sums.astype("<f8").tobytes()
        _write_at(self._sums(split), raw + _seal(raw), number * (len(raw) + SIZE))
        start = self.places(split, number).start
        _write_at(ranks_path(self.folder, split), rows.tobytes(), start * self.manifest.row)
        _write_at(checksums_path(self.folder, split), checksums_of(rows).tobytes(), start * SIZE)
        _write_at(self._done(split), b"\1", number)

    def finish(self) -> None:
        """Says in the manifest that everything is there, and removes what was needed to know.

        Raises:
            StoreError: if chunks are missing.
        """
        missing = self.remaining()
        if missing:
            raise StoreError(f"{len(missing)} chunks of the saliency store {self.folder} were not written; make it again to go on")
        mean = read_manifest(self.folder).channel_mean or self._mean()
        splits = {
            name: replace(split, checksum=digest_of(checksums_path(self.folder, name).read_bytes()))
            for name, split in self.manifest.splits.items()
        }
        replace(self.manifest, splits=splits, finished=True, channel_mean=mean).write(self.folder)
        self._clean_up()

    def _clean_up(self) -> None:
        """Removes what only a draft needs, also what was killed before it could."""
        sweep(self.folder)
        for split in self.manifest.splits:
            self._done(split).unlink(missing_ok=True)
            self._sums(split).unlink(missing_ok=True)

    def _mean(self) -> tuple[float, ...]:
        """Of every channel over the images of the first split, which are the training images where there are any."""
        split = next(iter(self.manifest.splits))
        pixels = self.manifest.splits[split].length * self.manifest.pixels
        raw, chunks = self._sums(split).read_bytes(), self._chunks(split)
        size = len(raw) // chunks
        parts = [raw[i * size : (i + 1) * size] for i in range(chunks)]
        if len(raw) % chunks or size <= SIZE or any(_seal(part[:-SIZE]) != part[-SIZE:] for part in parts):
            raise StoreError(f"{self._sums(split)} is damaged; remove {self.folder} and make the store again")
        sums = np.array([np.frombuffer(part[:-SIZE], "<f8") for part in parts])
        return tuple((sums.sum(0) / pixels).tolist())

    def _intact(self, split: str, checksum: str) -> bytes:
        """A byte for every chunk of a finished split: whether its ranks have their checksums, and these the one of the manifest."""
        try:
            path, size = ranks_path(self.folder, split), self.manifest.splits[split].length * self.manifest.row
            if path.stat().st_size > size:
                os.truncate(path, size)
            if digest_of(checksums_path(self.folder, split).read_bytes()) == checksum:
                return bytes(self._is_intact(split, number) for number in range(self._chunks(split)))
        except FileNotFoundError:
            pass
        return bytes(self._chunks(split))

    def _is_intact(self, split: str, number: int) -> bool:
        """Whether the ranks of a chunk have their checksums."""
        places = self.places(split, number)
        try:
            shape, dtype = (len(places), *self.manifest.shape), np.dtype(self.manifest.dtype)
            start = places.start * self.manifest.row
            rows = np.fromfile(ranks_path(self.folder, split), dtype, math.prod(shape), offset=start)
            expected = np.fromfile(checksums_path(self.folder, split), "<u8", len(places), offset=places.start * SIZE)
        except FileNotFoundError:
            return False
        return rows.size == math.prod(shape) and np.array_equal(checksums_of(rows.reshape(shape)), expected)

    def _chunks(self, split: str) -> int:
        return math.ceil(self.manifest.splits[split].length / self.manifest.chunk)

    def _done(self, split: str) -> Path:
        return self.folder / f"{split}.done"

    def _sums(self, split: str) -> Path:
        return self.folder / f"{split}.sums"


def _seal(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=SIZE).digest()


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
