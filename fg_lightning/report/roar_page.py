"""What a ROAR experiment left on disk, as far as it can be read.

The report of a ROAR experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fg_lightning.errors import CannotRun, StoreError
from fg_lightning.history.csv_table import facts_of, number, readable_rows
from fg_lightning.removal import removal_mask
from fg_lightning.report.figures import accuracy_curves
from fg_lightning.report.html_page import page
from fg_lightning.report.sprites import base64_of, columns_of, picture_in, picture_webp, tiled, webp
from fg_lightning.roar.cell_training import Cell, Result, read_result
from fg_lightning.roar.experiment_folder import NAME
from fg_lightning.roar.results import ORDER, SAYS, TITLE, Results, mean_and_interval
from fg_lightning.roar.store import SaliencyStore
from fg_lightning.visualization.film_strip import evenly_spaced

MOST_IMAGES = 6
"""Images whose masks are shown."""

EXAMPLES = "examples"
"""A folder of images of the last split, by their index in it: `examples/000012.png`."""

BAND = 16
"""Pixels that the masks of a signal are high."""


@dataclass(frozen=True)
class Steps:
    """At which fraction each pixel of some images goes, by one method.

    Attributes:
        method: its name.
        levels: [images, H, W]: how many of the fractions, from the smallest, leave the pixel as it is.
    """

    method: str
    levels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Experiment:
    """
    Attributes:
        folder: that all of it lies in.
        about: what stands in `experiment.json`; empty if it is not there.
        results: of the trainings.
        steps: of every method whose store can be read.
        indices: of the images that `steps` is of.
        pictures: of them, None where the folder does not hold them.
        notes: what could not be read, in sentences.
    """

    folder: Path
    about: dict[str, Any]
    results: Results
    steps: list[Steps]
    indices: list[int]
    pictures: list[Image.Image | None]
    notes: list[str] = field(default_factory=list)

    @property
    def fractions(self) -> list[float]:
        """Those at which some pixels go and others stay."""
        return [fraction for fraction in self.results.fractions if 0 < fraction < 1]


def read_experiment(folder: Path) -> Experiment:
    """
    Raises:
        CannotRun: if no training has been recorded.
    """
    notes: list[str] = []
    about = facts_of(folder / NAME, "what the experiment was is not known.", notes)
    found = _of_cells(folder, notes) or _of_table(folder, about, notes)
    if not found:
        raise CannotRun(
            f"{folder} is the folder of a ROAR experiment, but no training has been recorded in it yet"
            + (f" ({' '.join(notes)})" if notes else "")
        )
    results = Results(found, str(about.get("mode", "roar")), str(about.get("order", "morf")))
    _note_missing(results, notes)
    fractions = [fraction for fraction in results.fractions if 0 < fraction < 1]
    stores = _stores(folder / "stores", results, notes)
    given = sorted((folder / EXAMPLES).glob("*.png"))[:MOST_IMAGES]
    indices = [int(path.stem) for path in given if path.stem.isdigit()]
    if stores and not indices:
        split = next(iter(stores.values())).splits[-1]
        indices = evenly_spaced(len(next(iter(stores.values())).ranks(split)), MOST_IMAGES)
    steps = _steps(stores, indices, fractions, results.order, notes)
    pictures = [picture_in(folder / EXAMPLES / f"{i:06d}.png") for i in indices]
    return Experiment(folder, about, results, steps, indices, pictures, notes)


def _of_cells(folder: Path, notes: list[str]) -> list[Result]:
    found, damaged = [], 0
    for path in sorted((folder / "cells").glob("*.json")):
        method, _, rest = path.stem.rpartition("-")[0].rpartition("-")
        try:
            result = read_result(folder, Cell(method, float(rest), int(path.stem.rpartition("-")[2])))
        except (CannotRun, ValueError):
            damaged += 1
        else:
            found += [] if result is None else [result]
    if damaged:
        notes.append(f"{damaged} files in cells/ are damaged and left out; the experiment runs them again once they are removed.")
    return sorted(found, key=lambda result: (result.cell.method, result.cell.fraction, result.cell.seed))


def _of_table(folder: Path, about: dict[str, Any], notes: list[str]) -> list[Result]:
    """From `results.csv`, where the cells were not kept."""

    def read(row: dict[str, str]) -> Result:
        about.setdefault("mode", row["mode"])
        about.setdefault("order", row["order"])
        cell = Cell(row["method"], float(row["fraction"]), int(row["seed"]))
        accuracy = number(row["accuracy"])
        if accuracy is None and not row["reason"]:
            raise ValueError("a training has an accuracy, or a reason why it failed")
        return Result(cell, accuracy, {}, number(row["total_variation"]), 0.0, row["reason"])

    return readable_rows(folder / "results.csv", read, notes)


def _note_missing(results: Results, notes: list[str]) -> None:
    shared = {fraction for fraction in results.fractions if fraction in (0, 1)}
    expected = len(results.seeds) * (len(shared) + len(results.methods) * (len(results.fractions) - len(shared)))
    if len(results.results) < expected:
        notes.append(f"{len(results.results)} of {expected} trainings have been run: the experiment goes on, or it was stopped.")
    if results.failed:
        reasons = sorted({result.reason.splitlines()[0] for result in results.failed})
        notes.append(f"{len(results.failed)} trainings failed: {'; '.join(reasons[:3])}")


def _stores(folder: Path, results: Results, notes: list[str]) -> dict[str, SaliencyStore]:
    """By method, the best first, those that are whole and of one kind of images."""
    stores: dict[str, SaliencyStore] = {}
    ranked = [score.method for score in results.scores()]
    for method in [*ranked, *(method for method in results.methods if method not in ranked)]:
        try:
            store = SaliencyStore(folder / method)
        except (StoreError, OSError) as error:
            notes.append(f"The masks of {method} are not shown: {error}")
            continue
        if not stores or store.manifest.shape == next(iter(stores.values())).manifest.shape:
            stores[method] = store
    return stores


def _steps(
    stores: dict[str, SaliencyStore], indices: list[int], fractions: list[float], order: str, notes: list[str]
) -> list[Steps]:
    found = []
    for method, store in stores.items() if fractions else ():
        try:
            found.append(Steps(method, _levels(store, indices, fractions, order)))
        except (StoreError, IndexError) as error:  # noqa: PERF203 (each has its own)
            notes.append(f"The masks of {method} are not shown: {error}")
    return found


def _levels(store: SaliencyStore, indices: list[int], fractions: list[float], order: str) -> npt.NDArray[np.uint8]:
    ranks = store.read(store.splits[-1], indices)
    if ranks.ndim == 4:
        gone = [removal_mask(ranks, fraction, order)[:, ranks.shape[1] // 2] for fraction in fractions]  # type: ignore[arg-type]
    else:
        gone = [removal_mask(ranks, fraction, order) for fraction in fractions]  # type: ignore[arg-type]
    stays: npt.NDArray[np.uint8] = np.array([~mask for mask in gone]).sum(0, dtype=np.uint8)
    return np.repeat(stays[:, None], BAND, axis=1) if stays.ndim == 2 else stays


def roar_page(folder: Path, track: Callable[[str, Sequence[Any]], Iterable[Any]]) -> str:
    """
    Args:
        folder: of the experiment.
        track: see `write_report`.

    Raises:
        CannotRun: if no training has been recorded.
    """
    experiment = read_experiment(folder)
    results = experiment.results
    height, width = experiment.steps[0].levels.shape[1:] if experiment.steps else (1, 1)
    return page(
        "roar.html.j2",
        [accuracy_curves(results)],
        title=folder.name or str(folder),
        facts=_facts(experiment),
        notes=experiment.notes,
        says=SAYS[results.lower_is_better],
        methods=_methods(results),
        fractions=results.fractions,
        cells=results.results,
        pictures=[
            {"number": index, "content": "" if picture is None else base64_of(picture_webp(picture))}
            for index, picture in zip(experiment.indices, experiment.pictures, strict=True)
        ],
        has_pictures=all(picture is not None for picture in experiment.pictures),
        sprites=[
            {"method": steps.method, "content": base64_of(_sprite(steps))} for steps in track("encoding masks", experiment.steps)
        ],
        removed_at=experiment.fractions,
        keeps=results.mode == "kar",
        data={
            "fractions": experiment.fractions,
            "keep": results.mode == "kar",
            "columns": columns_of(len(experiment.indices)),
            "height": height,
            "width": width,
        },
    )


def _sprite(steps: Steps) -> bytes:
    return webp(Image.fromarray(tiled(list(steps.levels))), None)


def _facts(experiment: Experiment) -> list[str]:
    results, about = experiment.results, experiment.about
    seeds = len(results.seeds)
    facts = [
        TITLE.get(results.mode, results.mode),
        ORDER.get(results.order, results.order),
        f"{len(results.methods)} methods, {len(results.fractions)} fractions, {seeds} seed{'' if seeds == 1 else 's'}",
        *(f"{name} {_named(about[name])}" for name in ("model", "data", "imputation") if about.get(name)),
        f"max_epochs {about['max_epochs']}" if "max_epochs" in about else "",
    ]
    return [fact for fact in facts if fact]


def _named(described: Any) -> str:
    """A class or setting as `experiment.json` describes it, in a word."""
    called = described.get("calls", described) if isinstance(described, dict) else described
    return str(called).rpartition(".")[2] if isinstance(called, str) and not called.replace(".", "").isdigit() else str(called)


def _methods(results: Results) -> list[dict[str, Any]]:
    """A row for every method, the best first: its score where it has one, and its mean accuracies."""
    scores = {score.method: score for score in results.scores()}
    rows = []
    for method in [*scores, *(method for method in results.methods if method not in scores)]:
        score = scores.get(method)
        variations = [r.total_variation for r in results.results if r.cell.method == method and r.total_variation is not None]
        mean, _ = mean_and_interval(results.accuracies(method))
        rows.append(
            {
                "method": method,
                "scores": [] if score is None else [_known(v) for v in (score.area, score.interval, score.p, score.p_holm)],
                "variation": float(np.mean(variations)) if variations else None,
                "accuracies": [_known(float(value)) for value in mean],
            }
        )
    return rows


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
