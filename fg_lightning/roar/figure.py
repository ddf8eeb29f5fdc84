"""Accuracy over the fraction of pixels, a line for every method, with its confidence band."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fg_lightning.attribution import CONTROLS
from fg_lightning.roar.results import Results, mean_and_interval
from fg_lightning.visualization.curves import MARKERS

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
