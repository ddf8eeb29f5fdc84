"""The page of a monitored run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fg_lightning.history import Run, read_run
from fg_lightning.history.records import NUMBERS, TERMS, shares_by_layer
from fg_lightning.report.figures import Figure, Numbers, Page, layer_figure, line_figure
from fg_lightning.report.image_encoding import (
    Encoding,
    choose_encoding,
    encode_maps,
    encode_picture,
    num_columns,
    palette,
    to_base64,
)

CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("completeness", "Completeness error", {"mean": "completeness_error", "largest": "completeness_error_max"}),
    ("shares", "Share of the output", {"input": "input_share", "biases": "bias_share", "implicit biases": "implicit_share"}),
    ("drift", "Drift of the maps", {"since the snapshot before": "drift", "since the first snapshot": "drift_from_untrained"}),
    ("concentration", "Concentration of the maps", {"Gini index": "concentration"}),
)
"""Name, title, and what is drawn: numbers of `history.csv` by their names on the page."""


def run_page(folder: Path, track: Callable[[str, Sequence[Any]], Iterable[Any]]) -> Page:
    """
    Args:
        folder: of the run.
        track: see `write_report`.

    Raises:
        CannotRun: if no snapshot can be read.
    """
    run = read_run(folder)
    indices = list(run.snapshots)
    encoding, sprites = _encode_sprites(run, track)
    size = (1, 1) if run.map_size is None else encoding.size(*run.map_size)
    values = {
        "title": _title(folder),
        "facts": _facts(run),
        "notes": run.notes,
        "snapshots": run.snapshots.values(),
        "numbers": NUMBERS,
        "pictures": [_picture(run, i) for i in range(len(run.pictures))],
        "map_encoding": "" if run.map_size is None else encoding.describe(*run.map_size),
        "sprites": sprites,
        "layer_terms": {place: terms for place, index in enumerate(indices) if (terms := _layer_terms(run, index))},
        "data": {
            "snapshots": [{"title": s.title, "epoch": s.epoch, "step": s.step} for s in run.snapshots.values()],
            "images": [[_image(run, index, i) for i in range(len(run.pictures))] for index in indices],
            "layers": [
                [{"name": row.name, "kind": row.kind, "share": _round([row.share], 4)[0]} for row in run.layers.get(index, [])]
                for index in indices
            ],
            "columns": num_columns(len(run.pictures)),
            "height": size[0],
            "width": size[1],
            "palette": palette(is_signed=run.is_signed),
        },
        "is_signed": run.is_signed,
    }
    return Page("run.html.j2", _figures(run), values)


def _title(folder: Path) -> str:
    """The end of the path, which identifies a run."""
    parts = folder.parts[1:]
    named = parts[:-1] if parts and parts[-1] == "fullgrad" else parts
    return "/".join(named[-2:]) or str(folder)


def _facts(run: Run) -> list[str]:
    last = list(run.snapshots.values())[-1]
    error = last.numbers.get("fullgrad/completeness_error")
    facts = [
        str(run.about.get("module", "")),
        _count(len(run.pictures), "image"),
        f"{_count(len(run.snapshots), 'snapshot')}, the last at {last.title} (step {last.step})",
        "" if error is None else f"completeness error {error:.1e}",
        f"ψ {run.about['psi']}" if "psi" in run.about else "",
    ]
    return [fact for fact in facts if fact]


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _encode_sprites(run: Run, track: Callable[[str, Sequence[Any]], Iterable[Any]]) -> tuple[Encoding, list[str]]:
    """The encoding of maps, and for every snapshot its sprite in base64, empty if the maps are lost."""

    def encode(index: int, encoding: Encoding) -> bytes:
        maps = run.relative_maps(index)
        return b"" if maps is None else encode_maps(maps, encoding, is_signed=run.is_signed)

    encoding = choose_encoding(list(run.snapshots), encode)
    return encoding, [to_base64(encode(index, encoding)) for index in track("encoding maps", list(run.snapshots))]


def _picture(run: Run, image: int) -> dict[str, Any]:
    picture = run.pictures[image]
    label = next((run.classes.name_of(row.label) for (_, i), row in run.images.items() if i == image), "")
    values = {"number": image, "label": label, "content": "", "width": 1, "height": 1}
    if picture is not None:
        values |= {"content": to_base64(encode_picture(picture)), "width": picture.width, "height": picture.height}
    return values


def _image(run: Run, index: int, image: int) -> dict[str, Any] | None:
    """The answers and terms of an image at a snapshot, in words and in numbers."""
    row = run.images.get((index, image))
    if row is None:
        return None
    label, prediction = row.label, row.prediction
    is_class = isinstance(label, int) and isinstance(prediction, int) and row.confidence is not None
    return {
        "label": run.classes.name_of(label),
        "explained": run.classes.name_of(row.explained),
        "prediction": "" if prediction is None else run.classes.answer(prediction, row.confidence),
        "right": label == prediction if is_class else None,
        "terms": _round([getattr(row, term) for term in TERMS]),
    }


def _layer_terms(run: Run, index: int) -> dict[str, Any] | None:
    """What each layer adds to each image's output, [layers, N] in 16 bits; None if the files do not hold it."""
    rows = run.layers.get(index, [])
    if not rows or any(len(row.terms) != len(run.pictures) for row in rows):
        return None
    terms = np.array([row.terms for row in rows], dtype=np.float64)
    scale = float(np.abs(terms).max()) / 32767 or 1.0
    return {"scale": scale, "content": to_base64((terms / scale).round().astype("<i2").tobytes())}


def _figures(run: Run) -> list[Figure]:
    snapshots = list(run.snapshots.values())
    by_epoch = len({snapshot.epoch for snapshot in snapshots}) == len(snapshots)
    moments: list[float] = [snapshot.epoch if by_epoch else snapshot.step for snapshot in snapshots]
    xlabel = "epoch" if by_epoch else "step"
    titles = [snapshot.title for snapshot in snapshots]
    figures = []
    for name, title, quantities in CURVES:
        values = {
            words: _round([snapshot.numbers.get(f"fullgrad/{key}") for snapshot in snapshots]) for words, key in quantities.items()
        }
        known = {words: of_quantity for words, of_quantity in values.items() if any(value is not None for value in of_quantity)}
        if known:
            figures.append(line_figure(name, title, moments, titles, known, xlabel=xlabel, log_scale=name == "completeness"))
    if any(run.layers.values()):
        layers, shares = shares_by_layer({index: run.layers.get(index, []) for index in run.snapshots})
        figures.append(layer_figure(layers, titles, shares))
    return figures


def _round(values: Numbers, num_digits: int = 5) -> list[float | None]:
    """To so many significant digits. JSON has neither infinity nor NaN."""
    return [None if value is None or not math.isfinite(value) else float(f"{value:.{num_digits}g}") for value in values]
