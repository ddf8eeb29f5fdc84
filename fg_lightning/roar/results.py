"""The cells of an experiment, their results, and what these say of the methods: scores, tables and curves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fg_lightning.atomic_files import write_atomically, write_json
from fg_lightning.attribution import CONTROLS
from fg_lightning.errors import CannotRun
from fg_lightning.roar.experiment_folder import add_checksum, verify_checksum
from fg_lightning.visualization.plots import MARKERS

ALL = "all"
"""The method of a cell in which no pixel is removed, or every one: it is the same for all."""

CONFIDENCE = 0.95

TABLE_COLUMNS = "method fraction seed order mode accuracy total_variation reason".split()

SUMMARY_COLUMNS = "method area interval_95 p p_holm total_variation".split()

DIRECTIONS = {True: "lower is better", False: "higher is better"}

X_LABELS = {"roar": "fraction of pixels removed", "kar": "fraction of pixels kept", "road": "fraction of pixels removed"}

TITLES = {"roar": "Remove and retrain", "kar": "Keep and retrain", "road": "Remove and debias"}

ORDER_NAMES = {"morf": "most relevant first", "lerf": "least relevant first"}


@dataclass(frozen=True)
class Cell:
    """One training: the images of one method at one fraction, with one seed."""

    method: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.fraction:g}-{self.seed}"


@dataclass(frozen=True, eq=False)
class CellResult:
    """
    Attributes:
        cell: the training.
        accuracy: on the test images. None if it failed.
        metrics: everything that the test logged.
        total_variation: of the masks of the test images, for each pixel.
        seconds: that it took.
        reason: why it failed. Empty if it did not.
    """

    cell: Cell
    accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    total_variation: float | None = None
    seconds: float = 0.0
    reason: str = ""


def list_cells(methods: Sequence[str], fractions: Sequence[float], num_seeds: int) -> list[Cell]:
    """Every cell in the order of the table. Those that all methods share come first, one for each seed.

    Fractions differ if the names of their cells differ: 0.3 and 0.1 + 0.2 are the same.
    """
    fractions = sorted({float(f"{fraction:g}") for fraction in fractions})
    shared = [Cell(ALL, fraction, seed) for fraction in fractions if fraction in (0, 1) for seed in range(num_seeds)]
    own = [(method, fraction) for method in methods for fraction in fractions if 0 < fraction < 1]
    return shared + [Cell(method, fraction, seed) for method, fraction in own for seed in range(num_seeds)]


def write_result(folder: Path, result: CellResult) -> None:
    """Writes a result to the folder of the experiment. Raises what `write_atomically` does."""
    write_json(_result_path(folder, result.cell), add_checksum(asdict(result)))


def read_result(folder: Path, cell: Cell) -> CellResult | None:
    """The result of a cell, or None if it has not been run.

    Raises:
        CannotRun: if its file cannot be read, was changed after it was written, or is of another cell.
    """
    path = _result_path(folder, cell)
    try:
        content: dict[str, Any] = verify_checksum(json.loads(path.read_text()))
        result = CellResult(**{**content, "cell": Cell(**content["cell"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CannotRun(f"{path} is damaged ({reason}); remove it, and the cell is run again") from error
    if result.cell.name != cell.name:
        raise CannotRun(f"{path} holds the cell {result.cell.name}: it was renamed or copied; remove it, and the cell is run again")
    return result


def _result_path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


@dataclass(frozen=True)
class Score:
    """A method against random.

    Attributes:
        method: its name.
        area: between its curve and random's over all fractions, mean over the seeds. More than 0 if the method is better than
            random: the network misses the pixels that are removed first, or relies on those that are kept.
        interval: half of the 95 % confidence interval of the area. NaN for one seed.
        p: two-sided, of a t-test of the areas of the seeds, paired with random's. NaN for one seed, or if the areas do not vary.
        p_holm: the same, adjusted for the number of methods (Holm 1979).
        total_variation: of its masks, for each pixel, mean over the fractions.
    """

    method: str
    area: float
    interval: float
    p: float
    p_holm: float
    total_variation: float


class ROARResults:
    """All cells of an experiment that have been run. Its repr is a summary.

    Args:
        results: of the cells, in the order of the table.
        mode: of the experiment.
        order: of the experiment.
    """

    def __init__(self, results: Sequence[CellResult], mode: str, order: str) -> None:
        self.results = list(results)
        self.mode = mode
        self.order = order
        self._accuracies = {(r.cell.method, r.cell.fraction, r.cell.seed): r.accuracy for r in results}
        self.methods = list(dict.fromkeys(r.cell.method for r in results if r.cell.method != ALL))
        self.fractions = sorted({r.cell.fraction for r in results})
        self.seeds = sorted({r.cell.seed for r in results})

    def __repr__(self) -> str:
        counts = f"{len(self.results)} trainings of {len(self.methods)} methods, {len(self.failures)} failed"
        lines = [f"  {score.method:24} area {score.area:+.4f} ± {score.interval:.4f}" for score in self.scores()]
        return "\n".join([f"ROARResults(mode {self.mode}, order {self.order}: {counts})", *lines[:5]])

    @property
    def failures(self) -> list[CellResult]:
        return [result for result in self.results if result.reason]

    @property
    def lower_is_better(self) -> bool:
        """Whether a good method's accuracies are low, as when the pixels that it calls most relevant are removed."""
        return (self.order == "morf") != (self.mode == "kar")

    def accuracies(self, method: str) -> npt.NDArray[np.float64]:
        """[num_seeds, num_fractions]. NaN if a cell has failed or has not been run."""
        return np.array([[self._accuracy(method, fraction, seed) for fraction in self.fractions] for seed in self.seeds])

    def scores(self) -> list[Score]:
        """Every other method against random, the best first."""
        if "random" not in self.methods:
            return []
        scores = [self._score(method) for method in self.methods if method != "random"]
        adjusted = holm([score.p for score in scores])
        scores = [replace(score, p_holm=p) for score, p in zip(scores, adjusted, strict=True)]
        return sorted(scores, key=lambda score: -np.nan_to_num(score.area, nan=-np.inf))

    def write_table(self, path: Path) -> None:
        """A row for every cell, in the order of methods, fractions and seeds."""
        rows = [
            [*vars(r.cell).values(), self.order, self.mode, _format(r.accuracy), _format(r.total_variation), r.reason]
            for r in self.results
        ]
        write_csv(path, TABLE_COLUMNS, rows)

    def write_summary(self, path: Path) -> None:
        """A row for every method's score, the best first."""
        rows = [[v if isinstance(v, str) else f"{v:.6g}" for v in vars(score).values()] for score in self.scores()]
        write_csv(path, SUMMARY_COLUMNS, rows)

    def _accuracy(self, method: str, fraction: float, seed: int) -> float:
        accuracy = self._accuracies.get((ALL if fraction in (0, 1) else method, fraction, seed))
        return float("nan") if accuracy is None else accuracy

    def _score(self, method: str) -> Score:
        from scipy.integrate import trapezoid  # type: ignore[import-untyped]

        sign = 1 if self.lower_is_better else -1
        differences = sign * (self.accuracies("random") - self.accuracies(method))
        areas = trapezoid(differences, self.fractions, axis=1)
        areas = areas[~np.isnan(areas)]
        mean, half = mean_and_interval(areas[:, None]) if len(areas) else (np.full(1, np.nan), np.full(1, np.nan))
        variations = [r.total_variation for r in self.results if r.cell.method == method and r.total_variation is not None]
        p = _paired_p(areas)
        return Score(method, float(mean[0]), float(half[0]), p, p, float(np.mean(variations)) if variations else float("nan"))


def mean_and_interval(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The mean over repetitions [R, F], and half of its 95 % confidence interval by Student's t, [F] each, without NaNs.

    The interval of a single repetition is NaN.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    count = (~np.isnan(values)).sum(0)
    safe = np.maximum(count, 2)
    filled = np.where(np.isnan(values), 0, values)
    mean = np.where(count > 0, filled.sum(0) / np.maximum(count, 1), np.nan)
    squares = np.where(np.isnan(values), 0, (values - mean) ** 2).sum(0)
    half = t.ppf((1 + CONFIDENCE) / 2, safe - 1) * np.sqrt(squares / (safe - 1) / safe)
    return mean, np.where(count > 1, half, np.nan)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down method. NaNs stay and do not count."""
    known = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    adjusted, highest = list(p), 0.0
    for place, i in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * p[i]))
        adjusted[i] = highest
    return adjusted


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue())


def _paired_p(areas: npt.NDArray[np.float64]) -> float:
    from scipy.stats import ttest_1samp  # type: ignore[import-untyped]

    if len(areas) < 2 or np.allclose(areas, areas[0], rtol=1e-9, atol=1e-12):  # no variance to compare the mean with
        return float("nan")
    return float(ttest_1samp(areas, 0).pvalue)


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def accuracy_curves(results: ROARResults) -> Figure:
    """Mean test accuracy over the seeds, with its 95 % interval. Controls are dashed and grey, blurred versions dotted.

    The legend shows the area between each curve and random's, and the total variation of the masks: smooth masks alone raise a
    score (Song et al. 2023, arXiv 2304.13836).
    """
    figure = Figure(figsize=(10, 5.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    colours = cycle(matplotlib.colormaps["tab20"]([0, 2, 4, 6, 8, 10, 12, 16, 18, 1, 3, 5, 7, 9, 11, 13, 17, 19]))
    greys = cycle(["black", "grey", "darkgrey"])
    scores = {score.method: score for score in results.scores()}
    highest = 1 if all(result.accuracy is None or result.accuracy <= 1 for result in results.results) else 100  # per cent
    in_order = [*scores, *(method for method in results.methods if method not in scores)]
    for i, method in enumerate(in_order):
        mean, half = mean_and_interval(results.accuracies(method))
        colour = next(greys if method in CONTROLS else colours)
        line = "--" if method in CONTROLS else ":" if method.startswith("blurred") else "-"
        label = method
        if method in scores:
            label += f"  {scores[method].area:+.3f}  (TV {scores[method].total_variation:.2f})"
        style: dict[str, Any] = {"color": colour, "linewidth": 1.4, "markersize": 4}
        axes.plot(results.fractions, mean, f"{MARKERS[i % len(MARKERS)]}{line}", label=label, **style)
        low, high = (np.clip(mean + side * np.nan_to_num(half), 0, highest) for side in (-1, 1))
        axes.fill_between(results.fractions, low, high, color=colour, alpha=0.12, linewidth=0)
    seeds = len(results.seeds)
    axes.set(
        xlabel=X_LABELS[results.mode],
        ylabel="test accuracy",
        title=f"{TITLES[results.mode]}, {ORDER_NAMES[results.order]}: {DIRECTIONS[results.lower_is_better]} "
        f"({seeds} seed{'s' if seeds > 1 else ''}{', bands: 95 %' if seeds > 1 else ''})",
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="area to random, total variation", title_fontsize=8)
    return figure
