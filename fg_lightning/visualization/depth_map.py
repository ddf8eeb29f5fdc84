"""The depth map: how much the input and the biases of each layer add to the output, over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from fg_lightning.visualization.film_strips import spread_indices
from fg_lightning.visualization.saliency_overlay import SIGNED_COLORMAP

MAX_ROWS, FEW_ROWS = 40, 6
"""More layers than MAX_ROWS are grouped by their modules. If that leaves fewer rows than FEW_ROWS, neighbours are grouped."""

MAX_NUMBERS = 13
"""Cells have numbers if there are at most so many columns."""

MAX_COLUMN_NAMES = 16

LEAST_SHARE, LEAST_LEVEL = 0.0005, 0.1
"""A cell has no number if its share is below LEAST_SHARE, or below LEAST_LEVEL times the share of the strongest colour."""

MAX_LETTERS = 38
"""Largest number of characters in a row's name. Longer names are shortened in the middle."""

Shares = npt.NDArray[np.floating[Any]]


def depth_map(shares: Shares, layers: Sequence[str], snapshots: Sequence[str], *, title: str = "") -> Figure:
    """Draws the share of the output that each layer's biases add: a row for each layer, a column for each snapshot.

    Bars above show the input, on their own scale. More than 40 layers are added up by the modules that they belong to, so that
    every row has a name.

    Args:
        shares: [layers, snapshots], shares of the output. They may be negative. Over the layers they add up to 1, except for the
            completeness error. NaN is hatched.
        layers: the names of the layers, in forward order. If the input is there, it comes first, as "input".
        snapshots: the names of the columns.
        title: title at the top. Default: "", none.

    Raises:
        ValueError: if there is nothing to show, or not one name for every row and column.
    """
    if not shares.size or shares.shape != (len(layers), len(snapshots)):
        raise ValueError(
            f"shares must have a row for each of {len(layers)} layers and a column for each of {len(snapshots)} snapshots"
        )
    has_input = layers[0] == "input"
    biases = shares[1:] if has_input else shares
    groups = group_layers(layers[1:] if has_input else layers)
    rows = np.array([_add(biases[members]) for members in groups.values()]).reshape(len(groups), len(snapshots))
    heights = [1.0] * has_input + [max(0.19 * len(rows), 0.9)]
    size = 5.6 + 0.46 * min(len(snapshots), 18), 1.6 + sum(heights)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels: list[Any] = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0].tolist()
    figure.suptitle(_heading(title, groups, biases), fontsize=9)
    if has_input:
        _draw_input(panels[0], shares[0])
    _draw_biases(figure, panels[-1], rows, [_shorten(name) for name in groups])
    columns = spread_indices(len(snapshots), MAX_COLUMN_NAMES)
    panels[-1].set_xticks(columns, [snapshots[i] for i in columns], fontsize=8, rotation=90 if len(snapshots) > 6 else 0)
    return figure


def group_layers(layers: Sequence[str], max_rows: int = MAX_ROWS) -> dict[str, list[int]]:
    """The rows of a depth map: name of a row -> indices of the layers that it adds up.

    If there are few layers, each has its own row. Many layers are grouped by the longest beginnings of their names, cut at a dot,
    that give at most `max_rows` rows. If all layers are in a few modules, such as the entries of one list, neighbours in a module
    form a row.
    """
    depth = max((name.count(".") + 1 for name in layers), default=1)
    groups = _by_beginning(layers, depth)
    longer = groups
    while len(groups) > max_rows and depth > 1:
        depth -= 1
        longer, groups = groups, _by_beginning(layers, depth)
    if len(groups) > max_rows or (len(groups) < FEW_ROWS and len(longer) > max_rows):
        groups = _join_neighbours(longer, max_rows)
    return groups


def _by_beginning(layers: Sequence[str], depth: int) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(layers):
        groups.setdefault(".".join(name.split(".")[:depth]), []).append(i)
    return groups


def _join_neighbours(groups: dict[str, list[int]], max_rows: int) -> dict[str, list[int]]:
    """Joins neighbours of one module: as few as possible for `max_rows` rows. There is at least one row for each module."""
    for num_joined in range(2, len(groups) + 1):
        runs: list[list[str]] = []
        for name in groups:
            is_sibling = bool(runs) and runs[-1][0].rpartition(".")[0] == name.rpartition(".")[0]
            if is_sibling and len(runs[-1]) < num_joined:
                runs[-1].append(name)
            else:
                runs.append([name])
        if len(runs) <= max_rows:
            break
    return {_name_run(names): [i for name in names for i in groups[name]] for names in runs}


def _name_run(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1].rpartition('.')[2]}"


def _add(shares: Shares) -> Shares:
    """The sum over layers of [layers, snapshots]. NaN does not count; if all are NaN, the sum is NaN."""
    total: Shares = np.where(np.isnan(shares).all(0), np.nan, np.nansum(shares, 0))
    return total


def _heading(title: str, groups: dict[str, list[int]], shares: Shares) -> str:
    lines = [title, "shares of the output; the input and the biases of a column add up to 100 %"]
    if len(groups) < len(shares):
        lines.append(f"{len(shares)} layers, added up in {len(groups)} rows")
    if np.isnan(shares).all(0).any():
        lines.append("hatched: undefined, such as a share of an output that is 0")
    return "\n".join(line for line in lines if line)


def _draw_input(axes: Any, shares: Shares) -> None:
    """Draws bars with their own scale, because the input may be much larger than every layer."""
    values, colours = np.nan_to_num(shares), matplotlib.colormaps[SIGNED_COLORMAP]
    axes.bar(range(len(values)), values, 0.8, color=[colours(0.85 if value > 0 else 0.15) for value in values])
    axes.axhline(0, color="black", linewidth=0.6)
    axes.margins(y=0.25)
    if len(values) <= MAX_NUMBERS:
        for i, value in enumerate(values):
            if np.isnan(shares[i]):
                continue
            axes.annotate(_percent(value), (i, value), (0, 2 if value >= 0 else -2), textcoords="offset points", fontsize=7,
                          ha="center", va="bottom" if value >= 0 else "top")  # fmt: skip
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
    axes.set_ylabel("input", fontsize=8, rotation=0, ha="right", va="center")
    axes.tick_params(labelsize=7, length=2)
    axes.locator_params(axis="y", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_biases(figure: Figure, axes: Any, shares: Shares, names: Sequence[str]) -> None:
    if not len(shares):
        axes.set_axis_off()
        return
    magnitudes = np.abs(shares[np.isfinite(shares)])
    limit = max(float(np.percentile(magnitudes, 95)) if magnitudes.size else 0.0, 1e-3)  # else one cell could take all contrast
    picture = axes.imshow(shares, cmap=SIGNED_COLORMAP, norm=TwoSlopeNorm(0, -limit, limit), aspect="auto", interpolation="nearest")
    axes.patch.set(hatch="///", facecolor="white", edgecolor="lightgrey")  # seen where shares are NaN
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.tick_params(length=2)
    if shares.shape[1] <= MAX_NUMBERS:
        for i, j in zip(*np.nonzero(np.abs(np.nan_to_num(shares)) >= max(LEAST_SHARE, LEAST_LEVEL * limit)), strict=True):
            colour = "white" if abs(shares[i, j]) > 0.7 * limit else "black"
            axes.text(j, i, _percent(shares[i, j]), ha="center", va="center", fontsize=6.5, color=colour)
    extend = "both" if magnitudes.size and magnitudes.max() > limit else "neither"
    bar = figure.colorbar(picture, ax=axes, extend=extend, format=FuncFormatter(lambda share, _: f"{100 * share:.3g} %"), aspect=30)
    bar.set_label("share of the output\nthat the biases add", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if abs(share) < 0.0995 else f"{100 * share:.0f}"


def _shorten(name: str) -> str:
    half = MAX_LETTERS // 2
    return name if len(name) <= MAX_LETTERS else f"{name[:half]}…{name[1 - half :]}"
