"""Draws the figures of a page with plotly. The page itself sets the colours of text and grid."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go  # type: ignore[import-untyped]

from fg_lightning.attribution import CONTROLS
from fg_lightning.roar.results import X_LABELS, ROARResults, mean_and_interval, mean_of_known
from fg_lightning.visualization.plots import BRIGHT_COLOURS, shift_beside

Numbers = Sequence[float | None]

SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star", "pentagon", "hourglass", "bowtie")
"""Their number has no divisor in common with the number of colours, so that few lines share both."""

DASHES = ("solid", "dash", "dot", "dashdot")
"""Dashes of the first eight lines, of the next eight, and so on."""


MOST_TICKS = 10
"""Epochs or steps up to this number have a tick each. On a logarithmic axis it is the largest number of powers of ten."""

FEW_POWERS = 4
"""Up to this number of powers of ten there are ticks between them."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure of a page.

    Attributes:
        name: name of its element on the page.
        title: title above it.
        summary: description for screen readers.
        content: data and layout for plotly.js.
        height: height in CSS pixels. Default: 280.
        is_wide: whether it fills the whole width. Default: False.
        meaning: meaning of its numbers, shown above it.
        link: address of the manual's page on these numbers. Empty if there is none.
    """

    name: str
    title: str
    summary: str
    content: dict[str, Any]
    height: int = 280
    is_wide: bool = False
    meaning: str = ""
    link: str = ""


@dataclass(frozen=True, eq=False)
class Page:
    """The content of a page.

    Attributes:
        template: name of a file in `templates/`.
        figures: figures of the page.
        values: all other values that the template needs.
    """

    template: str
    figures: Sequence[Figure]
    values: dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A quantity over the snapshots of a run.

    Attributes:
        name: name of the quantity or of the run.
        moments: positions of the snapshots on the axis.
        values: a number for each snapshot. None if there is none.
        style: index among the colours and symbols.
    """

    name: str
    moments: Sequence[float]
    values: Numbers
    style: int


def line_figure(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    xlabel: str,
    log_scale: bool = False,
    reference: float | None = None,
    meaning: str = "",
    link: str = "",
) -> Figure:
    """Lines over the snapshots.

    Args:
        name: see `Figure`.
        title: see `Figure`.
        lines: the lines.
        xlabel: label of the horizontal axis.
        log_scale: whether the vertical axis is logarithmic. Values that are not positive are then left out. Default: False.
        reference: value of a dotted line. Default: no line.
        meaning: see `Figure`.
        link: see `Figure`.
    """
    figure = go.Figure(layout=plot_layout(xlabel))
    for line in lines:
        shown = [None if value is None or (log_scale and value <= 0) else value for value in line.values]
        figure.add_scatter(
            x=list(line.moments),
            y=shown,
            name=html.escape(line.name),
            mode="lines+markers" if len(line.moments) <= 40 else "lines",
            line={
                "color": BRIGHT_COLOURS[line.style % len(BRIGHT_COLOURS)],
                "width": 2,
                "dash": DASHES[line.style // len(BRIGHT_COLOURS) % len(DASHES)],
            },
            marker={"symbol": SYMBOLS[line.style % len(SYMBOLS)], "size": 6},
            hovertemplate=f"{xlabel} %{{x}}: %{{y:.3g}}",
        )
    moments = [moment for line in lines for moment in line.moments]
    if moments and max(moments) - min(moments) <= MOST_TICKS:
        figure.update_xaxes(dtick=1)  # there is no half of an epoch or step
    if reference is not None:
        figure.add_hline(y=reference, line={"dash": "dot", "width": 1.5, "color": "#888888"})
    figure.update_layout(showlegend=len(lines) > 1)
    if log_scale:
        ticks = log_ticks([value for line in lines for value in line.values])
        figure.update_yaxes(type="log", tickvals=list(ticks), ticktext=list(ticks.values()))
    summary = "; ".join(describe_range(line.name, line.values) for line in lines)
    return Figure(name, title, summary, to_json(figure), meaning=meaning, link=link)


def layer_figure(layers: Sequence[str], titles: Sequence[str], shares: npt.NDArray[np.float64]) -> Figure:
    """The share of the output that each layer explains, [layers, snapshots], with the input at the top, as in `depth_map`."""
    magnitudes = np.abs(shares[np.isfinite(shares)])
    limit = max(float(np.percentile(magnitudes, 90)) if magnitudes.size else 0.0, 1e-3)
    figure = go.Figure(layout=plot_layout("snapshot"))
    figure.add_heatmap(
        z=[[None if np.isnan(share) else float(f"{share:.4g}") for share in row] for row in shares],
        x=list(range(len(titles))),
        y=list(range(len(layers))),
        hovertemplate="%{text}: %{z:.3g}<extra></extra>",
        colorscale="RdBu_r",
        zmid=0,
        zmin=-limit,
        zmax=limit,
        colorbar=colour_bar("share of the output"),
    )
    rows = [html.escape(layer) for layer in layers]
    figure.update_layout(meta={"rows": rows, "columns": list(titles)})  # the page makes the text of each cell from it
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
    title = "Share of the output by layer"
    meaning = "What the input and the biases of each module contribute to the explained output. Below 0 or above 1: terms cancel."
    if magnitudes.size and magnitudes.max() > limit:
        meaning += " The darkest colours stand for larger shares, too."
    return Figure("layers", title, summary, to_json(figure), height, is_wide=True, meaning=meaning)


def colour_bar(label: str) -> dict[str, Any]:
    """The colour bar of a heat map."""
    return {"thickness": 10, "tickfont": {"size": 11}, "title": {"text": label, "side": "right", "font": {"size": 11}}}


def plot_layout(xlabel: str) -> dict[str, Any]:
    """A layout without colours: the page sets them."""
    axis = {"automargin": True, "zeroline": False, "title": {"standoff": 8}, "exponentformat": "power"}
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
    """Data and layout as JSON. NaN becomes null."""
    content: dict[str, Any] = json.loads(figure.to_json())
    content["layout"].pop("template", None)  # a theme of 7 KB; the page replaces its colours
    return content


def describe_range(name: str, values: Numbers) -> str:
    """A sentence on the first, last, smallest and largest value of a quantity."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    if not known:
        return f"{name}: no values"
    return f"{name} from {known[0]:.3g} to {known[-1]:.3g}, between {min(known):.3g} and {max(known):.3g}"


def log_ticks(values: Numbers) -> dict[float, str]:
    """Ticks of a logarithmic axis with their text, such as "2e-7": powers of ten, with 2 and 5 between them if there are few."""
    known = [value for value in values if value is not None and value > 0]
    if not known:
        return {}
    lowest, highest = min(known) / 2, max(known) * 2
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    step = -(-len(powers) // MOST_TICKS)
    digits = (1, 2, 5) if len(powers) <= FEW_POWERS else (1,)
    ticks = [float(f"{digit}e{power}") for power in powers[::step] for digit in digits]
    return {tick: _short_number(tick) for tick in ticks if lowest <= tick <= highest}


def _short_number(value: float) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    digit, _, power = f"{value:.0e}".partition("e")
    return f"{digit}e{int(power)}"


def _shorten(name: str, max_length: int = 26) -> str:
    """The end of a name, which distinguishes layers, without plotly's markup."""
    return html.escape(name if len(name) <= max_length else f"…{name[1 - max_length :]}")


def accuracy_figures(results: ROARResults) -> list[Figure]:
    """A figure for every fill: each method's mean accuracy with 95 % bars. Dashed: networks that see only its masks.

    A dotted line with a label is chance, see `ROARResults.chance`.

    Controls are grey, blurred versions dotted. A method has the same colour in all figures.
    """
    colours, greys, symbols = cycle(BRIGHT_COLOURS), cycle(["#777777", "#aaaaaa", "#999999"]), cycle(SYMBOLS)
    styles = {method: (next(greys if method in CONTROLS else colours), next(symbols)) for method in results.methods}
    fills = results.fills or [""]
    titles = [f"Test accuracy, fill {fill}" if len(fills) > 1 else "Test accuracy" for fill in fills]
    figures = zip(titles, fills, strict=True)
    known = [result.accuracy for result in results.results if result.accuracy is not None]
    span = [min(known, default=0) - 0.03 * max(known, default=1), 1.03 * max(known, default=1)]  # the same for all figures
    return [_accuracy_figure(f"accuracy-{i}", title, results, fill, styles, span) for i, (title, fill) in enumerate(figures)]


def _accuracy_figure(
    name: str, title: str, results: ROARResults, fill: str, styles: Mapping[str, tuple[str, str]], span: Sequence[float]
) -> Figure:
    figure = go.Figure(layout=plot_layout(X_LABELS.get(results.mode, "fraction of pixels")))
    scores = [score.method for score in results.scores(fill)]
    fractions = np.array(results.fractions)
    ranges = []
    for place, method in enumerate([*scores, *(method for method in results.methods if method not in scores)]):
        mean, half = mean_and_interval(results.accuracies(method, fill))
        colour, symbol = styles[method]
        label = html.escape(method)
        known = ~np.isnan(mean)
        beside = shift_beside(results.fractions, place, len(results.methods))[known]
        along, mean, half = fractions[known], mean[known], half[known]
        error = {"array": list(np.clip(half, 0, results.unit - mean)), "arrayminus": list(np.clip(half, 0, mean))}
        figure.add_scatter(
            x=list(beside),
            y=list(mean),
            error_y={**error, "color": colour, "thickness": 1.2, "width": 0},
            mode="markers",
            marker={"opacity": 0, "size": 1},
            visible=bool(np.isfinite(half).any()),
            hoverinfo="skip",
            showlegend=False,
            legendgroup=label,
        )
        figure.add_scatter(
            x=list(along),
            y=list(mean),
            name=label,
            legendgroup=label,
            mode="lines+markers",
            line={"color": colour, "width": 3 if method == "random" else 2, "dash": "dot" if "blurred" in method else "solid"},
            marker={"symbol": symbol, "size": 7},
            customdata=[f" ± {value:.3f}" if np.isfinite(value) else "" for value in half],
            hovertemplate="%{y:.3f}%{customdata}",
        )
        ranges.append(describe_range(method, list(mean)))
        masks = mean_of_known(results.masks_accuracies(method), 0)
        measured = ~np.isnan(masks)
        if measured.any():
            figure.add_scatter(
                x=list(fractions[measured]),
                y=list(masks[measured]),
                name=f"{label}, masks alone",
                legendgroup=label,
                showlegend=False,
                mode="lines+markers",
                line={"color": colour, "width": 1.2, "dash": "dash"},
                marker={"symbol": f"{symbol}-open", "size": 5},
                hovertemplate="%{y:.3f}",
            )
            ranges.append(describe_range(f"{method}, masks alone", list(masks[measured])))
    if not np.isnan(results.chance):
        figure.add_hline(
            y=results.chance,
            line={"dash": "dot", "width": 1.5, "color": "#888888"},
            annotation={"text": f"chance (random's masks alone): {results.chance:.2f}", "font": {"size": 11}},
            annotation_position="top left",
        )
        ranges.append(f"chance {results.chance:.2f}")
    figure.update_layout(showlegend=True, legend_y=-0.16, hovermode="closest")
    figure.update_yaxes(title="test accuracy", range=span)
    return Figure(name, title, "; ".join(ranges), to_json(figure), 460, is_wide=len(results.fills) < 2)
