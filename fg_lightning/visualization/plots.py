"""Plots curves over the fraction of removed pixels, and writes figures to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fg_lightning.atomic_files import replace_file

MARKERS = "osD^v<>PX*"
"""The markers of the lines. Lines differ in marker and colour."""

LINE_COLOURS: tuple[tuple[float, ...], ...] = tuple(
    matplotlib.colormaps["tab20"](i) for i in (0, 2, 4, 6, 8, 10, 12, 16, 18, 1, 3, 5, 7, 9, 11, 13, 17, 19)
)
"""Strong colours, then the light ones, without greys."""


def curves(
    fractions: Sequence[float],
    values: Mapping[str, npt.ArrayLike],
    *,
    ylabel: str,
    title: str = "",
    controls: Sequence[str] = (),
    missing: Sequence[str] = (),
    log_scale: bool = False,
) -> Figure:
    """Draws how a quantity changes as pixels are removed.

    Args:
        fractions: [F], the shares of pixels removed, 0 to 1.
        values: name of each method -> [F], or [R, F] for R repetitions (images, seeds). The mean of repetitions is drawn, with a
            band of twice its standard error on either side.
        ylabel: name of the quantity, with its unit.
        title: title at the top. Default: "", none.
        controls: the methods that the others should beat. They are grey and dashed. Default: none.
        missing: entries of the legend without a line, such as "gradcam: does not apply". Default: none.
        log_scale: whether the axis of the quantity is logarithmic. Default: False.

    Raises:
        ValueError: if there is nothing to draw, or values do not fit the fractions.
    """
    if not values:
        raise ValueError("there are no curves to draw, because values is empty; give the values of at least one method")
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    colours = cycle(LINE_COLOURS)
    for i, (name, given) in enumerate(values.items()):
        repetitions = np.atleast_2d(np.asarray(given, dtype=float))
        if repetitions.ndim != 2 or repetitions.shape[1] != len(fractions):
            raise ValueError(f"the values of {name!r} must be [{len(fractions)}] or [R, {len(fractions)}], not {np.shape(given)}")
        is_control = name in controls
        colour = "grey" if is_control else next(colours)
        mean, error = _mean_and_error(repetitions)
        line = f"{MARKERS[i % len(MARKERS)]}{'--' if is_control else '-'}"
        axes.plot(fractions, mean, line, color=colour, label=name, linewidth=1.4, markersize=4)
        axes.fill_between(fractions, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.15, linewidth=0)
    for name in missing:
        axes.plot([], [], " ", label=name)
    if log_scale:
        axes.set_yscale("log")
    axes.set(xlabel="fraction of pixels removed", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


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
