"""Scores and tables of the methods, from the results of the cells."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fg_lightning.atomic_files import write_atomically
from fg_lightning.errors import CannotRun
from fg_lightning.roar.cells import ALL, MASKS, Cell, CellResult

CONFIDENCE = 0.95

TABLE_COLUMNS = "method control fill fraction network seed target order mode accuracy total_variation reason".split()

SUMMARY_COLUMNS = (
    "method fill area interval_95 p p_holm interval_over num_repetitions total_variation masks_accuracy_mean masks_accuracy_largest"
).split()

DIRECTIONS = {True: "lower is better", False: "higher is better"}

X_LABELS = {"roar": "fraction of pixels removed", "kar": "fraction of pixels kept", "road": "fraction of pixels removed"}

TITLES = {"roar": "Remove and retrain", "kar": "Keep and retrain", "road": "Remove and debias"}

ORDER_NAMES = {"morf": "most relevant first", "lerf": "least relevant first"}

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """The scores of a method, compared with random.

    Attributes:
        method: name of the method.
        fill: name of the fill.
        area: area between its curve and random's, divided by the range of the fractions: the mean difference in accuracy. Mean over
            the repetitions. More than 0 if the method is better than random: the network misses the pixels that are removed first,
            or relies on those that are kept.
        interval: half of the 95 % confidence interval of the area. NaN for one repetition.
        p: two-sided p-value of a t-test of the areas, paired with random's. NaN for one repetition, or if the areas do not vary.
        p_holm: the same, adjusted for all methods and fills together (Holm 1979).
        num_repetitions: number of areas: one for each network if there are several, else one for each seed. See
            `ROARResults.interval_over`.
        total_variation: total variation of its masks, divided by the number of pixels. Mean over the fractions.
        masks_accuracy_mean: accuracy of networks that see only its masks. Mean over fractions and networks. NaN without controls.
        masks_accuracy_largest: the same at the largest fraction.
    """

    method: str
    fill: str
    area: float
    interval: float
    p: float
    p_holm: float
    num_repetitions: int
    total_variation: float
    masks_accuracy_mean: float
    masks_accuracy_largest: float


class ROARResults:
    """The results of all cells of an experiment that have been run. Its repr is a summary.

    Args:
        results: results of the cells, in the order of the table.
        mode: mode of the experiment: "roar", "kar" or "road".
        order: order of the experiment: "morf" or "lerf".
        target: class that the experiment explains. Default: "predicted".

    Attributes:
        methods: names of the methods.
        fills: names of the fills.
        fractions: fractions, in ascending order.
        networks: numbers of the explained networks, from 0.
        seeds: numbers of the trainings with the maps of each network, from 0.
    """

    def __init__(self, results: Sequence[CellResult], mode: str, order: str, target: Any = "predicted") -> None:
        self.results = list(results)
        self.mode = mode
        self.order = order
        self.target = target
        cells = [result.cell for result in results]
        self._accuracies = {result.cell: result.accuracy for result in results}
        self.methods = list(dict.fromkeys(cell.method for cell in cells if cell.method != ALL))
        self.fills = list(dict.fromkeys(cell.fill for cell in cells if cell.fill))
        self.fractions = sorted({cell.fraction for cell in cells})
        self.networks = sorted({cell.network for cell in cells})
        self.seeds = sorted({cell.seed for cell in cells})

    def __repr__(self) -> str:
        controls = "" if self.has_controls else ", no controls"
        counts = f"{len(self.results)} trainings of {len(self.methods)} methods, {len(self.failures)} failed{controls}"
        lines = [f"  {s.method:24} {s.fill:14} area {s.area:+.4f} ± {s.interval:.4f}" for s in self.scores()]
        return "\n".join([f"ROARResults(mode {self.mode}, order {self.order}: {counts})", *lines[:5]])

    @property
    def failures(self) -> list[CellResult]:
        return [result for result in self.results if result.reason]

    @property
    def lower_is_better(self) -> bool:
        """Whether a good method has low accuracies, for example if its most relevant pixels are removed."""
        return (self.order == "morf") != (self.mode == "kar")

    @property
    def has_controls(self) -> bool:
        """Whether networks were trained on the masks alone."""
        return any(result.cell.control == MASKS for result in self.results)

    @property
    def interval_over(self) -> str:
        """What intervals and p-values cover: "networks" if several were explained, else "seeds", only the retraining."""
        return "networks" if len(self.networks) > 1 else "seeds"

    def accuracies(self, method: str, fill: str | None = None) -> Values:
        """The curves of a method, [num_repetitions, num_fractions]. NaN if a cell has failed or has not been run.

        If several networks were explained, a repetition is a network, the mean over its seeds. Otherwise it is a seed.

        Args:
            method: name of the method.
            fill: name of the fill. Default: the first one.
        """
        return self._repetitions(self._grid(method, self._first_fill() if fill is None else fill))

    def masks_accuracies(self, method: str) -> Values:
        """The accuracies of networks that see only a method's masks, [num_networks, num_fractions]. NaN if there is none.

        Args:
            method: name of the method.
        """
        return np.array(
            [[self._known(Cell(method, f, 0, network, control=MASKS)) for f in self.fractions] for network in self.networks]
        )

    @property
    def unit(self) -> int:
        """The largest possible accuracy: 1, or 100 if accuracies are in per cent."""
        return 1 if all(result.accuracy is None or result.accuracy <= 1 for result in self.results) else 100

    @property
    def chance(self) -> float:
        """Accuracy by chance: the mean of networks that see only random's masks, which know no image. NaN if there are none."""
        return float(mean_of_known(self.masks_accuracies("random").reshape(-1), 0))

    def scores(self, fill: str | None = None) -> list[Score]:
        """The scores of every method except random, the best of each fill first.

        Args:
            fill: name of the fill. Default: all fills. P-values are adjusted for all fills in both cases.
        """
        if "random" not in self.methods:
            return []
        scores = [self._score(method, one) for one in self.fills for method in self.methods if method != "random"]
        adjusted = holm([score.p for score in scores])
        scores = [replace(score, p_holm=p) for score, p in zip(scores, adjusted, strict=True)]
        places = {one: place for place, one in enumerate(self.fills)}
        scores.sort(key=lambda score: (places[score.fill], -np.nan_to_num(score.area, nan=-np.inf)))
        return [score for score in scores if fill in (None, score.fill)]

    def table_rows(self) -> list[list[Any]]:
        """A row for every cell with the TABLE_COLUMNS, in the order of methods, fractions, fills, networks and seeds."""
        rows = []
        for result in self.results:
            cell = result.cell
            where = [cell.method, cell.control, cell.fill, cell.fraction, cell.network, cell.seed]
            numbers = [_format(result.accuracy), _format(result.total_variation)]
            rows.append([*where, self.target, self.order, self.mode, *numbers, result.reason])
        return rows

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with a row for every cell and the TABLE_COLUMNS. Accuracies that are unknown are NaN.

        Raises:
            CannotRun: if pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise CannotRun("a DataFrame needs pandas, which is not installed: pip install pandas, or read results.csv") from error
        frame = pandas.DataFrame(self.table_rows(), columns=TABLE_COLUMNS)
        for name in ("accuracy", "total_variation"):
            frame[name] = pandas.Series([getattr(result, name) for result in self.results], dtype=float)
        return frame

    def summary_rows(self) -> list[list[Any]]:
        """A row for every fill and method with the SUMMARY_COLUMNS, the best of each fill first, and random last."""
        rows = []
        for fill in self.fills:
            for s in [*self.scores(fill), *([self._score("random", fill)] if "random" in self.methods else [])]:
                values = {**vars(s), "interval_95": s.interval, "interval_over": self.interval_over}
                rows.append([_shorten(values[column]) for column in SUMMARY_COLUMNS])
        return rows

    def write_table(self, path: Path) -> None:
        """Writes `table_rows`."""
        write_csv(path, TABLE_COLUMNS, self.table_rows())

    def write_summary(self, path: Path) -> None:
        """Writes `summary_rows`."""
        write_csv(path, SUMMARY_COLUMNS, self.summary_rows())

    def _known(self, cell: Cell) -> float:
        accuracy = self._accuracies.get(cell)
        return float("nan") if accuracy is None else accuracy

    def _first_fill(self) -> str:
        return self.fills[0] if self.fills else ""

    def _grid(self, method: str, fill: str) -> Values:
        """[num_networks, num_seeds, num_fractions]."""
        return np.array(
            [
                [[self._known(_cell(method, f, seed, network, fill)) for f in self.fractions] for seed in self.seeds]
                for network in self.networks
            ]
        )

    def _repetitions(self, values: Values) -> Values:
        """From [num_networks, num_seeds, ...] to [num_repetitions, ...]."""
        return mean_of_known(values, 1) if len(self.networks) > 1 else values[0]

    def _score(self, method: str, fill: str) -> Score:
        from scipy.integrate import trapezoid  # type: ignore[import-untyped]

        sign = 1 if self.lower_is_better else -1
        differences = sign * (self._grid("random", fill) - self._grid(method, fill))
        width = self.fractions[-1] - self.fractions[0]
        areas = self._repetitions(trapezoid(differences, self.fractions, axis=2) / (width or 1.0))
        areas = areas[~np.isnan(areas)]
        mean, half = mean_and_interval(areas[:, None]) if len(areas) else (np.full(1, np.nan), np.full(1, np.nan))
        own = [r.total_variation for r in self.results if (r.cell.method, r.cell.fill) == (method, fill)]
        variations = [value for value in own if value is not None]
        inside = [i for i, fraction in enumerate(self.fractions) if 0 < fraction < 1]
        masks = self.masks_accuracies(method)[:, inside]
        p = paired_p(areas)
        return Score(
            method,
            fill,
            float(mean[0]),
            float(half[0]),
            p,
            p,
            len(areas),
            float(np.mean(variations)) if variations else float("nan"),
            float(mean_of_known(masks.mean(1), 0)) if inside else float("nan"),
            float(mean_of_known(masks[:, -1], 0)) if inside else float("nan"),
        )


def mean_of_known(values: Values, axis: int) -> Values:
    """The mean along an axis without NaNs. NaN if there is nothing else."""
    count = (~np.isnan(values)).sum(axis)
    return np.where(count > 0, np.nansum(values, axis) / np.maximum(count, 1), np.nan)


def mean_and_interval(values: Values) -> tuple[Values, Values]:
    """The mean over repetitions [R, F], and half of its 95 % confidence interval by Student's t, [F] each, without NaNs.

    The interval of a single repetition is NaN.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    count = (~np.isnan(values)).sum(0)
    safe = np.maximum(count, 2)
    mean = mean_of_known(values, 0)
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


def _cell(method: str, fraction: float, seed: int, network: int, fill: str) -> Cell:
    return Cell(ALL, fraction, seed, network) if fraction in (0, 1) else Cell(method, fraction, seed, network, fill)


def paired_p(areas: Values) -> float:
    """The two-sided p-value of a paired t-test that differences [R] have mean 0. NaN for one, or if they do not vary."""
    from scipy.stats import ttest_1samp  # type: ignore[import-untyped]

    if len(areas) < 2 or np.allclose(areas, areas[0], rtol=1e-9, atol=1e-12):  # no variance to compare the mean with
        return float("nan")
    return float(ttest_1samp(areas, 0).pvalue)


def _shorten(value: Any) -> Any:
    """A number with six digits. NaN becomes empty."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
