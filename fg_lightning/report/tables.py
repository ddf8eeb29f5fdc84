"""Tables and facts as a killed process, a full disk or a person left them: the rows that can be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fg_lightning.callbacks.table import ended_lines, rows_of

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
