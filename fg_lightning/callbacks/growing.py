"""An array on disk that grows by an entry at a time and can be read by `numpy.load` at any moment."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy


class GrowingArray:
    """A .npy file whose first dimension grows: an entry is written behind the others, and only then counted in the header.

    A process killed in between leaves bytes that no reader counts and the next entry overwrites.

    Args:
        path: the file; made with the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return len(self.read()) if self.path.exists() else 0

    def read(self) -> npt.NDArray[np.generic]:
        """All entries, mapped from the disk; of a file that was cut short those that are whole.

        Raises:
            ValueError: if it is no array.
        """
        with self.path.open("rb") as file:
            (counted, *entry), dtype = _read_header(file)
            start = file.tell()
        there = (self.path.stat().st_size - start) // max(1, math.prod(entry) * dtype.itemsize)
        return np.memmap(self.path, dtype, "r", start, (min(counted, there), *entry))

    def append(self, entry: npt.NDArray[np.generic]) -> None:
        """
        Raises:
            ValueError: if the entry has not the shape and type of those before.
        """
        if not self.path.exists():
            self.path.write_bytes(_header(0, entry))
        with self.path.open("r+b") as file:
            shape, dtype = _read_header(file)
            if shape[1:] != entry.shape or dtype != entry.dtype:
                raise ValueError(f"{self.path} holds entries {dtype}{list(shape[1:])}, not {entry.dtype}{list(entry.shape)}")
            start = file.tell()
            file.seek(start + shape[0] * entry.nbytes)
            file.write(np.ascontiguousarray(entry).tobytes())
            file.truncate()
            file.flush()
            header = _header(shape[0] + 1, entry)
            assert len(header) == start  # numpy leaves room in the header for a first dimension of any size
            file.seek(0)
            file.write(header)

    def cut(self, count: int) -> None:
        """Forgets the entries behind the first so many."""
        if count >= len(self):
            return
        if count == 0:
            self.path.unlink()
            return
        entry = self.read()[0]
        with self.path.open("r+b") as file:
            file.write(_header(count, entry))


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
