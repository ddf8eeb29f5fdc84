"""Makes the page that compares several runs."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go  # type: ignore[import-untyped]

from fg_lightning.report.compared_runs import ComparedRuns
from fg_lightning.report.figures import Figure, Line, Page, colour_bar, line_figure, plot_layout, to_json
from fg_lightning.report.finding_rows import read_findings
from fg_lightning.report.manual import manual_link
from fg_lightning.report.number_curves import FULLGRAD, NUMBERS_PAGE, draw, has_values, known_numbers, round_numbers
from fg_lightning.report.run_content import Track
from fg_lightning.report.run_folders import REPORT
from fg_lightning.visualization.plots import BRIGHT_COLOURS

MOST_DIFFERENCES = 50
"""Largest number of rows in the table of differences."""

DISTANCE = (
    "1 - cosine similarity of two runs' maps of the same image at the same moment. 0: the maps are the same. Runs that differ only "
    "in their seed differ, too: compare with such a pair before you read a difference as an effect."
)


def comparison_page(
    runs: ComparedRuns, title: str | None = None, track: Track = lambda what, items: items, folder: Path = Path()
) -> Page:
    """The page that compares several runs.

    Args:
        runs: the runs.
        title: title of the page. Default: the names of the runs.
        track: see `write_report`.
        folder: folder of the page. Links to the pages of the runs start there. Default: the current folder.
    """
    notes = runs.notes
    described = [
        {"name": name, "colour": BRIGHT_COLOURS[i % len(BRIGHT_COLOURS)], **_describe_run(content.run.folder, name, notes, folder)}
        for i, (name, content) in enumerate(zip(runs.names, runs.contents, strict=True))
    ]
    distances = {method: runs.distances(method, track) for method in runs.methods}
    first = runs.contents[0]
    values = {
        "title": _title(runs.names) if title is None else title,
        "facts": _facts(runs),
        "notes": notes,
        "runs": described,
        "pictures": first.pictures(),
        "num_snapshots": len(runs.moments),
        "methods": runs.methods,
        "distance_meaning": DISTANCE,
        "map_encoding": first.describe_maps(),
        "sprites": _sprites(runs, track),
        "data": _data(runs, distances),
    }
    return Page("comparison.html.j2", [*_distance_figures(runs, distances), *_curves(runs)], values)


def _describe_run(run_folder: Path, name: str, notes: list[str], folder: Path) -> dict[str, Any]:
    """A run's folder, its findings (None until training ends), and a link to its page from `folder`. Damage goes to `notes`."""
    damage: list[str] = []
    findings = read_findings(run_folder, damage)
    notes += [f"{name}: {note}" for note in damage]
    page = run_folder / REPORT
    link = quote(Path(os.path.relpath(page, folder)).as_posix()) if page.is_file() else ""
    return {"folder": str(run_folder), "findings": findings, "page": link}


def _title(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) < 4 else f"{len(names)} runs"


def _facts(runs: ComparedRuns) -> list[str]:
    count = len(runs.contents[0].run.pictures)
    about = [content.run.about for content in runs.contents]
    return [
        f"{len(runs.names)} runs",
        " / ".join(dict.fromkeys(str(of_run.get("module", "")) for of_run in about)),
        f"the same {count} image{'' if count == 1 else 's'}",
        f"{len(runs.moments)} snapshot{'' if len(runs.moments) == 1 else 's'} at {runs.axis.label}s that all have",
        f"ψ {about[0]['psi']}" if "psi" in about[0] else "",
    ]


def _sprites(runs: ComparedRuns, track: Track) -> dict[str, str]:
    """All maps of each run, snapshot and method in one picture, in base64, by the ends of their elements' names."""
    sprites = {}
    for run, content in track("encoding maps", list(enumerate(runs.contents))):
        for method in (m for m in content.methods if m.method in runs.methods):
            for moment, places in enumerate(runs.moments):
                sprites[f"{run}-{moment}-{method.method}"] = content.sprite(method, content.indices[places[run]])
    return sprites


def _data(runs: ComparedRuns, distances: dict[str, npt.NDArray[np.float64]]) -> dict[str, Any]:
    first = runs.contents[0]
    snapshots = [first.snapshots[places[0]] for places in runs.moments]
    constants = first.constants()
    return {
        **{name: constants[name] for name in ("columns", "height", "width")},
        "methods": [[info for info in content.constants()["methods"] if info["name"] in runs.methods] for content in runs.contents],
        "runs": runs.names,
        "snapshots": [{"title": runs.axis.title(s), "moment": runs.axis.title(s), "at": runs.axis.place(s)} for s in snapshots],
        "images": [
            [
                [content.image(content.indices[places[run]], image) for image in range(len(content.run.pictures))]
                for places in runs.moments
            ]
            for run, content in enumerate(runs.contents)
        ],
        "flat": [[c.flat_maps(c.indices[places[run]]) for places in runs.moments] for run, c in enumerate(runs.contents)],
        "distances": {method: _largest(of_method) for method, of_method in distances.items()},
        "differences": {method: _rank(of_method) for method, of_method in distances.items()},
    }


def _largest(distances: npt.NDArray[np.float64]) -> list[list[float | None]]:
    """For each snapshot and image, the distance of the two runs that differ most. None if maps are lost."""
    return [round_numbers([None if value < 0 else value for value in row], 3) for row in _pairs(distances)[1].max(1)]


def _pairs(distances: npt.NDArray[np.float64]) -> tuple[list[tuple[int, int]], npt.NDArray[np.float64]]:
    """The pairs of runs, and their distances [moments, pairs, N], -1 for lost maps."""
    upper = np.triu_indices(distances.shape[1], 1)
    pairs = [(int(first), int(second)) for first, second in zip(*upper, strict=True)]
    return pairs, np.nan_to_num(distances[:, upper[0], upper[1], :], nan=-1)


def _rank(distances: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """The images and snapshots at which two runs differ most, the largest distance first."""
    pairs, of_pairs = _pairs(distances)
    pair, largest = of_pairs.argmax(1), of_pairs.max(1)
    rows = []
    for place in np.argsort(-largest, axis=None, kind="stable")[:MOST_DIFFERENCES]:
        moment, image = np.unravel_index(place, largest.shape)
        if largest[moment, image] >= 0:
            distance = round_numbers([float(largest[moment, image])], 3)[0]
            runs = list(pairs[pair[moment, image]])
            rows.append({"snapshot": int(moment), "image": int(image), "runs": runs, "distance": distance})
    return rows


def _distance_figures(runs: ComparedRuns, distances: dict[str, npt.NDArray[np.float64]]) -> list[Figure]:
    figures = []
    for method, of_method in distances.items():
        suffix = "" if method == FULLGRAD and len(distances) == 1 else f" ({method})"
        figures.append(_mean_figure(runs, of_method, f"distance-{method}", f"Distance of the maps{suffix}"))
        figures.append(_image_figure(runs, of_method, f"images-{method}", f"Distance of the maps by image{suffix}"))
    return figures


def _mean_figure(runs: ComparedRuns, distances: npt.NDArray[np.float64], name: str, title: str) -> Figure:
    """The mean distance over the images: one line for two runs; for more, a line for each run's mean distance to the others."""
    content, count = runs.contents[0], len(runs.names)
    snapshots = [content.snapshots[places[0]] for places in runs.moments]
    axis_places = [runs.axis.place(snapshot) for snapshot in snapshots]
    others = distances.copy()
    others[:, range(count), range(count)] = np.nan
    lines = []
    for run in range(1 if count == 2 else count):
        values = [_mean(others[moment, run]) for moment in range(len(snapshots))]
        label = " and ".join(runs.names) if count == 2 else f"{runs.names[run]} to the others"
        lines.append(Line(label, axis_places, round_numbers(values), run))
    return line_figure(name, title, lines, xlabel=runs.axis.label, meaning=DISTANCE, link=manual_link(f"{NUMBERS_PAGE}#drift"))


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _image_figure(runs: ComparedRuns, distances: npt.NDArray[np.float64], name: str, title: str) -> Figure:
    """The largest distance of each image at each snapshot."""
    largest = np.array(_largest(distances), dtype=float).T  # [N, moments]
    content = runs.contents[0]
    titles = [runs.axis.title(content.snapshots[places[0]]) for places in runs.moments]
    labels = [f"image {i}" for i in range(len(largest))]
    figure = go.Figure(layout=plot_layout("snapshot"))
    figure.add_heatmap(
        z=[[None if np.isnan(value) else value for value in row] for row in largest],
        x=list(range(len(titles))),
        y=list(range(len(labels))),
        hovertemplate="%{text}: %{z:.3g}<extra></extra>",
        colorscale="Viridis",
        zmin=0,
        colorbar=colour_bar("distance"),
    )
    figure.update_layout(meta={"rows": labels, "columns": titles})
    step = -(-len(labels) // 24)
    figure.update_yaxes(autorange="reversed", tickvals=list(range(0, len(labels), step)), ticktext=labels[::step], showgrid=False)
    moments = sorted({0, len(titles) - 1, *range(0, len(titles), -(-len(titles) // 6))})
    figure.update_xaxes(tickvals=moments, ticktext=[html.escape(titles[i]) for i in moments], title=None, showgrid=False)
    known = largest[~np.isnan(largest)]
    summary = f"from {known.min():.3g} to {known.max():.3g}" if known.size else "no values"
    meaning = "Distance of the two runs that differ most. Click a cell to see its snapshot."
    return Figure(name, title, summary, to_json(figure), max(280, min(700, 110 + 17 * len(labels))), meaning=meaning)


def _curves(runs: ComparedRuns) -> list[Figure]:
    """A figure for every number, with a line for each run."""
    numbers = [
        {method.method: [method.numbers.get(index, {}) for index in content.indices] for method in content.methods}
        for content in runs.contents
    ]
    figures = []
    for curves, words, method, number in known_numbers(numbers):
        lines = []
        for run, (name, content) in enumerate(zip(runs.names, runs.contents, strict=True)):
            values = round_numbers([of_snapshot.get(number) for of_snapshot in numbers[run].get(method, [])])
            if has_values(values):
                places = [runs.axis.place(snapshot) for snapshot in content.snapshots]
                lines.append(Line(name, places, values, run))
        suffix = words if method == FULLGRAD else f"{words}, {method}"
        figures.append(draw(curves, lines, runs.axis, runs.contents[0].map_size, suffix))
    return figures
