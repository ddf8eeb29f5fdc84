"""The report of a ROAR experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fg_lightning.report.page import page
from fg_lightning.report.roar import Experiment, Steps, read_experiment
from fg_lightning.report.roar_figure import accuracy_curves
from fg_lightning.report.sprites import base64_of, columns_of, picture_webp, tiled, webp
from fg_lightning.roar.figure import ORDER, SAYS, TITLE
from fg_lightning.roar.results import Results, mean_and_interval


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
