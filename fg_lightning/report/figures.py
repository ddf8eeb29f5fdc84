"""The figures of a page, by plotly. The page sets the colours of text and grid itself."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go  # type: ignore[import-untyped]

from fg_lightning.attribution import CONTROLS
from fg_lightning.roar.results import X_LABELS, ROARResults, mean_and_interval

Numbers = Sequence[float | None]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
"""Okabe and Ito's, which the colour-blind tell apart, on light and dark ground."""

SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star")


@dataclass(frozen=True, eq=False)
class Figure:
    """
    Attributes:
        name: of the element on the page.
        title: above it.
        summary: what it shows, for screen readers.
        content: data and layout, as plotly.js takes them.
        height: in CSS pixels.
        is_wide: whether it takes the whole width.
    """

    name: str
    title: str
    summary: str
    content: dict[str, Any]
    height: int = 280
    is_wide: bool = False


@dataclass(frozen=True, eq=False)
class Page:
    """
    Attributes:
        template: a file in `templates/`.
        figures: of the page.
        values: everything else that the template needs.
    """

    template: str
    figures: Sequence[Figure]
    values: dict[str, Any]


def line_figure(
    name: str,
    title: str,
    moments: Sequence[float],
    titles: Sequence[str],
    values: Mapping[str, Numbers],
    *,
    xlabel: str,
    log_scale: bool = False,
) -> Figure:
    """A line for every quantity, over the snapshots.

    Args:
        name: see `Figure`.
        title: see `Figure`.
        moments: places of the snapshots on the axis.
        titles: of the snapshots.
        values: of every quantity a number for each snapshot, None if there is none.
        xlabel: what the axis counts.
        log_scale: of the quantities; values that are not positive are left out.
    """
    figure = go.Figure(layout=plot_layout(xlabel))
    has_markers = len(moments) <= 40
    for (quantity, given), colour, symbol in zip(values.items(), cycle(COLOURS), cycle(SYMBOLS)):
        shown = [None if value is None or (log_scale and value <= 0) else value for value in given]
        figure.add_scatter(
            x=list(moments),
            y=shown,
            name=quantity,
            mode="lines+markers" if has_markers else "lines",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 6},
            text=list(titles),
            hovertemplate="%{text}: %{y:.3g}",
        )
    figure.update_layout(showlegend=len(values) > 1)
    if log_scale:
        figure.update_yaxes(type="log", exponentformat="power", dtick=_tick_step(values))
    return Figure(name, title, "; ".join(describe_range(*item) for item in values.items()), to_json(figure))


def layer_figure(layers: Sequence[str], titles: Sequence[str], shares: npt.NDArray[np.float64]) -> Figure:
    """What share of the output each layer explains, [layers, snapshots], the input at the top, as `depth_map` draws it."""
    magnitudes = np.abs(shares[np.isfinite(shares)])
    limit = max(float(np.percentile(magnitudes, 90)) if magnitudes.size else 0.0, 1e-3)
    figure = go.Figure(layout=plot_layout("snapshot"))
    figure.add_heatmap(
        z=[[None if np.isnan(share) else float(f"{share:.4g}") for share in row] for row in shares],
        x=list(range(len(titles))),
        y=list(range(len(layers))),
        customdata=[list(titles) for _ in layers],
        text=[[html.escape(layer)] * len(titles) for layer in layers],
        hovertemplate="%{text}, %{customdata}: %{z:.3g}<extra></extra>",
        colorscale="RdBu_r",
        zmid=0,
        zmin=-limit,
        zmax=limit,
        colorbar={"thickness": 10, "tickfont": {"size": 11}},
    )
    height = min(900, 110 + 17 * len(layers))
    step = -(-len(layers) // max(1, height // 17 - 6))
    ticks = [*range(0, len(layers) - step, step), len(layers) - 1]  # the last is the head
    figure.update_yaxes(
        autorange="reversed",
        tickvals=ticks,
        ticktext=[_shorten(layers[i]) for i in ticks],
        tickfont={"size": 11},
        showgrid=False,
    )
    moments = sorted({0, len(titles) - 1, *range(0, len(titles), -(-len(titles) // 6))})
    figure.update_xaxes(tickvals=moments, ticktext=[titles[i] for i in moments], title=None, showgrid=False)
    largest = [layers[i] for i in np.argsort(-np.abs(np.nan_to_num(shares[:, -1])), kind="stable")[:3]]
    summary = f"largest at {titles[-1]}: {', '.join(largest)}" if titles else ""
    title = "Share of the output by layer (below 0 or above 1: terms cancel)"
    return Figure("layers", title, summary, to_json(figure), height, is_wide=True)


def plot_layout(xlabel: str) -> dict[str, Any]:
    """A layout without colours: the page has its own."""
    axis = {"automargin": True, "zeroline": False, "title": {"standoff": 8}}
    return {
        "template": None,
        "margin": {"l": 48, "r": 8, "t": 8, "b": 40},
        "xaxis": {**axis, "title": {"text": xlabel, "standoff": 8}},
        "yaxis": axis,
        "hovermode": "x unified",
        "legend": {"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def to_json(figure: go.Figure) -> dict[str, Any]:
    """Data and layout as JSON; NaN becomes null."""
    content: dict[str, Any] = json.loads(figure.to_json())
    return content


def describe_range(name: str, values: Numbers) -> str:
    """First, last, smallest and largest value of a quantity, in words."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    if not known:
        return f"{name}: no values"
    return f"{name} from {known[0]:.3g} to {known[-1]:.3g}, between {min(known):.3g} and {max(known):.3g}"


def _tick_step(values: Mapping[str, Numbers]) -> int | str | None:
    """Every power of ten, with 2 and 5 between them if there are few, in plotly's words."""
    known = [value for given in values.values() for value in given if value is not None and value > 0]
    decades = float(np.log10(max(known) / min(known))) if known else 0.0
    return "D2" if decades <= 2 else 1 if decades <= 6 else None


def _shorten(name: str, max_length: int = 26) -> str:
    """The end of a name, which tells layers apart, without plotly's markup."""
    return html.escape(name if len(name) <= max_length else f"…{name[1 - max_length :]}")


def accuracy_figure(results: ROARResults) -> Figure:
    """Mean accuracy over the seeds with its 95 % band, by method. Controls are dashed and grey, blurred versions dotted."""
    figure = go.Figure(layout=plot_layout(X_LABELS.get(results.mode, "fraction of pixels")))
    scores = [score.method for score in results.scores()]
    in_order = [*scores, *(method for method in results.methods if method not in scores)]
    colours, greys, symbols = cycle(COLOURS), cycle(["#777777", "#aaaaaa"]), cycle(SYMBOLS)
    fractions = results.fractions
    ranges = []
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
            fillcolor=_fade(colour),
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
        ranges.append(describe_range(method, [float(mean[i]) for i in known]))
    figure.update_layout(showlegend=True, legend_y=-0.16)
    figure.update_yaxes(title="test accuracy")
    return Figure("accuracy", "Test accuracy", "; ".join(ranges), to_json(figure), 420, is_wide=True)


def _fade(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"
