"""Files that grow by one row or entry at a time: CSV tables, and arrays that `numpy.load` can read at any time."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from fg_lightning.atomic_files import name_file_in_errors, write_atomically

Row = TypeVar("Row")


class GrowingTable:
    """A CSV file with a heading. Its last line counts only if it ends with a newline.

    Args:
        path: the file; created with the first rows.
        columns: the heading. Columns named in `KEYS` hold whole numbers and identify a row.
    """

    KEYS = ("snapshot", "image", "layer")
    WORDS = ("module", "kind")

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = columns

    def append(self, rows: Sequence[Sequence[Any]]) -> None:
        """Adds rows with one system call, so that a killed process adds all or none. None becomes an empty cell.

        Raises:
            OSError: if they cannot be written.
        """
        heading = [] if self.path.exists() and self.path.stat().st_size else [self.columns]
        raw = _csv_bytes([*heading, *rows])
        with name_file_in_errors(self.path), self.path.open("ab", buffering=0) as file:
            if file.write(raw) != len(raw):  # no error is raised if the disk becomes full during the call
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def rewrite(self, rows: Sequence[Sequence[Any]]) -> None:
        """Replaces the table by these rows. Without rows, the file is removed."""
        raw = _csv_bytes([self.columns, *rows])
        if not rows:
            self.path.unlink(missing_ok=True)
        elif not self.path.exists() or self.path.read_bytes() != raw:
            write_atomically(self.path, raw)

    def read(self, parse: Callable[[dict[str, str]], Row], notes: list[str] | None = None) -> list[Row]:
        """Reads the rows.

        Args:
            parse: makes a record of a row; raises KeyError or ValueError if the row is damaged.
            notes: list to which a sentence is added about each thing that is missing or damaged. Such rows are left out. Default:
                None, an error is raised.

        Raises:
            KeyError, ValueError: if a row is damaged and there are no `notes`.
        """
        if not self.path.is_file():
            if notes is not None:
                notes.append(f"{self.path.name} is missing.")
            return []
        heading, lines, is_cut = self._split()
        lines = [cells for cells in lines if cells]
        rows: list[Row] = []
        for place, cells in enumerate(lines):
            try:
                if len(cells) != len(heading):
                    raise ValueError(f"row {place} of {self.path.name} has {len(cells)} cells, but the heading has {len(heading)}")
                rows.append(parse(dict(zip(heading, cells, strict=True))))
            except (KeyError, ValueError):  # noqa: PERF203 (each row may be damaged)
                if notes is None:
                    raise
        if notes is not None and is_cut:
            notes.append(f"The last line of {self.path.name} is incomplete and is left out.")
        if notes is not None and len(rows) < len(lines):
            notes.append(f"{len(lines) - len(rows)} of {len(lines)} rows of {self.path.name} are damaged and left out.")
        return rows

    def salvage(self) -> tuple[dict[tuple[int, ...], dict[str, str]], bool]:
        """The rows that can be read, even if others or the heading are damaged.

        Returns:
            The rows by their keys, in order. Of two rows with the same keys, the first counts. And whether the file is undamaged:
            it holds only these rows.
        """
        if not self.path.exists():
            return {}, False
        heading, lines, is_cut = self._split()
        keys = [name for name in self.KEYS if name in self.columns]
        names = heading if set(keys) <= set(heading) else list(self.columns)
        rows: dict[tuple[int, ...], dict[str, str]] = {}
        for row in (dict(zip(names, cells, strict=True)) for cells in lines if len(cells) == len(names)):
            if all(row[key].isdecimal() for key in keys) and self._has_numbers(row):
                rows.setdefault(tuple(int(row[key]) for key in keys), row)
        return dict(sorted(rows.items())), not is_cut and names is heading and len(rows) == len(lines)

    def _split(self) -> tuple[list[str], list[list[str]], bool]:
        """The heading, the cells of each complete line (one cell if a line is not CSV), and whether an incomplete line follows."""
        text = self.path.read_text(encoding="utf-8", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
        *ended, rest = text.split("\n")
        heading, *lines = [_split_line(line) for line in ended] or [[]]
        return heading, lines, bool(rest)

    def _has_numbers(self, row: dict[str, str]) -> bool:
        """Whether all cells outside the columns of text hold numbers or are empty."""
        try:
            for name, cell in row.items():
                if name not in self.WORDS:
                    [float(part) for part in cell.split()]
        except ValueError:
            return False
        return True


def parse_number(cell: str) -> float | None:
    """A cell as a number, an integer if it is one; None if it is empty or NaN, which both mean undefined.

    Raises:
        ValueError: if it is anything else.
    """
    if not cell:
        return None
    if cell.lstrip("-").isdigit():
        return int(cell)
    value = float(cell)
    return None if math.isnan(value) else value


def _split_line(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return [line]


def _csv_bytes(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class GrowingArray:
    """A .npy file whose first dimension grows. A new entry is written after the others, and then counted in the header.

    A process that is killed in between leaves bytes that no reader counts. The next entry overwrites them.

    Args:
        path: the file. It is created with the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return self._whole_entries()[0][0] if self.path.exists() else 0

    def read(self) -> npt.NDArray[np.generic]:
        """All complete entries, mapped from the disk.

        Raises:
            FileNotFoundError: if there is no file.
            ValueError: if it is not an array.
        """
        shape, dtype, start = self._whole_entries()
        return np.memmap(self.path, dtype, "r", start, shape)

    def entry(self, index: int) -> npt.NDArray[np.generic]:
        """One entry. It is read and not mapped, because a faulty disk kills a process that maps it.

        Raises:
            FileNotFoundError: if there is no file.
            IndexError: if there are too few entries.
            ValueError: if the file is not an array.
        """
        (whole, *of_each), dtype, start = self._whole_entries()
        if not 0 <= index < whole:
            raise IndexError(f"{self.path} has {whole} entries")
        count = math.prod(of_each)
        with self.path.open("rb") as file:
            return np.fromfile(file, dtype, count, offset=start + index * count * dtype.itemsize).reshape(of_each)

    def append(self, entry: npt.NDArray[np.generic]) -> None:
        """Adds an entry.

        Raises:
            OSError: if it cannot be written.
            ValueError: if the entry does not have the shape and type of the others.
        """
        if not self.path.exists():
            write_atomically(self.path, _header(0, entry))
        (whole, *of_each), dtype, start = self._whole_entries()
        if tuple(of_each) != entry.shape or dtype != entry.dtype:
            raise ValueError(f"{self.path} holds entries {dtype}{of_each}, not {entry.dtype}{list(entry.shape)}")
        with name_file_in_errors(self.path), self.path.open("r+b") as file:
            file.seek(start + whole * entry.nbytes)
            file.write(np.ascontiguousarray(entry).tobytes())
            file.truncate()
            file.flush()
            header = _header(whole + 1, entry)
            assert len(header) == start  # numpy leaves room in the header for a first dimension of any size
            file.seek(0)
            file.write(header)

    def overwrite(self, index: int, entry: npt.NDArray[np.generic]) -> None:
        """Replaces an entry by another one of the same shape and type."""
        with self.path.open("r+b") as file:
            file.seek(self._whole_entries()[2] + index * entry.nbytes)
            file.write(np.ascontiguousarray(entry).tobytes())

    def restore(self, entry: npt.NDArray[np.generic]) -> bool:
        """Repairs a file whose header is missing or wrong, so that it holds the complete entries. Without one, it is removed.

        Args:
            entry: an entry of the expected shape and type.

        Returns:
            Whether the header was correct.
        """
        with suppress(FileNotFoundError, ValueError):
            (_, *of_each), dtype, _ = self._whole_entries()
            if tuple(of_each) == entry.shape and dtype == entry.dtype:
                return True
        size = self.path.stat().st_size if self.path.exists() else 0
        header = _header(max(0, size - len(_header(0, entry))) // entry.nbytes, entry)
        if size < len(header) + entry.nbytes:
            self.path.unlink(missing_ok=True)
            return not size
        with self.path.open("r+b") as file:
            file.write(header)
        return False

    def truncate(self, count: int) -> None:
        """Keeps the first `count` entries."""
        if count >= len(self):
            return
        if count == 0:
            self.path.unlink()
            return
        (_, *of_each), dtype, _ = self._whole_entries()
        with self.path.open("r+b") as file:
            file.write(_header(count, np.empty(of_each, dtype)))

    def _whole_entries(self) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
        """The shape of all complete entries, their type, and the offset of the first in bytes."""
        with self.path.open("rb") as file:
            (count, *entry), dtype = _read_header(file)
            start = file.tell()
        held = (self.path.stat().st_size - start) // max(1, math.prod(entry) * dtype.itemsize)
        return (min(count, held), *entry), dtype, start


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Reads the shape and type of an array. The first entry comes next in the file."""
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
