"""The cells of an experiment: which trainings there are, and what each of them left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fg_lightning.atomic import write_json
from fg_lightning.errors import CannotRun
from fg_lightning.roar.checksums import sealed, unsealed

ALL = "all"
"""The method of a cell in which no pixel goes, or every one: it is the same for all."""


@dataclass(frozen=True)
class Cell:
    """One training: the images of one method at one fraction, with one seed."""

    method: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.fraction:g}-{self.seed}"


@dataclass(frozen=True)
class Result:
    """
    Attributes:
        cell: what was run.
        accuracy: on the test images; None if it failed.
        metrics: everything that the test logged.
        total_variation: of the masks of the test images, a pixel.
        seconds: that it took.
        reason: why it failed; empty if it did not.
    """

    cell: Cell
    accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    total_variation: float | None = None
    seconds: float = 0.0
    reason: str = ""


def cells_of(methods: Sequence[str], fractions: Sequence[float], seeds: int) -> list[Cell]:
    """Every cell in the order of the table; what no method has a part in comes first, once a seed.

    Fractions are told apart as far as the cells' names tell them, so that 0.3 and 0.1 + 0.2 are one.
    """
    fractions = sorted({float(f"{fraction:g}") for fraction in fractions})
    shared = [Cell(ALL, fraction, seed) for fraction in fractions if fraction in (0, 1) for seed in range(seeds)]
    own = [(method, fraction) for method in methods for fraction in fractions if 0 < fraction < 1]
    return shared + [Cell(method, fraction, seed) for method, fraction in own for seed in range(seeds)]


def write_result(folder: Path, result: Result) -> None:
    """Raises what `write_atomically` does."""
    write_json(_path(folder, result.cell), sealed(asdict(result)))


def read_result(folder: Path, cell: Cell) -> Result | None:
    """What a cell left, or None if it has not been run.

    Raises:
        CannotRun: if its file is not readable, was changed after it was written, or is of another cell.
    """
    path = _path(folder, cell)
    try:
        found: dict[str, Any] = unsealed(json.loads(path.read_text()))
        result = Result(**{**found, "cell": Cell(**found["cell"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CannotRun(f"{path} is damaged ({reason}); remove it, and the cell is run again") from error
    if result.cell.name != cell.name:
        raise CannotRun(f"{path} holds the cell {result.cell.name}: it was renamed or copied; remove it, and the cell is run again")
    return result


def _path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"
