"""Accuracy over the fraction of pixels, for the page."""

from __future__ import annotations

import html
from itertools import cycle

import numpy as np
import plotly.graph_objects as go  # type: ignore[import-untyped]

from fg_lightning.attribution import CONTROLS
from fg_lightning.report.figures import COLOURS, SYMBOLS, Figure, course, layout, plain
from fg_lightning.roar.figure import XLABEL
from fg_lightning.roar.results import Results, mean_and_interval


def accuracy_curves(results: Results) -> Figure:
    """Mean accuracy over the seeds with its 95 % band, a line a method: controls dashed in grey, blurred versions dotted."""
    figure = go.Figure(layout=layout(XLABEL.get(results.mode, "fraction of pixels")))
    scores = [score.method for score in results.scores()]
    in_order = [*scores, *(method for method in results.methods if method not in scores)]
    colours, greys, symbols = cycle(COLOURS), cycle(["#777777", "#aaaaaa"]), cycle(SYMBOLS)
    fractions = results.fractions
    said = []
    for method in in_order:
        mean, half = mean_and_interval(results.accuracies(method))
        colour = next(greys if method in CONTROLS else colours)
        known = [i for i in range(len(fractions)) if not np.isnan(mean[i])]
        half = np.nan_to_num(half)
        label = html.escape(method)
        edge = [float(v) for v in [*(np.clip(mean + half, 0, 1))[known], *np.clip(mean - half, 0, 1)[known][::-1]]]
        along = [fractions[i] for i in known]
        figure.add_scatter(
            x=[*along, *along[::-1]],
            y=edge,
            fill="toself",
            fillcolor=_translucent(colour),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=label,
        )
        figure.add_scatter(
            x=along,
            y=[float(mean[i]) for i in known],
            name=label,
            legendgroup=label,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": "dash" if method in CONTROLS else "dot" if "blurred" in method else "solid"},
            marker={"symbol": next(symbols), "size": 7},
            customdata=[float(half[i]) for i in known],
            hovertemplate="%{y:.3f} ± %{customdata:.3f}",
        )
        said.append(course(method, [float(mean[i]) for i in known]))
    figure.update_layout(showlegend=True, legend_y=-0.16)
    figure.update_yaxes(title="test accuracy")
    return Figure("accuracy", "Test accuracy", "; ".join(said), plain(figure), 420, wide=True)


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"
