"""Tables and facts as a killed process, a full disk or a person left them: the rows that can be read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


def rows_of(path: Path, read: Callable[[dict[str, str]], Row], notes: list[str]) -> list[Row]:
    """The rows of a CSV file that were ended, as a function reads them; none of a file that is missing.

    Args:
        path: the file.
        read: may raise KeyError, TypeError or ValueError, of a row that is damaged.
        notes: gets a sentence if a row is, or the file is missing.
    """
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        text = file.read().replace("\0", "")
    given = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
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


def number(cell: str | None) -> float | None:
    """A cell as a number, a class as an integer; None if it is empty.

    Raises:
        ValueError: if it is something else, or not finite.
    """
    if not cell:
        return None
    if cell.lstrip("-").isdigit():
        return int(cell)
    value = float(cell)
    if value != value or abs(value) == float("inf"):
        raise ValueError(f"{cell} is not finite")
    return value


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
