"""What the cells' accuracies say of the methods.

Accuracy over the fraction of pixels, a line for every method, with its confidence band.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fg_lightning.atomic_files import write_atomically
from fg_lightning.attribution import CONTROLS
from fg_lightning.roar.cell_training import ALL, Result
from fg_lightning.visualization.plots import MARKERS

CONFIDENCE = 0.95

COLUMNS = "method fraction seed order mode accuracy total_variation reason".split()

SUMMARY = "method area interval_95 p p_holm total_variation".split()


@dataclass(frozen=True)
class Score:
    """A method against random.

    Attributes:
        method: its name.
        area: between its curve and random's, over the fractions from end to end, mean over the seeds; more than 0 where the method
            does better than random: the network misses what goes first, or lives on what is kept.
        interval: half of the 95 % confidence interval of the area; NaN of one seed.
        p: two-sided, of a t-test of the areas of the seeds, paired with random's; NaN of one seed, and where the areas do not vary.
        p_holm: the same, adjusted for the number of methods (Holm 1979).
        total_variation: of its masks, a pixel, mean over the fractions.
    """

    method: str
    area: float
    interval: float
    p: float
    p_holm: float
    total_variation: float


class Results:
    """All cells of an experiment that have been run.

    Args:
        results: of the cells, in the order of the table.
        mode: of the experiment.
        order: of the experiment.
    """

    def __init__(self, results: Sequence[Result], mode: str, order: str) -> None:
        self.results = list(results)
        self.mode = mode
        self.order = order
        self._accuracies = {(r.cell.method, r.cell.fraction, r.cell.seed): r.accuracy for r in results}
        self.methods = list(dict.fromkeys(r.cell.method for r in results if r.cell.method != ALL))
        self.fractions = sorted({r.cell.fraction for r in results})
        self.seeds = sorted({r.cell.seed for r in results})

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.reason]

    @property
    def lower_is_better(self) -> bool:
        """Whether a good method's accuracies are low, as where the pixels that it calls most relevant go."""
        return (self.order == "morf") != (self.mode == "kar")

    def accuracies(self, method: str) -> npt.NDArray[np.float64]:
        """[seeds, fractions]; NaN where a cell has failed or not been run."""
        return np.array([[self._accuracy(method, fraction, seed) for fraction in self.fractions] for seed in self.seeds])

    def scores(self) -> list[Score]:
        """Every method but random against it, the best first."""
        if "random" not in self.methods:
            return []
        found = [self._score(method) for method in self.methods if method != "random"]
        adjusted = holm([score.p for score in found])
        found = [Score(**{**vars(score), "p_holm": p}) for score, p in zip(found, adjusted, strict=True)]
        return sorted(found, key=lambda score: -np.nan_to_num(score.area, nan=-np.inf))

    def write_table(self, path: Path) -> None:
        """A row for every cell, in the order of methods, fractions and seeds."""
        rows = [
            [*vars(r.cell).values(), self.order, self.mode, _blank(r.accuracy), _blank(r.total_variation), r.reason]
            for r in self.results
        ]
        write_csv(path, COLUMNS, rows)

    def write_summary(self, path: Path) -> None:
        """A row for every method's score, the best first."""
        rows = [[v if isinstance(v, str) else f"{v:.6g}" for v in vars(score).values()] for score in self.scores()]
        write_csv(path, SUMMARY, rows)

    def _accuracy(self, method: str, fraction: float, seed: int) -> float:
        found = self._accuracies.get((ALL if fraction in (0, 1) else method, fraction, seed))
        return float("nan") if found is None else found

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
    """Over repetitions [R, F]: the mean and half of its 95 % confidence interval by Student's t, [F] each; NaNs are left out.

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
    """p-values adjusted for their number, by Holm's step-down method; NaNs stay and do not count."""
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

    if len(areas) < 2 or np.allclose(areas, areas[0], rtol=1e-9, atol=1e-12):  # no variance to hold the mean against
        return float("nan")
    return float(ttest_1samp(areas, 0).pvalue)


def _blank(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


SAYS = {True: "lower is better", False: "higher is better"}

XLABEL = {"roar": "fraction of pixels removed", "kar": "fraction of pixels kept", "road": "fraction of pixels removed"}

TITLE = {"roar": "Remove and retrain", "kar": "Keep and retrain", "road": "Remove and debias"}

ORDER = {"morf": "most relevant first", "lerf": "least relevant first"}


def accuracy_curves(results: Results) -> Figure:
    """Mean test accuracy over the seeds, with its 95 % interval; controls dashed in grey, blurred versions dotted.

    The legend gives the area between each curve and random's and the total variation of the masks, since smooth masks alone raise a
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
        xlabel=XLABEL[results.mode],
        ylabel="test accuracy",
        title=f"{TITLE[results.mode]}, {ORDER[results.order]}: {SAYS[results.lower_is_better]} "
        f"({seeds} seed{'s' if seeds > 1 else ''}{', bands: 95 %' if seeds > 1 else ''})",
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="area to random, total variation", title_fontsize=8)
    return figure
