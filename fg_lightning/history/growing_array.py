"""An array on disk that grows by an entry at a time and can be read by `numpy.load` at any moment."""

from __future__ import annotations

import io
import math
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from fg_lightning.atomic_files import file_named, write_atomically


class GrowingArray:
    """A .npy file whose first dimension grows: an entry is written behind the others, and only then counted in the header.

    A process killed in between leaves bytes that no reader counts and the next entry overwrites.

    Args:
        path: the file; made with the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return self._whole()[0][0] if self.path.exists() else 0

    def read(self) -> npt.NDArray[np.generic]:
        """All entries, mapped from the disk; of a file that was cut short those that are whole.

        Raises:
            ValueError: if it is no array.
        """
        shape, dtype, start = self._whole()
        return np.memmap(self.path, dtype, "r", start, shape)

    def entry(self, index: int) -> npt.NDArray[np.generic]:
        """One entry, read and not mapped: what a faulty disk does to a mapping ends the process.

        Raises:
            IndexError: if there are not so many.
            ValueError: if it is no array.
        """
        (whole, *of_each), dtype, start = self._whole()
        if not 0 <= index < whole:
            raise IndexError(f"{self.path} has {whole} entries")
        count = math.prod(of_each)
        with self.path.open("rb") as file:
            return np.fromfile(file, dtype, count, offset=start + index * count * dtype.itemsize).reshape(of_each)

    def append(self, entry: npt.NDArray[np.generic]) -> None:
        """
        Raises:
            OSError: if it cannot be written.
            ValueError: if the entry has not the shape and type of those before.
        """
        if not self.path.exists():
            write_atomically(self.path, _header(0, entry))
        (whole, *of_each), dtype, start = self._whole()
        if tuple(of_each) != entry.shape or dtype != entry.dtype:
            raise ValueError(f"{self.path} holds entries {dtype}{of_each}, not {entry.dtype}{list(entry.shape)}")
        with file_named(self.path), self.path.open("r+b") as file:
            file.seek(start + whole * entry.nbytes)
            file.write(np.ascontiguousarray(entry).tobytes())
            file.truncate()
            file.flush()
            header = _header(whole + 1, entry)
            assert len(header) == start  # numpy leaves room in the header for a first dimension of any size
            file.seek(0)
            file.write(header)

    def overwrite(self, index: int, entry: npt.NDArray[np.generic]) -> None:
        """Puts an entry, of the shape and type of all, in the place of another."""
        with self.path.open("r+b") as file:
            file.seek(self._whole()[2] + index * entry.nbytes)
            file.write(np.ascontiguousarray(entry).tobytes())

    def restore(self, entry: npt.NDArray[np.generic]) -> bool:
        """Makes of a file whose header is lost or says something else an array of whole entries, or removes it if it holds none.

        Args:
            entry: of the shape and type that all entries should have.

        Returns:
            Whether the header was as it should be.
        """
        with suppress(FileNotFoundError, ValueError):
            (_, *of_each), dtype, _ = self._whole()
            if tuple(of_each) == entry.shape and dtype == entry.dtype:
                return True
        there = self.path.stat().st_size if self.path.exists() else 0
        header = _header(max(0, there - len(_header(0, entry))) // entry.nbytes, entry)
        if there < len(header) + entry.nbytes:
            self.path.unlink(missing_ok=True)
            return not there
        with self.path.open("r+b") as file:
            file.write(header)
        return False

    def cut(self, count: int) -> None:
        """Forgets the entries behind the first so many."""
        if count >= len(self):
            return
        if count == 0:
            self.path.unlink()
            return
        (_, *of_each), dtype, _ = self._whole()
        with self.path.open("r+b") as file:
            file.write(_header(count, np.empty(of_each, dtype)))

    def _whole(self) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
        """Shape of the entries that are whole, their type, and where the first begins."""
        with self.path.open("rb") as file:
            (counted, *entry), dtype = _read_header(file)
            start = file.tell()
        there = (self.path.stat().st_size - start) // max(1, math.prod(entry) * dtype.itemsize)
        return (min(counted, there), *entry), dtype, start


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type of an array, whose first entry comes next in the file."""
    version = npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    if not shape or dtype.hasobject:
        raise ValueError(f"an array of entries is expected, not {dtype}{list(shape)}")
    return shape, dtype


def _header(count: int, entry: npt.NDArray[np.generic]) -> bytes:
    stream = io.BytesIO()
    description = {"descr": npy.dtype_to_descr(entry.dtype), "fortran_order": False, "shape": (count, *entry.shape)}
    npy.write_array_header_1_0(stream, description)
    return stream.getvalue()
