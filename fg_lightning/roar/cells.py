"""The cells of an experiment: a cell is one training. Each result is a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fg_lightning.atomic_files import write_json
from fg_lightning.errors import CannotRun
from fg_lightning.roar.experiment_folder import add_checksum, verify_checksum

ALL = "all"
"""The method of a cell that removes no pixel or every pixel: such a cell is the same for all methods."""

MASKS = "masks"
"""The control of a cell whose network sees only the masks: 1 at removed pixels, 0 elsewhere."""


@dataclass(frozen=True)
class Cell:
    """One training: the images of one method at one fraction, with one seed.

    Attributes:
        method: name of the method. ALL: the cell is the same for all methods and fills.
        fraction: share of the pixels that are removed (mode kar: kept), 0 to 1.
        seed: number of the training among those with the maps of one network, from 0.
        network: number of the explained network, whose maps give the masks, from 0.
        fill: name of the fill. Empty if the cell is the same for all fills.
        control: MASKS, or empty.
    """

    method: str
    fraction: float
    seed: int
    network: int = 0
    fill: str = ""
    control: str = ""

    @property
    def name(self) -> str:
        return f"{self.method}-{self.fraction:g}-{self.control or self.fill or 'intact'}-{self.network}-{self.seed}"


@dataclass(frozen=True, eq=False)
class CellResult:
    """The result of a cell.

    Attributes:
        cell: the training.
        accuracy: accuracy on the test images. None if the cell failed.
        metrics: all metrics that the test logged, by name.
        total_variation: mean total variation of the test images' masks, divided by the number of pixels. None if there is none.
        seconds: duration of training and test.
        reason: why the cell failed. Empty if it did not.
    """

    cell: Cell
    accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    total_variation: float | None = None
    seconds: float = 0.0
    reason: str = ""


def list_cells(
    methods: Sequence[str],
    fractions: Sequence[float],
    fills: Sequence[str],
    *,
    num_networks: int = 1,
    num_seeds: int = 1,
    controls: bool = False,
) -> list[Cell]:
    """Every cell in the order of the table. The cells that all methods share come first, one for each network and seed.

    Fractions with the same name in cells are the same, such as 0.3 and 0.1 + 0.2.

    Args:
        methods: names of the methods.
        fractions: shares of the pixels, 0 to 1.
        fills: names of the fills.
        num_networks: number of explained networks.
        num_seeds: number of trainings for each method, fraction, fill and network.
        controls: whether there is a training on the masks alone for each method, fraction and network.
    """
    fractions = sorted({float(f"{fraction:g}") for fraction in fractions})
    pairs = [(seed, network) for network in range(num_networks) for seed in range(num_seeds)]
    cells = [Cell(ALL, fraction, *pair) for fraction in fractions if fraction in (0, 1) for pair in pairs]
    for method in methods:
        for fraction in fractions:
            if fraction in (0, 1):
                continue
            cells += [Cell(method, fraction, *pair, fill) for fill in fills for pair in pairs]
            if controls:
                cells += [Cell(method, fraction, 0, network, control=MASKS) for network in range(num_networks)]
    return cells


def write_result(folder: Path, result: CellResult) -> None:
    """Writes a result to the folder of the experiment. Raises what `write_atomically` does."""
    write_json(_result_path(folder, result.cell), add_checksum(asdict(result)))


def read_result(folder: Path, cell: Cell) -> CellResult | None:
    """The result of a cell, or None if it has not been run.

    Raises:
        CannotRun: if its file cannot be read, was changed after it was written, or belongs to another cell.
    """
    path = _result_path(folder, cell)
    result = _read_file(path) if path.exists() else None
    if result is not None and result.cell.name != cell.name:
        raise CannotRun(f"{path} holds the cell {result.cell.name}: the file was renamed; remove it to run the cell again")
    return result


def read_results(folder: Path) -> tuple[list[CellResult], int]:
    """All results in the folder of an experiment, in the order of the table, and the number of damaged files."""
    results, num_damaged = [], 0
    for path in sorted((folder / "cells").glob("*.json")):
        try:
            result = _read_file(path)
        except CannotRun:  # noqa: PERF203 (each has its own)
            num_damaged += 1
        else:
            if result.cell.name == path.stem:
                results.append(result)
            else:
                num_damaged += 1
    return sorted(results, key=lambda result: _place(result.cell)), num_damaged


def _read_file(path: Path) -> CellResult:
    try:
        content: dict[str, Any] = verify_checksum(json.loads(path.read_text()))
        return CellResult(**{**content, "cell": Cell(**content["cell"])})
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CannotRun(f"{path} is damaged ({reason}); remove it to run the cell again") from error


def _result_path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


def _place(cell: Cell) -> tuple[Any, ...]:
    """The sort key of a cell in the table."""
    return cell.method != ALL, cell.method, cell.fraction, cell.control, cell.fill, cell.network, cell.seed


def parse_row(row: dict[str, str]) -> CellResult:
    """The result in a row of results.csv.

    Raises:
        KeyError: if a column is missing.
        TypeError: if a value is missing.
        ValueError: if a value that must be a number is none, or there is neither an accuracy nor a reason.
    """
    cell = Cell(row["method"], float(row["fraction"]), int(row["seed"]), int(row["network"]), row["fill"], row["control"])
    accuracy = float(row["accuracy"]) if row["accuracy"] else None
    if None in row.values() or (accuracy is None and not row["reason"]) or not math.isfinite(accuracy or 0):
        raise ValueError("a training needs a finite accuracy, or the reason why it failed")
    return CellResult(cell, accuracy, {}, float(row["total_variation"]) if row["total_variation"] else None, 0.0, row["reason"])
