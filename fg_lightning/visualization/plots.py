"""Plots curves over the fraction of removed pixels, and writes figures to files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from fg_lightning.atomic_files import replace_file

MARKERS = "osD^v<>PX*"
"""The markers of the lines. Lines differ in marker and colour."""

BRIGHT_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
"""Colours after Okabe and Ito, which colour-blind readers can distinguish on light and dark backgrounds."""

LINE_COLOURS = (*BRIGHT_COLOURS, "#00395a", "#7a3500", "#00513b", "#8f2f63", "#8a5f00", "#1f6591", "#4b2d73", "#5a3e0c")
"""Those, then darker ones, for lines on white."""

SPREAD = 0.04
"""Share of the axis over which the error bars of all curves at one fraction are spread."""

MOST_BARS = 6
"""Largest number of curves with error bars at every fraction. With more, they hide the curves."""


def curves(
    fractions: Sequence[float],
    values: Mapping[str, npt.ArrayLike],
    *,
    ylabel: str,
    title: str = "",
    controls: Sequence[str] = (),
    missing: Sequence[str] = (),
    log_scale: bool = False,
    has_log_fractions: bool = False,
) -> Figure:
    """Draws how a quantity changes as pixels are removed.

    The right panel is the legend, too: each method's mean over the fractions (area under its curve, divided by the range of the
    fractions), the largest at the top.

    Args:
        fractions: [F], the shares of pixels removed, 0 to 1, in ascending order.
        values: name of each method -> [F], or [R, F] for R repetitions (images, seeds). The mean of repetitions is drawn, with a
            bar of twice its standard error on either side: in the right panel and, for at most six methods, at every fraction.
        ylabel: name of the quantity, with its unit.
        title: title at the top. Default: "", none.
        controls: the methods that the others should beat. They are grey and dashed. Default: none.
        missing: entries of the legend without a line, such as "gradcam: does not apply". Default: none.
        log_scale: whether the axis of the quantity is logarithmic. Default: False.
        has_log_fractions: whether the axis of the fractions is logarithmic. Default: False.

    Raises:
        ValueError: if there is nothing to draw, or values do not fit the fractions.
    """
    if not values:
        raise ValueError("there are no curves to draw, because values is empty; give the values of at least one method")
    repetitions = {name: _read_repetitions(name, of_method, len(fractions)) for name, of_method in values.items()}
    figure = Figure(figsize=(9, max(4.8, 1.6 + 0.21 * (len(values) + len(missing)))), dpi=110, layout="constrained")
    axes, legend = figure.subplots(1, 2, width_ratios=(5, 2))
    styles = _line_styles(list(values), controls)
    for place, (name, of_method) in enumerate(repetitions.items()):
        mean, error = _mean_and_error(of_method)
        axes.plot(fractions, mean, label=name, **styles[name])
        if len(of_method) > 1 and len(values) <= MOST_BARS:
            beside = shift_beside(fractions, place, len(values), has_log_fractions=has_log_fractions)
            axes.vlines(beside, mean - 2 * error, mean + 2 * error, styles[name]["color"], linewidth=1, zorder=1)
    axes.set(xlabel="fraction of pixels removed", ylabel=ylabel, title=title)
    _draw_legend(legend, {name: mean_over_fractions(fractions, r) for name, r in repetitions.items()}, styles, missing)
    if log_scale:
        axes.set_yscale("log")
        legend.set_xscale("log")
    if has_log_fractions:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    for panel in (axes, legend):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def mean_over_fractions(fractions: Sequence[float], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The area under each curve, divided by the range of the fractions: [R, F] -> [R]. With one fraction, its value."""
    if len(fractions) == 1:
        return values[:, 0]
    widths = np.diff(fractions)
    return ((values[:, 1:] + values[:, :-1]) / 2 * widths).sum(1) / widths.sum()


def _read_repetitions(name: str, values: npt.ArrayLike, num_fractions: int) -> npt.NDArray[np.float64]:
    repetitions = np.atleast_2d(np.asarray(values, dtype=float))
    if repetitions.ndim != 2 or repetitions.shape[1] != num_fractions:
        raise ValueError(f"the values of {name!r} must be [{num_fractions}] or [R, {num_fractions}], not {np.shape(values)}")
    return repetitions


def _line_styles(names: Sequence[str], controls: Sequence[str]) -> dict[str, dict[str, Any]]:
    colours, markers = cycle(LINE_COLOURS), cycle(MARKERS)
    return {
        name: {
            "color": "grey" if name in controls else next(colours),
            "linestyle": "--" if name in controls else "-",
            "marker": next(markers),
            "linewidth": 1.4,
            "markersize": 5,
        }
        for name in names
    }


def shift_beside(fractions: Sequence[float], place: int, count: int, *, has_log_fractions: bool = False) -> npt.NDArray[np.float64]:
    """Where the error bars of curve `place` of `count` stand: beside the fractions, as far from each of them on the axis."""
    places = np.asarray(fractions, dtype=float)
    places = np.log(places) if has_log_fractions else places
    spread = min(SPREAD * np.ptp(places), np.diff(places).min() / 2) if len(places) > 1 else SPREAD
    shifted = places + ((place + 0.5) / count - 0.5) * spread
    return np.exp(shifted) if has_log_fractions else shifted


def _draw_legend(
    axes: Axes,
    means: Mapping[str, npt.NDArray[np.float64]],
    styles: Mapping[str, Mapping[str, Any]],
    missing: Sequence[str],
) -> None:
    """A row for each method, the largest mean at the top: its marker, its mean with an error bar, and its name."""
    heights = {name: float(np.nan_to_num(of_method.mean(), nan=-math.inf)) for name, of_method in means.items()}
    rows = [*reversed(missing), *sorted(means, key=heights.__getitem__)]
    for place, name in enumerate(rows):
        if name in means:
            mean, error = _mean_and_error(means[name][:, None])
            bar = 2 * error if len(means[name]) > 1 else None
            axes.errorbar(mean, [place], xerr=bar, capsize=2, **{**styles[name], "linestyle": "none"})
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.yaxis.tick_right()
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(-1, len(rows))
    axes.set_xlabel("mean over the fractions", fontsize=8)
    axes.spines["left"].set_visible(False)


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Writes a figure as PNG, PDF and SVG. The same numbers give the same files. The PDF has TrueType fonts, as journals require.

    Args:
        figure: the figure.
        path: path of the files, without an ending.

    Returns:
        The paths of the files.

    Raises:
        OSError: if a file cannot be written.
    """
    undated = {"png": None, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    paths = []
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "fg-lightning"}):
        for ending, metadata in undated.items():
            paths.append(path.with_name(f"{path.name}.{ending}"))
            with replace_file(paths[-1]) as file:
                figure.savefig(file, format=ending, metadata=metadata)
    return paths


def _mean_and_error(repetitions: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The mean over repetitions [R, F] and its standard error, [F] each. A single repetition has an error of 0."""
    count = len(repetitions)
    error = repetitions.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(repetitions.shape[1])
    return repetitions.mean(0), error
