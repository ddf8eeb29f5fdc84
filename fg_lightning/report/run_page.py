"""The report of a monitored run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fg_lightning.history.csv_table import rounded
from fg_lightning.history.reader import TERMS, Run, read_run
from fg_lightning.recording.snapshot import NUMBERS
from fg_lightning.report.figures import Figure, lines, shares_by_layer
from fg_lightning.report.html_page import page
from fg_lightning.report.sprites import Encoding, base64_of, columns_of, fitting, palette, picture_webp, sprite

CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("completeness", "Completeness error", {"mean": "completeness_error", "largest": "completeness_error_max"}),
    ("shares", "Share of the output", {"input": "input_share", "biases": "bias_share", "implicit biases": "implicit_share"}),
    ("drift", "Drift of the maps", {"since the look before": "drift", "since the first look": "drift_from_untrained"}),
    ("concentration", "Concentration of the maps", {"Gini index": "concentration"}),
)
"""Name, title, and what is drawn: scalars of `history.csv` by their names on the page."""


def run_page(folder: Path, track: Callable[[str, Sequence[Any]], Iterable[Any]]) -> str:
    """
    Args:
        folder: of the run's history.
        track: see `write_report`.

    Raises:
        CannotRun: if not one look can be read.
    """
    run = read_run(folder)
    looks = list(run.looks)
    encoding, sprites = _sprites(run, track)
    size = (1, 1) if run.plane is None else encoding.size(*run.plane)
    return page(
        "run.html.j2",
        _figures(run),
        title=_title(folder),
        facts=_facts(run),
        notes=run.notes,
        looks=run.looks,
        numbers=NUMBERS,
        pictures=[_picture(run, i) for i in range(len(run.pictures))],
        said_of_maps="" if run.plane is None else encoding.said(*run.plane),
        sprites=sprites,
        layer_terms={place: terms for place, look in enumerate(looks) if (terms := _layer_terms(run, look))},
        data={
            "looks": [{"title": look.title, "epoch": look.epoch, "step": look.step} for look in run.looks.values()],
            "images": _images(run),
            "layers": _layers(run),
            "columns": columns_of(len(run.pictures)),
            "height": size[0],
            "width": size[1],
            "palette": palette(is_signed=run.is_signed),
        },
        is_signed=run.is_signed,
    )


def _title(folder: Path) -> str:
    """The end of a path, which names a run."""
    parts = folder.parts[1:]
    named = parts[:-1] if parts and parts[-1] == "fullgrad" else parts
    return "/".join(named[-2:]) or str(folder)


def _facts(run: Run) -> list[str]:
    last = list(run.looks.values())[-1]
    error = last.numbers.get("completeness_error")
    facts = [
        str(run.about.get("module", "")),
        _counted(len(run.pictures), "image"),
        f"{_counted(len(run.looks), 'look')}, the last at {last.title} (step {last.step})",
        "" if error is None else f"completeness error {error:.1e}",
        f"ψ {run.about['psi']}" if "psi" in run.about else "",
    ]
    return [fact for fact in facts if fact]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _sprites(run: Run, track: Callable[[str, Sequence[Any]], Iterable[Any]]) -> tuple[Encoding, list[str]]:
    """How maps are encoded, and for every look their sprite in base64, empty where they are lost."""

    def sprite_of(look: int, encoding: Encoding) -> bytes:
        maps = run.maps_of(look)
        return b"" if maps is None else sprite(maps, encoding, is_signed=run.is_signed)

    encoding = fitting(list(run.looks), sprite_of)
    return encoding, [base64_of(sprite_of(look, encoding)) for look in track("encoding maps", list(run.looks))]


def _picture(run: Run, index: int) -> dict[str, Any]:
    picture = run.pictures[index]
    label = next((run.classes.named(row["label"]) for (_, i), row in run.images.items() if i == index), "")
    found = {"number": index, "label": label, "content": "", "width": 1, "height": 1}
    if picture is not None:
        found |= {"content": base64_of(picture_webp(picture)), "width": picture.width, "height": picture.height}
    return found


def _images(run: Run) -> list[list[dict[str, Any] | None]]:
    """For every look what is known of each image, in words and in numbers."""
    return [[_image(run, look, i) for i in range(len(run.pictures))] for look in run.looks]


def _image(run: Run, look: int, index: int) -> dict[str, Any] | None:
    row = run.images.get((look, index))
    if row is None:
        return None
    named, label, prediction = run.classes.named, row["label"], row["prediction"]
    is_class = isinstance(label, int) and isinstance(prediction, int) and row["confidence"] is not None
    return {
        "label": named(label),
        "explained": named(row["explained"]),
        "prediction": "" if prediction is None else run.classes.answer(prediction, row["confidence"]),
        "right": label == prediction if is_class else None,
        "terms": rounded([row[term] for term in TERMS]),
    }


def _layers(run: Run) -> list[list[dict[str, Any]]]:
    """For every look the layers' shares of the output of all images."""
    return [
        [{"name": row.name, "kind": row.kind, "share": rounded([row.share], 4)[0]} for row in run.layers.get(look, [])]
        for look in run.looks
    ]


def _layer_terms(run: Run, look: int) -> dict[str, Any] | None:
    """What each layer adds to each image's output, [layers, N] in 16 bits; None where that was not kept."""
    rows = run.layers.get(look, [])
    if not rows or any(len(row.terms) != len(run.pictures) for row in rows):
        return None
    terms = np.array([row.terms for row in rows], dtype=np.float64)
    scale = float(np.abs(terms).max()) / 32767 or 1.0
    return {"scale": scale, "content": base64_of((terms / scale).round().astype("<i2").tobytes())}


def _figures(run: Run) -> list[Figure]:
    looks = list(run.looks.values())
    by_epoch = len({look.epoch for look in looks}) == len(looks)
    moments: list[float] = [look.epoch if by_epoch else look.step for look in looks]
    titles = [look.title for look in looks]
    figures = []
    for name, title, quantities in CURVES:
        values = {words: rounded([look.numbers.get(key) for look in looks]) for words, key in quantities.items()}
        known = {words: given for words, given in values.items() if any(value is not None for value in given)}
        if known:
            xlabel = "epoch" if by_epoch else "step"
            figures.append(lines(name, title, moments, titles, known, xlabel=xlabel, log_scale=name == "completeness"))
    if any(run.layers.values()):
        figures.append(_layer_figure(run, list(run.looks), titles))
    return figures


def _layer_figure(run: Run, looks: Sequence[int], titles: Sequence[str]) -> Figure:
    names = list(dict.fromkeys(row.name for look in looks for row in run.layers.get(look, [])))
    shares = np.full((len(names), len(looks)), np.nan)
    places = {name: place for place, name in enumerate(names)}
    for column, look in enumerate(looks):
        for row in run.layers.get(look, []):
            if row.share is not None:
                shares[places[row.name], column] = np.nansum([shares[places[row.name], column], row.share])
    return shares_by_layer(names, titles, shares)
