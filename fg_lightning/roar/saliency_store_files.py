"""The files of a saliency store: its manifest, its checksums, and a writer that many processes can use at the same time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fg_lightning.atomic_files import sweep, write_atomically, write_json
from fg_lightning.errors import StoreError
from fg_lightning.roar.experiment_folder import add_checksum, digest, verify_checksum
from fg_lightning.roar.explained_class import Target

CHECKSUM_BYTES = 4
"""Size of the checksum of one image's ranks: a CRC-32, since it is computed at every read and blake2b takes five times as long."""

MANIFEST_FILE = "manifest.json"

FORMAT = 4


def ranks_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.ranks"


def checksums_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.checksums"


def checksums_of(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """The checksum of each image's ranks: [N, *S] -> [N]."""
    return np.frombuffer(b"".join(_checksum(row.data) for row in np.ascontiguousarray(rows)), "<u4")


@dataclass(frozen=True)
class SplitIdentity:
    """The identity of a split's images.

    Attributes:
        length: number of images.
        fingerprint: hash of the content of a few images.
        dataset: class of the data set, for messages.
        checksum: checksum of all checksums of the ranks. Empty until all images are ranked.
    """

    length: int
    fingerprint: str
    dataset: str
    checksum: str = ""


@dataclass(frozen=True)
class Manifest:
    """The data, network, method and settings of a store: the content of its `manifest.json`.

    Attributes:
        method: name of the method, or its factory as `describe` gives it.
        settings: arguments of the method by name, as JSON.
        target: class that is explained: "predicted", "label", "random" or the index of a class.
        model: class and fingerprint of the network.
        shape: size of an image without its channels, such as (H, W).
        batch_size: number of consecutive images that are explained as one batch.
        splits: the splits by name.
        seed: seed of the order of equal values, and of the target "random". Default: 0.
        finished: whether every image is ranked.
        channel_mean: mean of each channel of the training images before their transform, in their own units.
        versions: versions of the software that made the store.
        format: version of the files' format.
    """

    method: Any
    settings: Mapping[str, Any]
    target: Target
    model: str
    shape: tuple[int, ...]
    batch_size: int
    splits: Mapping[str, SplitIdentity]
    seed: int = 0
    finished: bool = False
    channel_mean: tuple[float, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    format: int = FORMAT

    @property
    def num_pixels(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> npt.DTypeLike:
        """The type of a rank: two bytes if they suffice, else four."""
        return np.uint16 if self.num_pixels <= 2**16 else np.uint32

    @property
    def image_bytes(self) -> int:
        """Size of the ranks of one image in bytes."""
        return self.num_pixels * np.dtype(self.dtype).itemsize

    def difference(self, other: Manifest) -> str:
        """How two stores differ, as the end of a sentence. Empty if they hold the same maps."""
        mine, others = self._identity(), other._identity()
        return "; ".join(f"{key} {mine[key]!r} there, {others[key]!r} here" for key in mine if mine[key] != others[key])

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST_FILE, add_checksum(json.loads(json.dumps(asdict(self)))))

    def _identity(self) -> dict[str, Any]:
        names = "method settings target model shape batch_size seed".split()
        splits = {
            f"{name} {what}": getattr(split, what) for name, split in self.splits.items() for what in ("length", "fingerprint")
        }
        identity = {name: getattr(self, name) for name in names} | {"splits": ", ".join(self.splits)} | splits
        return dict(json.loads(json.dumps(identity)))  # tuples are lists in a manifest that was read


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in a folder.

    Raises:
        StoreError: if there is none, or it cannot be read.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise StoreError(f"{folder} is not a saliency store: it has no {MANIFEST_FILE}; make a store with SaliencyStore.make")
    advice = f"remove {folder} and make the store again"
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise StoreError(f"{path} is of format {content['format']}, but this version reads format {FORMAT}; {advice}")
        content = verify_checksum(content)
        splits = {name: SplitIdentity(**split) for name, split in content["splits"].items()}
        values = {one.name: content[one.name] for one in fields(Manifest)}
        values |= {"splits": splits, "shape": tuple(content["shape"]), "channel_mean": tuple(content["channel_mean"])}
    except StoreError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error}); {advice}") from error
    return Manifest(**values)


def model_fingerprint(model: nn.Module) -> str:
    """The class of a network, and a hash of its parameters and buffers."""
    fingerprint = hashlib.sha256()
    for name, value in model.state_dict().items():
        fingerprint.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        fingerprint.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{type(model).__qualname__} {fingerprint.hexdigest()[:16]}"


def versions() -> dict[str, str]:
    return {
        "fg_lightning": version("fg-lightning"),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }


class StoreWriter:
    """Writes ranks, their checksums, channel sums and a byte for every finished batch in place.

    A batch is marked as finished after its ranks are on disk, and counts as finished while its checksums are right. A killed
    process loses only its current batch. Two processes that write the same batch write the same bytes.

    Args:
        folder: folder of the store.
        manifest: manifest of the store.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def begin(self) -> None:
        """Makes the files that do not exist yet.

        Raises:
            StoreError: if the folder holds a store with another manifest.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        if (self.folder / MANIFEST_FILE).exists():
            difference = read_manifest(self.folder).difference(self.manifest)
            if difference:
                raise StoreError(f"{self.folder} holds another saliency store: {difference}. Use another folder")
        else:
            self.manifest.write(self.folder)
        for split in self.manifest.splits:
            length = self.manifest.splits[split].length
            for path, size in (
                (ranks_path(self.folder, split), length * self.manifest.image_bytes),
                (checksums_path(self.folder, split), length * CHECKSUM_BYTES),
                (self._done_path(split), self._num_batches(split)),
            ):
                with path.open("ab") as file:
                    file.truncate(size)
            self._sums_path(split).touch()
            for number, done in enumerate(np.fromfile(self._done_path(split), np.uint8)):
                if done and not self._is_intact(split, number):
                    _write_at(self._done_path(split), b"\0", number)

    def reopen(self) -> int:
        """Makes a finished store writable again if batches of it are damaged.

        Returns:
            Number of damaged batches of all splits together. With 0, nothing was changed.

        Raises:
            StoreError: if its manifest cannot be read.
        """
        there = read_manifest(self.folder)
        intact = {split: self._intact_flags(split, there.splits[split].checksum) for split in there.splits}
        num_damaged = sum(flags.count(0) for flags in intact.values())
        if num_damaged:
            for split, flags in intact.items():
                write_atomically(self._done_path(split), flags)
            replace(there, finished=False).write(self.folder)  # the mean of the channels stays
        else:
            self._clean_up()
        return num_damaged

    def unfinished_batches(self) -> list[tuple[str, int]]:
        """Split and number of every batch that is not finished."""
        return [
            (split, number)
            for split in self.manifest.splits
            for number, done in enumerate(np.fromfile(self._done_path(split), np.uint8))
            if not done
        ]

    def progress(self) -> tuple[int, int]:
        """Number of finished batches, and number of all batches."""
        total = sum(map(self._num_batches, self.manifest.splits))
        try:
            return total - len(self.unfinished_batches()), total
        except FileNotFoundError:
            return 0, total

    def image_range(self, split: str, number: int) -> range:
        """The indices of a batch's images."""
        size = self.manifest.batch_size
        return range(number * size, min((number + 1) * size, self.manifest.splits[split].length))

    def write(self, split: str, number: int, ranks: npt.NDArray[Any], sums: npt.NDArray[np.float64]) -> None:
        """Writes the ranks of a batch, and marks it as finished.

        Args:
            split: name of the split.
            number: number of the batch.
            ranks: ranks of its pixels, [batch_size, *S].
            sums: sum of each channel over the batch's pixels, [C].
        """
        rows = np.ascontiguousarray(ranks, self.manifest.dtype)
        raw = sums.astype("<f8").tobytes()
        _write_at(self._sums_path(split), raw + _checksum(raw), number * (len(raw) + CHECKSUM_BYTES))
        start = self.image_range(split, number).start
        _write_at(ranks_path(self.folder, split), rows.tobytes(), start * self.manifest.image_bytes)
        _write_at(checksums_path(self.folder, split), checksums_of(rows).tobytes(), start * CHECKSUM_BYTES)
        _write_at(self._done_path(split), b"\1", number)

    def finish(self) -> None:
        """Marks the store as finished, and removes the files that only a writer needs.

        Raises:
            StoreError: if batches are missing.
        """
        missing = self.unfinished_batches()
        if missing:
            raise StoreError(
                f"{len(missing)} batches of the saliency store {self.folder} were not written; make it again to continue"
            )
        mean = read_manifest(self.folder).channel_mean or self._channel_mean()
        splits = {
            name: replace(split, checksum=digest(checksums_path(self.folder, name).read_bytes()))
            for name, split in self.manifest.splits.items()
        }
        replace(self.manifest, splits=splits, finished=True, channel_mean=mean).write(self.folder)
        self._clean_up()

    def _clean_up(self) -> None:
        """Removes the writer's files, including those of killed processes."""
        sweep(self.folder)
        for split in self.manifest.splits:
            self._done_path(split).unlink(missing_ok=True)
            self._sums_path(split).unlink(missing_ok=True)

    def _channel_mean(self) -> tuple[float, ...]:
        """The mean of each channel over the images of the first split: the training images if there are any."""
        split = next(iter(self.manifest.splits))
        num_pixels = self.manifest.splits[split].length * self.manifest.num_pixels
        raw, num_batches = self._sums_path(split).read_bytes(), self._num_batches(split)
        size = len(raw) // num_batches
        parts = [raw[i * size : (i + 1) * size] for i in range(num_batches)]
        values = [(part[:-CHECKSUM_BYTES], part[-CHECKSUM_BYTES:]) for part in parts]
        if len(raw) % num_batches or size <= CHECKSUM_BYTES or any(_checksum(sums) != checksum for sums, checksum in values):
            raise StoreError(f"{self._sums_path(split)} is damaged; remove {self.folder} and make the store again")
        sums = np.array([np.frombuffer(sums, "<f8") for sums, _ in values])
        return tuple((sums.sum(0) / num_pixels).tolist())

    def _intact_flags(self, split: str, checksum: str) -> bytes:
        """A byte for every batch of a finished split: whether its ranks match their checksums, and these match the manifest."""
        try:
            path, size = ranks_path(self.folder, split), self.manifest.splits[split].length * self.manifest.image_bytes
            if path.stat().st_size > size:
                os.truncate(path, size)
            if digest(checksums_path(self.folder, split).read_bytes()) == checksum:
                return bytes(self._is_intact(split, number) for number in range(self._num_batches(split)))
        except FileNotFoundError:
            pass
        return bytes(self._num_batches(split))

    def _is_intact(self, split: str, number: int) -> bool:
        """Whether the ranks of a batch match their checksums."""
        indices = self.image_range(split, number)
        try:
            shape, dtype = (len(indices), *self.manifest.shape), np.dtype(self.manifest.dtype)
            start = indices.start * self.manifest.image_bytes
            rows = np.fromfile(ranks_path(self.folder, split), dtype, math.prod(shape), offset=start)
            path = checksums_path(self.folder, split)
            expected = np.fromfile(path, "<u4", len(indices), offset=indices.start * CHECKSUM_BYTES)
        except FileNotFoundError:
            return False
        return rows.size == math.prod(shape) and np.array_equal(checksums_of(rows.reshape(shape)), expected)

    def _num_batches(self, split: str) -> int:
        return math.ceil(self.manifest.splits[split].length / self.manifest.batch_size)

    def _done_path(self, split: str) -> Path:
        return self.folder / f"{split}.done"

    def _sums_path(self, split: str) -> Path:
        return self.folder / f"{split}.sums"


def _checksum(raw: bytes | memoryview) -> bytes:
    return zlib.crc32(raw).to_bytes(CHECKSUM_BYTES, "little")


def _write_at(path: Path, raw: bytes, offset: int) -> None:
    """Writes a part of a file, and waits until it is on disk."""
    handle = os.open(path, os.O_WRONLY)
    try:
        while raw:
            num_written = os.pwrite(handle, raw, offset)
            raw, offset = raw[num_written:], offset + num_written
        os.fsync(handle)
    finally:
        os.close(handle)
