"""The curves of an experiment, as a figure for a paper."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fg_lightning.attribution import CONTROLS
from fg_lightning.roar.results import DIRECTIONS, X_LABELS, ROARResults, mean_and_interval, mean_of_known
from fg_lightning.visualization.plots import LINE_COLOURS, MARKERS, shift_beside

MAX_COLUMNS = 3
"""Panels side by side."""

Style = dict[str, Any]


def accuracy_curves(results: ROARResults) -> Figure:
    """A figure of matplotlib: mean test accuracy over the fraction, with bars of its 95 % interval over the repetitions.

    There is a panel for each fill. Each method has a colour and a marker, the same in all panels; controls are grey, blurred
    versions dotted. The dashed line of the same colour is the accuracy of networks that see only the method's masks.
    A grey dotted line is chance, see `ROARResults.chance`.

    Args:
        results: results of the experiment.
    """
    fills = results.fills or [""]
    columns = min(len(fills), MAX_COLUMNS)
    rows = -(-len(fills) // columns)
    figure = Figure(figsize=(2.4 + 3.6 * columns if columns > 1 else 7.2, 3.8 * rows), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).flatten()
    styles = line_styles(results)
    for axes, fill in zip(panels, fills, strict=False):
        _draw_fill(axes, results, fill, styles)
        if len(fills) > 1:
            axes.set_title(f"fill: {fill.replace('_', ' ')}", fontsize=10)
    for axes in panels[len(fills) :]:
        axes.remove()
    figure.supxlabel(X_LABELS[results.mode], fontsize=10)
    figure.supylabel(f"test accuracy ({DIRECTIONS[results.lower_is_better]})", fontsize=10)
    gap = Line2D([], [], color="none", label=" ")
    lines = [Line2D([], [], label=method, **style) for method, style in styles.items()]
    num_controls = sum(method in CONTROLS for method in styles)
    if 0 < num_controls < len(lines):
        lines.insert(len(lines) - num_controls, gap)
    if results.has_controls:
        key = KEY if np.isnan(results.chance) else KEY | {CHANCE: CHANCE_STYLE}
        lines += [gap, *(Line2D([], [], **style, label=words) for words, style in key.items())]
    figure.legend(handles=lines, loc="outside right upper", frameon=False, fontsize=8, handlelength=3)
    return figure


CONTROL_COLOURS = {"random": "black", "edges": "dimgrey", "blurred_random": "darkgrey"}

KEY: dict[str, Style] = {
    "images without the pixels": {"color": "dimgrey", "linewidth": 1, "linestyle": "-"},
    "masks alone": {"color": "dimgrey", "linewidth": 1, "linestyle": "--"},
}
"""The meaning of solid and dashed lines."""

CHANCE = "chance: random's masks alone"
"""The meaning of the horizontal dotted line."""

CHANCE_STYLE: Style = {"color": "dimgrey", "linewidth": 1, "linestyle": ":"}


def line_styles(results: ROARResults) -> dict[str, Style]:
    """How each method is drawn, in the experiment's order, controls last."""
    colours, markers = cycle(LINE_COLOURS), cycle(MARKERS)
    return {
        method: {
            "color": CONTROL_COLOURS[method] if method in CONTROLS else next(colours),
            "linestyle": ":" if method.startswith("blurred") else "-",
            "marker": next(markers),
            "linewidth": 1.4,
            "markersize": 4,
        }
        for method in sorted(results.methods, key=lambda method: method in CONTROLS)
    }


def _draw_fill(axes: Axes, results: ROARResults, fill: str, styles: dict[str, Style]) -> None:
    for place, (method, style) in enumerate(styles.items()):
        mean, half = mean_and_interval(results.accuracies(method, fill))
        axes.plot(results.fractions, mean, label=method, **style)
        low, high = (np.clip(mean + side * half, 0, results.unit) for side in (-1, 1))
        beside = shift_beside(results.fractions, place, len(styles))
        axes.vlines(beside, low, high, style["color"], linewidth=1, zorder=1)
        if results.has_controls:
            masks = mean_of_known(results.masks_accuracies(method), 0)
            dashed = {**style, "linestyle": "--", "linewidth": 0.9, "markersize": 3, "markerfacecolor": "white"}
            axes.plot(results.fractions, masks, label=f"{method}, masks alone", **dashed)
    if not np.isnan(results.chance):
        axes.axhline(results.chance, label=CHANCE, zorder=1, **CHANCE_STYLE)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
