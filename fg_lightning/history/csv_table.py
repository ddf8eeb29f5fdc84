"""Tables as CSV files that grow: what is written of rows and cells, and what of them is read.

Tables and facts as a killed process, a full disk or a person left them: the rows that can be read.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar


def as_csv(rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows as lines; None is an empty cell."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def ended_lines(path: Path) -> tuple[str, str]:
    """The lines of a text file that were ended, and what stands behind them; what is no text becomes a character of no number."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    end = text.rfind("\n") + 1
    return text[:end], text[end:]


def rows_of(lines: str) -> Iterator[dict[str, str]]:
    """The rows below a heading, by its names.

    Raises:
        ValueError: at a row that is no CSV.
    """
    try:
        yield from csv.DictReader(io.StringIO(lines))
    except csv.Error as error:
        raise ValueError(f"a row is no CSV: {error}") from error


def sound_rows(path: Path, columns: Sequence[str]) -> tuple[dict[tuple[int, ...], dict[str, str]], bool]:
    """The rows of a table that can be read, whatever became of the others, and whether that is all that stands in it.

    Args:
        path: the file; where it is missing, there are none.
        columns: what it should have, names of whole numbers that tell rows apart before all others.

    Returns:
        Rows by their whole numbers, in order; of two with the same numbers the first.
    """
    if not path.exists():
        return {}, False
    lines, rest = ended_lines(path)
    heading, *cells = [_cells(line) for line in lines.split("\n")[:-1]] or [[]]
    keys = [name for name in ("look", "image", "layer") if name in columns]
    names = heading if set(keys) <= set(heading) else list(columns)
    rows: dict[tuple[int, ...], dict[str, str]] = {}
    for row in (dict(zip(names, of_row, strict=True)) for of_row in cells if len(of_row) == len(names)):
        if all(row[key].isdecimal() for key in keys) and _has_numbers(row):
            rows.setdefault(tuple(int(row[key]) for key in keys), row)
    is_whole = not rest and names is heading and len(rows) == len(cells)
    return dict(sorted(rows.items())), is_whole


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _has_numbers(row: dict[str, str]) -> bool:
    """Whether all cells that should be numbers, or empty, are."""
    try:
        for name, cell in row.items():
            if name not in ("module", "kind"):
                [float(part) for part in cell.split()]
    except ValueError:
        return False
    return True


def number(cell: str | None) -> float | None:
    """A cell as a number, a class as an integer; None if it is empty or NaN, which say that it is not defined.

    Raises:
        ValueError: if it is something else, or infinite.
    """
    if not cell:
        return None
    if cell.lstrip("-").isdigit():
        return int(cell)
    value = float(cell)
    if math.isinf(value):
        raise ValueError(f"{cell} is not finite")
    return None if math.isnan(value) else value


Row = TypeVar("Row")


def readable_rows(path: Path, read: Callable[[dict[str, str]], Row], notes: list[str]) -> list[Row]:
    """The rows of a CSV file that were ended, as a function reads them; none of a file that is missing.

    Args:
        path: the file.
        read: may raise KeyError, TypeError or ValueError, of a row that is damaged.
        notes: gets a sentence if a row is, the file was cut short, or it is missing.
    """
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return []
    lines, rest = ended_lines(path)
    given: list[dict[str, str]] = []
    try:
        for row in rows_of(lines):
            given.append(row)  # noqa: PERF402 (those before a row that is none are kept)
    except ValueError as error:
        notes.append(f"{path.name} is damaged behind its row {len(given)}: {error}.")
    if rest:
        notes.append(f"The last line of {path.name} was not ended and is left out.")
    rows = [found for row in given if (found := _read(row, read)) is not None]
    if len(rows) < len(given):
        notes.append(f"{len(given) - len(rows)} of {len(given)} rows of {path.name} are damaged and left out.")
    return rows


def facts_of(path: Path, lost: str, notes: list[str]) -> dict[str, Any]:
    """What a JSON file says; nothing if it is missing or damaged.

    Args:
        path: the file.
        lost: what is not known without it, a sentence's end.
        notes: gets that sentence.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        notes.append(f"{path.name} is {'damaged' if path.is_file() else 'missing'}: {lost}")
        return {}


def rounded(values: Sequence[float | None], digits: int = 5) -> list[float | None]:
    """For the page: to so many significant digits."""
    return [None if value is None else float(f"{value:.{digits}g}") for value in values]


def _read(row: dict[str, Any], read: Callable[[dict[str, str]], Row]) -> Row | None:
    if None in row.values():  # it is short
        return None
    try:
        return read(row)
    except (KeyError, TypeError, ValueError):
        return None
