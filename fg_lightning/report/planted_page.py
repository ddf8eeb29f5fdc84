"""Makes the page of an experiment with planted shortcuts."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go  # type: ignore[import-untyped]

from fg_lightning.planted.experiment_files import is_planted, read_facts, read_results
from fg_lightning.planted.figures import map_grid
from fg_lightning.planted.results import IMAGE_GROUPS, METRICS, NETWORK_NAMES, NETWORKS, PlantedResults
from fg_lightning.report.figures import Figure, Page, plot_layout, to_json
from fg_lightning.report.image_encoding import encode_webp, to_base64
from fg_lightning.roar.experiment_folder import EXPERIMENT_FILE

__all__ = ["is_planted", "planted_page"]

COLOURS = {"planted": "#0072b2", "control": "#d55e00"}

SYMBOLS = {"planted": "circle", "control": "square-open"}

OFFSETS = {"planted": -0.13, "control": 0.13}
"""Distance from the middle of the row, so that equal scores do not hide each other."""


def planted_page(folder: Path) -> Page:
    """The page of an experiment with planted shortcuts.

    Args:
        folder: folder of the experiment.

    Raises:
        CannotRun: if no network has been trained, or a file is damaged.
    """
    about = json.loads((folder / EXPERIMENT_FILE).read_text())
    results, facts = read_results(folder), read_facts(folder)
    assert facts is not None
    scores = results.scores()
    grid = map_grid(folder, [score.method for score in scores], facts.area) if 0 in results.seeds else None
    tables = {
        (metric, images): {s.method: s for s in results.scores(metric, images)} for metric in METRICS for images in IMAGE_GROUPS
    }
    values = {
        "title": folder.name or str(folder),
        "facts": _facts(about, results),
        "notes": [f"{f.method} failed on the {f.network} network of seed {f.seed}: {f.reason}" for f in results.failures],
        "verdict": results.verdict[0].upper() + results.verdict[1:] + ".",
        "networks": results.networks,
        "network_names": NETWORK_NAMES,
        "area": results.area,
        "rows": [{"method": s.method, "scores": [tables[key].get(s.method) for key in tables]} for s in scores],
        "num_following": [sum(n.follows) for n in results.planted_networks if n.lives_on_mark],
        "num_images": len(results.networks[0].follows),
        "grid": "" if grid is None else to_base64(encode_webp(grid, None)),
        "grid_size": (0, 0) if grid is None else grid.size,
    }
    return Page("planted.html.j2", [_score_figure(results, metric) for metric in METRICS] if scores else [], values)


def _facts(about: dict[str, Any], results: PlantedResults) -> list[str]:
    def last_name(setting: Any) -> str:
        name = setting.get("calls", setting) if isinstance(setting, dict) else setting
        return str(name).rpartition(".")[2]

    count = len(results.planted_networks)
    return [
        "Planted shortcut",
        f"shortcut {about['shortcut']}, strength {about['strength']:g}",
        f"{len(results.methods)} methods, {count} network{'s' * (count != 1)} of each kind",
        f"model {last_name(about['model'])}",
        f"data {last_name(about['data'])}",
        f"max_epochs {about['max_epochs']}",
    ]


def _score_figure(results: PlantedResults, metric: str) -> Figure:
    """Every method's mean with its 95 % interval: with the mark and with random marks."""
    scores = results.scores(metric)
    order = [score.method for score in results.scores()]
    by_method = {score.method: score for score in scores}
    figure = go.Figure(layout=plot_layout(""))
    for network in NETWORKS:
        halves = [getattr(by_method[method], f"{network}_interval") for method in order]
        intervals = [f" ± {half:.3f}" if np.isfinite(half) else "" for half in halves]
        figure.add_scatter(
            x=[getattr(by_method[method], network) for method in order],
            y=[place + OFFSETS[network] for place in range(len(order))],
            error_x={"array": np.nan_to_num(halves).tolist(), "thickness": 1.5, "width": 3, "visible": any(intervals)},
            customdata=[[html.escape(method), words] for method, words in zip(order, intervals, strict=True)],
            cliponaxis=False,
            name=NETWORK_NAMES[network],
            mode="markers",
            marker={"color": COLOURS[network], "symbol": SYMBOLS[network], "size": 9},
            hovertemplate="%{customdata[0]}: %{x:.3f}%{customdata[1]}",
        )
    figure.add_vline(x=results.area, line={"dash": "dot", "color": "#888888"})
    figure.update_layout(hovermode="closest", showlegend=True, legend_y=-0.1)
    names = [html.escape(method) for method in order]
    figure.update_yaxes(autorange="reversed", automargin=True, tickvals=list(range(len(order))), ticktext=names)
    figure.update_xaxes(rangemode="tozero")
    best = ", ".join(f"{score.method} {score.planted:.2f} (random marks {score.control:.2f})" for score in scores[:3])
    height = 130 + 24 * len(order)
    return Figure(metric, f"{METRICS[metric].capitalize()} on the mark", f"highest: {best}", to_json(figure), height)
