"""Curves over the fraction of removed pixels, a line for every method.

Where in the network the answer is made: bias terms by depth, over time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from fg_lightning.visualization.film_strip import evenly_spaced
from fg_lightning.visualization.overlay import SIGNED_COLORMAP

MARKERS = "osD^v<>PX*"
"""Beside the colours, so that lines can be told apart without them."""


def curves(
    fractions: Sequence[float],
    values: Mapping[str, npt.ArrayLike],
    *,
    ylabel: str,
    title: str = "",
    controls: Sequence[str] = (),
    log_scale: bool = False,
) -> Figure:
    """Draws how a quantity changes as pixels are removed.

    Args:
        fractions: [F], the shares of pixels removed.
        values: for each method [F], or [R, F] for R repetitions (images, seeds): their mean, in a band of its standard error twice
            to either side.
        ylabel: what the quantity is, with its unit.
        controls: the methods that are there to be beaten, drawn in grey.
        log_scale: of the quantity.

    Raises:
        ValueError: if there is nothing to draw or values do not go with the fractions.
    """
    if not values:
        raise ValueError("there are no curves to draw: values is empty")
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    # Strong colours, then their light ones, without the greys.
    colours = cycle(matplotlib.colormaps["tab20"]([0, 2, 4, 6, 8, 10, 12, 16, 18, 1, 3, 5, 7, 9, 11, 13, 17, 19]))
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
    if log_scale:
        axes.set_yscale("log")
    axes.set(xlabel="fraction of pixels removed", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _mean_and_error(repetitions: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Over the repetitions [R, F]: mean and its standard error, [F] each; the error of a single one is 0."""
    count = len(repetitions)
    error = repetitions.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(repetitions.shape[1])
    return repetitions.mean(0), error


MOST_NAMES = 40
"""Of more rows than this only so many are named."""


def depth_map(shares: npt.NDArray[np.floating], layers: Sequence[str], moments: Sequence[str]) -> Figure:
    """Draws what share of the output each layer's biases explain, a row per layer from the input down, a column per moment.

    Args:
        shares: [layers, moments]; they add up to 1 over the layers but for the completeness error, and may be negative. NaN is
            left white.
        layers: their names, in forward order.
        moments: what the columns are called.

    Raises:
        ValueError: if there is nothing to show, or not a name for every row and column.
    """
    if not shares.size or shares.shape != (len(layers), len(moments)):
        raise ValueError(f"shares must have a row for each of {len(layers)} layers and a column for each of {len(moments)} moments")
    rows, columns = evenly_spaced(len(layers), MOST_NAMES), evenly_spaced(len(moments), 16)
    figure = Figure(figsize=(5 + 0.35 * min(len(moments), 24), 1.8 + 0.17 * len(rows)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    magnitudes = np.abs(shares[np.isfinite(shares)])
    # The input may dwarf every layer: colours are for the rest, and what they cannot show is written down.
    limit = max(float(np.percentile(magnitudes, 90)) if magnitudes.size else 0.0, 1e-3)
    picture = axes.imshow(shares, cmap=SIGNED_COLORMAP, norm=TwoSlopeNorm(0, -limit, limit), aspect="auto", interpolation="nearest")
    axes.set_yticks(rows, [layers[i] for i in rows], fontsize=7)
    axes.set_xticks(columns, [moments[i] for i in columns], fontsize=7, rotation=90 if len(columns) > 6 else 0)
    axes.tick_params(length=2)
    if len(moments) <= 24:
        for i, j in zip(*np.nonzero(np.abs(np.nan_to_num(shares)) > limit), strict=True):
            axes.text(j, i, f"{shares[i, j]:.2g}", ha="center", va="center", fontsize=6, color="white")
    figure.colorbar(picture, ax=axes, extend="both", label="share of the output").ax.tick_params(labelsize=7)
    return figure
