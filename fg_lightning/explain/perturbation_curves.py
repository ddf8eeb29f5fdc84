"""Tables and a figure of a network's output as pixels are replaced in the order of each method's maps."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fg_lightning.atomic_files import write_atomically
from fg_lightning.attribution import CONTROLS, METHODS
from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import Network, import_object, is_import_path
from fg_lightning.metrics import PixelPerturbation, pixel_perturbation
from fg_lightning.removal import Fill, Order
from fg_lightning.removal.fills import MeanAndStd, Numbers
from fg_lightning.roar.results import holm
from fg_lightning.visualization.plots import curves, mean_over_fractions, save_figure

DIRECTION = {"lerf": "lower is better", "morf": "higher is better"}

FEW = 30
"""A note calls means over fewer images rough."""

MANY_TIMES = 50
"""The plot's axis of fractions is logarithmic if the largest is at least this many times the smallest."""


@dataclass(frozen=True)
class PerturbationScore:
    """A method's score over the images. Its fields are columns of `perturbation_summary.csv`; NaN becomes an empty cell.

    Attributes:
        method: name of the method.
        num_images: number of images.
        area: area under its curve, divided by the range of the fractions: the mean change.
        standard_error: standard error of the area, over the images.
        interval_95: half of the 95 % confidence interval of the area over the images. It does not cover other networks.
        reference: name of the method that it is compared with. Empty if there is none.
        difference: its area minus the reference's.
        difference_interval_95: half of the 95 % confidence interval of the difference, over the images.
        p: p-value of a paired t-test over the images.
        p_holm: the same, adjusted for the number of methods (Holm 1979).
    """

    method: str
    num_images: int
    area: float
    standard_error: float
    interval_95: float
    reference: str
    difference: float
    difference_interval_95: float
    p: float
    p_holm: float


class PerturbationCurves:
    """Collects the changes of every image for each method, in main memory.

    Args:
        fractions: [F], shares of the pixels that are replaced, 0 to 1, in ascending order.
        order: "lerf", the least relevant pixels first, or "morf", the most relevant first.
        fill: what replaces pixels, see `fg_lightning.removal.find_fill`.
        normalization: (mean, std) of normalized images. Numbers of a fill refer to the images before. Default: not normalized.
        dataset_mean: the training images' mean of each channel, before the normalization. Needed for the fill "dataset_mean".
        reference: name of the method that the others are compared with. Default: "random".

    Raises:
        CannotRun: if one of these is invalid.
    """

    def __init__(
        self,
        fractions: Sequence[float],
        order: Order,
        fill: Fill,
        *,
        normalization: MeanAndStd | None = None,
        dataset_mean: Numbers | None = None,
        reference: str = "random",
    ) -> None:
        self.fractions = list(fractions)
        self.order = order
        self.reference = reference
        self.fill_name = _fill_name(fill)
        self._given: dict[str, Any] = {"fill": fill, "normalization": normalization, "dataset_mean": dataset_mean}
        self._changes: dict[str, list[Tensor]] = {}
        try:
            self._label = PixelPerturbation(self.fractions, order=order, **self._given).label
        except (TypeError, ValueError) as error:
            raise CannotRun(str(error)) from error

    def update(self, method: str, model: nn.Module, images: Tensor, maps: Tensor, target: Tensor | None) -> None:
        """Measures the changes of some images, and adds them.

        Args:
            method: name of the method.
            model: the network.
            images: [N, C, H, W].
            maps: the method's maps of them, [N, 1, H, W].
            target: explained classes, [N]. None if the network gives one number for each image.

        Raises:
            CannotRun: if no change can be measured, for example if the output is 0.
        """
        try:
            changes = pixel_perturbation(model, images, maps, target, fractions=self.fractions, order=self.order, **self._given)
        except ValueError as error:
            here = " (on the command line: --perturb morf)" if "change='drop'" in str(error) else ""
            raise CannotRun(f"the perturbation by {method} cannot be measured: {error}{here}") from error
        self._changes.setdefault(method, []).append(changes.cpu())

    def changes(self, method: str) -> npt.NDArray[np.float64]:
        """The change of every image for every fraction, [N, F]."""
        return torch.cat(self._changes[method]).double().numpy()

    def scores(self, methods: Sequence[str]) -> list[PerturbationScore]:
        """The methods' scores, the best first."""
        areas = {method: self._areas(method) for method in methods}
        scores = [self._score(method, areas) for method in methods]
        adjusted = holm([score.p for score in scores])
        scores = [replace(score, p_holm=p) for score, p in zip(scores, adjusted, strict=True)]
        return sorted(scores, key=lambda score: score.area, reverse=self.order == "morf")

    def write(
        self,
        folder: Path,
        pictures: Sequence[object],
        methods: Sequence[str],
        missing: Mapping[str, str] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> dict[str, Path]:
        """Writes the curves of these methods as tables and a figure, and their scores.

        Args:
            folder: folder of the files.
            pictures: [N], names of the images.
            methods: names of the methods to write.
            missing: for each method without a curve, the reason.
            notes: for a method, the limits of its curve. They appear below the figure and in the table of scores.

        Returns:
            The paths of the files, by what they hold.
        """
        table, of_images, summary = (folder / f"perturbation{part}.csv" for part in ("", "_images", "_summary"))
        values = {method: self.changes(method) for method in methods}
        settings = [self.order, self.fill_name]
        rows: list[list[object]] = []
        rows_of_images: list[list[object]] = []
        for method, changes in values.items():
            points = zip(self.fractions, changes.mean(0), _standard_errors(changes), strict=True)
            rows += [[method, *settings, *map(_cell, point), len(changes)] for point in points]
            for picture, own in zip(pictures, changes, strict=True):
                pairs = zip(self.fractions, own, strict=True)
                rows_of_images += [[picture, method, *settings, *map(_cell, pair)] for pair in pairs]
        _write_csv(table, ["method", "order", "fill", "fraction", "mean", "standard_error", "num_images"], rows)
        _write_csv(of_images, ["picture", "method", "order", "fill", "fraction", "change"], rows_of_images)
        self._write_scores(summary, methods, missing or {}, notes or {})
        written = {"perturbation": table, "perturbation images": of_images, "perturbation scores": summary}
        for plot in save_figure(self._draw(values, missing or {}, list((notes or {}).values())), folder / "perturbation"):
            written[f"perturbation {plot.suffix[1:]}"] = plot
        return written

    def describe_mean(self, num_images: int) -> str:
        """A sentence on the means and the bars of the curves."""
        if num_images == 1:
            return "One image: no mean, and no standard error."
        rough = f" Fewer than {FEW} images: means and bars are rough." if num_images < FEW else ""
        return f"Mean of {num_images} images; bar: twice the standard error to either side.{rough}"

    def _write_scores(self, path: Path, methods: Sequence[str], missing: Mapping[str, str], notes: Mapping[str, str]) -> None:
        columns = [field.name for field in fields(PerturbationScore)]
        rows: list[list[object]] = []
        for score in self.scores(methods):
            method, *numbers = (_cell(value) for value in asdict(score).values())
            rows.append([method, self.order, self.fill_name, *numbers, notes.get(score.method, "")])
        rows += [[method, self.order, self.fill_name, *[""] * (len(columns) - 1), why] for method, why in missing.items()]
        _write_csv(path, [columns[0], "order", "fill", *columns[1:], "note"], rows)

    def _draw(self, values: Mapping[str, npt.NDArray[np.float64]], missing: Mapping[str, str], notes: Sequence[str]) -> Figure:
        label = f"change of the output, {self._label}\n{DIRECTION[self.order]}"
        absent = [f"{method}: {why.partition(':')[0]}" for method, why in missing.items()]
        has_log_fractions = 0 < MANY_TIMES * self.fractions[0] <= self.fractions[-1]
        figure = curves(
            self.fractions, values, ylabel=label, controls=CONTROLS, missing=absent, has_log_fractions=has_log_fractions
        )
        num_images = len(next(iter(values.values())))
        controls = " Grey: does not use the network." if values.keys() & set(CONTROLS) else ""
        first = f"{self.describe_mean(num_images)} Order {self.order}, fill {self.fill_name}.{controls}"
        wrapped = [part for line in (first, *notes) for part in wrap(line, 130)]
        figure.set_figheight(figure.get_figheight() + 0.15 * len(wrapped))
        figure.supxlabel("\n".join(wrapped), x=0.01, ha="left", fontsize=7)
        return figure

    def _areas(self, method: str) -> npt.NDArray[np.float64]:
        """The area under the curve of every image over the range of the fractions, [N]."""
        return mean_over_fractions(self.fractions, self.changes(method))

    def _score(self, method: str, areas: dict[str, npt.NDArray[np.float64]]) -> PerturbationScore:
        own = areas[method]
        error, unknown = float(_standard_errors(own)), math.nan
        score = PerturbationScore(
            method, len(own), float(own.mean()), error, _half_interval(own), "", unknown, unknown, unknown, unknown
        )
        if self.reference not in areas or method == self.reference:
            return score
        differences = own - areas[self.reference]
        return replace(
            score,
            reference=self.reference,
            difference=float(differences.mean()),
            difference_interval_95=_half_interval(differences),
            p=_paired_p(differences),
        )


def measure_perturbation(
    network: Network, fractions: Sequence[float], order: Order, fill: Fill, reference: str = "random"
) -> PerturbationCurves:
    """Perturbation curves for a network.

    Args:
        network: the network.
        fractions: shares of the pixels, see `PerturbationCurves`.
        order: see `PerturbationCurves`.
        fill: name of a fill, numbers in the units of pictures, 0..1, or import path of a function.
        reference: see `PerturbationCurves`.

    Raises:
        CannotRun: if a setting is invalid, or the fill needs the normalization of pictures and this is unknown.
    """
    if reference not in METHODS:
        raise CannotRun(f"--reference must be one of {', '.join(METHODS)}, not {reference!r}")
    if isinstance(fill, str) and is_import_path(fill):
        fill = import_object(fill)
    given, normalization = network.normalization, None
    if given is not None:
        normalization = (list(given.mean), list(given.std))
    elif fill == "black" or not (isinstance(fill, str) or callable(fill)):
        raise CannotRun(
            f"the fill {fill} is in the pictures' own units, 0..1, but the normalization of the transform is unknown: give --mean "
            "and --std, a number for each channel ([0] and [1] if it does not normalize)"
        )
    return PerturbationCurves(
        fractions, order, fill, normalization=normalization, dataset_mean=network.dataset_mean, reference=reference
    )


def _fill_name(fill: Fill) -> str:
    """The name of a fill in a table: its name, its numbers, or the import path of its function."""
    if isinstance(fill, str):
        return fill
    if callable(fill):
        return f"{getattr(fill, '__module__', '')}.{getattr(fill, '__qualname__', type(fill).__name__)}"
    numbers = np.asarray(fill, dtype=float).reshape(-1)
    return ",".join(f"{number:g}" for number in numbers)


def _standard_errors(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The standard error of the mean over the first dimension. NaN for a single value."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(0, ddof=1) / math.sqrt(len(values))


def _half_interval(values: npt.NDArray[np.float64]) -> float:
    from scipy.stats import t  # type: ignore[import-untyped]

    return float(t.ppf(0.975, len(values) - 1) * _standard_errors(values)) if len(values) > 1 else math.nan


def _paired_p(differences: npt.NDArray[np.float64]) -> float:
    from scipy.stats import ttest_1samp

    if len(differences) < 2 or np.allclose(differences, differences[0], rtol=1e-9, atol=1e-12):  # no variance
        return math.nan
    return float(ttest_1samp(differences, 0).pvalue)


def _cell(value: object) -> object:
    """A number with six digits. NaN becomes an empty cell."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
