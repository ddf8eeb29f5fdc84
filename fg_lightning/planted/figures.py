"""Figures of an experiment with planted shortcuts: the methods' scores, and some of their maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fg_lightning.attribution import CONTROLS
from fg_lightning.planted.experiment_files import Maps
from fg_lightning.planted.results import METRICS, NETWORK_NAMES, NETWORKS, Network, PlantedResults, Score, Values
from fg_lightning.visualization.image_grids import draw_grid, label_flat
from fg_lightning.visualization.saliency_overlay import RGB, enlarge, overlay_rgb, to_rgb

OUTLINE = (0, 220, 255)
"""Colour of the line around the mark. The maps' colour map does not contain it."""


def score_figure(results: PlantedResults) -> Figure:
    """Draws every method's pointing game and relevance mass: trained with the mark (filled) and with random marks (hollow).

    Small points are networks, bars the 95 % intervals of their means. The dotted line is the mark's share of the pixels. Names of
    methods that do not use the network are grey. There is no title, so that the figure fits a paper.
    """
    order = [score.method for score in results.scores()][::-1]
    figure = Figure(figsize=(9, 1.4 + 0.3 * len(order)), dpi=110, layout="constrained")
    axes: Sequence[Any] = figure.subplots(1, len(METRICS), sharey=True)
    styles: Mapping[Network, dict[str, Any]] = {  # dark and light in print, too
        "planted": {"color": "#0072b2", "markerfacecolor": "#0072b2", "marker": "o", "linestyle": "none"},
        "control": {"color": "#d55e00", "markerfacecolor": "white", "marker": "s", "linestyle": "none"},
    }
    for panel, (metric, label) in zip(axes, METRICS.items(), strict=True):
        scores = {score.method: score for score in results.scores(metric)}
        for network, style in styles.items():
            offset = 0.13 if network == "planted" else -0.13
            for place, mean, half, values in _points(results, network, metric, order, scores):
                panel.plot(values, np.full(len(values), place + offset), ".", color=style["color"], alpha=0.35, markersize=4)
                label_once = NETWORK_NAMES[network] if place == 0 else None
                bar = None if np.isnan(half) else half
                panel.errorbar(mean, place + offset, xerr=bar, capsize=2, markersize=6, linewidth=1.2, label=label_once, **style)
        panel.axvline(results.area, color="grey", linestyle=":", linewidth=1.2, label="the mark's share of the pixels")
        panel.set(xlabel=label, xlim=(-0.02, None))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_xlim(-0.02, 1.02)
    axes[0].set_yticks(range(len(order)), order)
    for name in axes[0].get_yticklabels():
        name.set_color("grey" if name.get_text() in CONTROLS else "black")
    share, *networks = zip(*axes[0].get_legend_handles_labels(), strict=True)
    handles, labels = zip(*networks, share, strict=True)
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _points(
    results: PlantedResults, network: Network, metric: str, order: Sequence[str], scores: Mapping[str, Score]
) -> Iterator[tuple[int, float, float, Values]]:
    """For every method: its place, the mean, half of the interval, and the values of the networks."""
    for place, method in enumerate(order):
        score = scores[method]
        mean, half = getattr(score, network), getattr(score, f"{network}_interval")
        yield place, mean, half, results.by_seed(network, method, metric)


def map_grid(folder: Path, methods: Sequence[str], area: tuple[int, int, int, int]) -> Image.Image | None:
    """Draws maps of the networks of seed 0. A row is a method; the planted network is at the left, its control at the right.

    Args:
        folder: folder of the experiment.
        methods: names of the methods, from top to bottom.
        area: the mark with its margin, (top, bottom, left, right), which is outlined.

    Returns:
        The picture. None if the folder holds no maps.
    """
    rows, names = list[list[RGB]](), list[str]()
    for method in methods:
        try:
            files = [np.load(folder / "maps" / f"{Maps(network, 0, method).name}.npz") for network in NETWORKS]
            images, maps = (np.concatenate([file[name] for file in files]) for name in ("images", "maps"))
        except (OSError, ValueError, KeyError, BadZipFile):  # the page reports what is missing
            continue
        pictures = [to_rgb(torch.from_numpy(image)) for image in images]
        if not rows:
            rows.append([_outline(enlarge(picture), picture, area) for picture in pictures])
            names.append("image")
        pairs = zip(pictures, maps, strict=True)
        rows.append([_overlay(picture, torch.from_numpy(saliency), area) for picture, saliency in pairs])
        names.append(method)
    if not rows:
        return None
    columns = [
        NETWORK_NAMES[network].replace("trained with ", "trained with\n") for network in NETWORKS for _ in range(len(rows[0]) // 2)
    ]
    return draw_grid(rows, row_names=names, column_names=columns)


def _overlay(picture: RGB, saliency: Tensor, area: tuple[int, int, int, int]) -> RGB:
    return label_flat(_outline(overlay_rgb(picture, saliency), picture, area), saliency)


def _outline(frame: RGB, picture: RGB, area: tuple[int, int, int, int]) -> RGB:
    """A frame with a line around an area of the picture that it was enlarged from."""
    factor = len(frame) // len(picture)
    top, bottom, left, right = (factor * place for place in area)
    outlined = frame.copy()
    outlined[top:bottom, [left, right - 1]] = OUTLINE
    outlined[[top, bottom - 1], left:right] = OUTLINE
    return outlined
