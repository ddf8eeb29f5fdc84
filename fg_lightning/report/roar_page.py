"""Makes the page of a ROAR experiment. Files that cannot be read are left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fg_lightning.errors import CannotRun, StoreError
from fg_lightning.history.run_reader import load_picture, read_json
from fg_lightning.removal import removal_mask
from fg_lightning.report.figures import Page, accuracy_figures
from fg_lightning.report.image_encoding import arrange_tiles, encode_picture, encode_webp, num_columns, to_base64
from fg_lightning.roar.cells import CellResult, parse_row, read_results
from fg_lightning.roar.experiment_folder import EXPERIMENT_FILE, stores_folder
from fg_lightning.roar.findings import list_findings
from fg_lightning.roar.results import DIRECTIONS, ORDER_NAMES, TABLE_COLUMNS, TITLES, ROARResults, mean_and_interval, mean_of_known
from fg_lightning.roar.saliency_store import SaliencyStore
from fg_lightning.visualization.film_strips import spread_indices

MAX_IMAGES = 6
"""Largest number of images whose masks are shown."""

EXAMPLES = "examples"
"""Folder of images of the last split. A file's name is the image's index: `examples/000012.png`."""

BAND = 16
"""Height in pixels of the masks of a signal."""

TABLE = "results.csv"


@dataclass(frozen=True, eq=False)
class ExperimentFiles:
    """The readable content of an experiment.

    Attributes:
        folder: folder of the experiment.
        about: content of `experiment.json`. Empty if there is none.
        results: results of the trainings.
        masks: for each method, the number of fractions that keep each pixel, [images, H, W].
        indices: indices of the images of `masks`.
        pictures: these images. None if the folder does not hold them.
        notes: sentences on what could not be read.
    """

    folder: Path
    about: dict[str, Any]
    results: ROARResults
    masks: dict[str, npt.NDArray[np.uint8]]
    indices: list[int]
    pictures: list[Image.Image | None]
    notes: list[str] = field(default_factory=list)

    @property
    def fractions(self) -> list[float]:
        """The fractions between 0 and 1."""
        return [fraction for fraction in self.results.fractions if 0 < fraction < 1]


def read_experiment(folder: Path) -> ExperimentFiles:
    """Reads the files of an experiment.

    Raises:
        CannotRun: if no training has been recorded.
    """
    notes: list[str] = []
    about = read_json(folder / EXPERIMENT_FILE, "the settings of the experiment are unknown.", notes)
    cells = _read_cells(folder, notes) or _read_table(folder / TABLE, about, notes)
    if not cells:
        raise CannotRun(
            f"{folder} is the folder of a ROAR experiment, but it has no finished training yet; wait for one"
            + (f" ({' '.join(notes)})" if notes else "")
        )
    settings = (str(about.get(name, default)) for name, default in (("mode", "roar"), ("order", "morf"), ("target", "predicted")))
    results = ROARResults(cells, *settings)
    _note_failures(results, notes)
    fractions = [fraction for fraction in results.fractions if 0 < fraction < 1]
    stores = _open_stores(stores_folder(folder, results.networks[0]), results, notes)
    examples = sorted((folder / EXAMPLES).glob("*.png"))[:MAX_IMAGES]
    indices = [int(path.stem) for path in examples if path.stem.isdigit()]
    if stores and not indices:
        split = next(iter(stores.values())).splits[-1]
        indices = spread_indices(len(next(iter(stores.values())).ranks(split)), MAX_IMAGES)
    masks = _read_masks(stores, indices, fractions, results.order, notes)
    pictures = [load_picture(folder / EXAMPLES / f"{i:06d}.png") for i in indices]
    return ExperimentFiles(folder, about, results, masks, indices, pictures, notes)


def _read_cells(folder: Path, notes: list[str]) -> list[CellResult]:
    results, num_damaged = read_results(folder)
    if num_damaged:
        notes.append(f"{num_damaged} files in cells/ are damaged and left out. Remove them to run these trainings again.")
    return results


def is_experiment(folder: Path) -> bool:
    """Whether a folder holds an experiment (roar, planted), or only its table."""
    is_described = {"data", "model", "max_epochs"} <= read_json(folder / EXPERIMENT_FILE, "", []).keys()
    return is_described or any((folder / "cells").glob("*.json")) or _is_table(folder / TABLE)


def _is_table(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(errors="replace") as file:
        return file.readline().rstrip("\n") == ",".join(TABLE_COLUMNS)


def _read_table(path: Path, about: dict[str, Any], notes: list[str]) -> list[CellResult]:
    """Results from the table, if the folder does not hold the cells."""
    results = list[CellResult]()
    try:
        text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
        lines, _, rest = text.rpartition("\n")
        rows = list(csv.DictReader(io.StringIO(lines)))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return []
    except (OSError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read: {error}.")
        return []
    for row in rows:
        try:
            results.append(parse_row(row))
        except (KeyError, TypeError, ValueError):
            continue
        about.setdefault("mode", row["mode"])
        about.setdefault("order", row["order"])
        about.setdefault("target", row["target"])
    if rest:
        notes.append(f"The last line of {path.name} is incomplete and left out.")
    if len(results) < len(rows):
        notes.append(f"{len(rows) - len(results)} of {len(rows)} rows of {path.name} are damaged and left out.")
    return results


def _note_failures(results: ROARResults, notes: list[str]) -> None:
    ends = {fraction for fraction in results.fractions if fraction in (0, 1)}
    num_inside = len(results.methods) * (len(results.fractions) - len(ends))
    num_each = len(results.seeds) * (len(ends) + num_inside * len(results.fills)) + num_inside * results.has_controls
    expected = len(results.networks) * num_each
    if len(results.results) < expected:
        notes.append(f"{len(results.results)} of {expected} trainings have been run: the experiment is running, or it was stopped.")
    if results.failures:
        reasons = sorted({result.reason.splitlines()[0] for result in results.failures})
        notes.append(f"{len(results.failures)} trainings failed: {'; '.join(reasons[:3])}")


def _open_stores(folder: Path, results: ROARResults, notes: list[str]) -> dict[str, SaliencyStore]:
    """The stores that can be opened and have maps of the same size, by method, the best first."""
    stores: dict[str, SaliencyStore] = {}
    ranked = list(dict.fromkeys(score.method for score in results.scores()))
    for method in [*ranked, *(method for method in results.methods if method not in ranked)]:
        try:
            store = SaliencyStore(folder / method)
        except (StoreError, OSError) as error:
            notes.append(f"The masks of {method} are not shown: {error}")
            continue
        if not stores or store.manifest.shape == next(iter(stores.values())).manifest.shape:
            stores[method] = store
    return stores


def _read_masks(
    stores: dict[str, SaliencyStore], indices: list[int], fractions: list[float], order: str, notes: list[str]
) -> dict[str, npt.NDArray[np.uint8]]:
    masks = {}
    for method, store in stores.items() if fractions else ():
        try:
            masks[method] = _mask_levels(store, indices, fractions, order)
        except (StoreError, IndexError) as error:  # noqa: PERF203 (each has its own)
            notes.append(f"The masks of {method} are not shown: {error}")
    return masks


def _mask_levels(store: SaliencyStore, indices: list[int], fractions: list[float], order: str) -> npt.NDArray[np.uint8]:
    ranks = store.read(store.splits[-1], indices)
    masks = [removal_mask(ranks, fraction, order) for fraction in fractions]  # type: ignore[arg-type]
    levels: npt.NDArray[np.uint8] = np.array([~mask for mask in masks]).sum(0, dtype=np.uint8)
    if levels.ndim == 4:
        return levels[:, levels.shape[1] // 2]
    return np.repeat(levels[:, None], BAND, axis=1) if levels.ndim == 2 else levels


def experiment_page(folder: Path, track: Callable[[str, Sequence[Any]], Iterable[Any]]) -> Page:
    """The page of a ROAR experiment.

    Args:
        folder: folder of the experiment.
        track: see `write_report`.

    Raises:
        CannotRun: if no training has been recorded.
    """
    experiment = read_experiment(folder)
    results = experiment.results
    height, width = next((levels.shape[1:] for levels in experiment.masks.values()), (1, 1))
    values = {
        "title": folder.name or str(folder),
        "facts": _facts(experiment),
        "notes": experiment.notes,
        "findings": list_findings(results),
        "direction": DIRECTIONS[results.lower_is_better],
        "methods": [row for fill in results.fills or [""] for row in _methods(results, fill)],
        "has_fills": len(results.fills) > 1,
        "has_masks": results.has_controls,
        "chance": results.chance,
        "repetitions": "explained networks" if results.interval_over == "networks" else "seeds",
        "fractions": results.fractions,
        "cells": results.results,
        "pictures": [
            {"number": index, "content": "" if picture is None else to_base64(encode_picture(picture))}
            for index, picture in zip(experiment.indices, experiment.pictures, strict=True)
        ],
        "has_pictures": all(picture is not None for picture in experiment.pictures),
        "sprites": [
            {"method": method, "content": to_base64(encode_webp(Image.fromarray(arrange_tiles(list(levels))), None))}
            for method, levels in track("encoding masks", list(experiment.masks.items()))
        ],
        "removed_at": experiment.fractions,
        "keeps": results.mode == "kar",
        "data": {
            "fractions": experiment.fractions,
            "keep": results.mode == "kar",
            "columns": num_columns(len(experiment.indices)),
            "height": height,
            "width": width,
        },
    }
    return Page("roar.html.j2", accuracy_figures(results), values)


def _facts(experiment: ExperimentFiles) -> list[str]:
    results, about = experiment.results, experiment.about
    counts = {
        "method": len(results.methods),
        "fraction": len(results.fractions),
        "explained network": len(results.networks),
        "seed": len(results.seeds),
    }
    facts = [
        TITLES.get(results.mode, results.mode),
        ORDER_NAMES.get(results.order, results.order),
        ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for word, count in counts.items()),
        *(f"{name} {_last_name(about[name])}" for name in ("model", "data") if about.get(name)),
        f"fill {', '.join(results.fills)}" if results.fills else "",
        f"explained class {results.target}",
        f"max_epochs {about['max_epochs']}" if "max_epochs" in about else "",
    ]
    return [fact for fact in facts if fact]


def _last_name(setting: Any) -> str:
    """The last name of a class or setting in `experiment.json`."""
    name = setting.get("calls", setting) if isinstance(setting, dict) else setting
    return name.rpartition(".")[2] if isinstance(name, str) and not name.replace(".", "").isdigit() else str(name)


def _methods(results: ROARResults, fill: str) -> list[dict[str, Any]]:
    """A row for every method with a fill, the best first: scores, accuracies on the masks alone, and mean accuracies."""
    scores = {score.method: score for score in results.scores(fill)}
    rows = []
    for method in [*scores, *(method for method in results.methods if method not in scores)]:
        score = scores.get(method)
        variations = [r.total_variation for r in results.results if r.cell.method == method and r.total_variation is not None]
        mean, _ = mean_and_interval(results.accuracies(method, fill))
        masks = mean_of_known(results.masks_accuracies(method), 0)
        rows.append(
            {
                "method": method,
                "fill": fill,
                "scores": [] if score is None else [_nan_to_none(v) for v in (score.area, score.interval, score.p, score.p_holm)],
                "masks": [_nan_to_none(float(v)) for f, v in zip(results.fractions, masks, strict=True) if 0 < f < 1],
                "variation": float(np.mean(variations)) if variations else None,
                "accuracies": [_nan_to_none(float(value)) for value in mean],
            }
        )
    return rows


def _nan_to_none(value: float) -> float | None:
    return None if np.isnan(value) else value
