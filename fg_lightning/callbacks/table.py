"""Tables as CSV files that grow: what is written of rows and cells, and what of them is read."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


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
