"""Makes the page of a monitored run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fg_lightning.history import Run, read_run
from fg_lightning.history.records import shares_by_layer
from fg_lightning.report.figures import Figure, Page, layer_figure
from fg_lightning.report.finding_rows import read_findings
from fg_lightning.report.manual import manual_link
from fg_lightning.report.number_curves import NUMBERS_PAGE, run_figures
from fg_lightning.report.run_content import RunContent, Track


def run_page(folder: Path, track: Track = lambda what, items: items, title: str | None = None) -> Page:
    """Reads a run and makes its page.

    Args:
        folder: folder of the run.
        track: see `write_report`.
        title: title of the page. Default: the end of the folder's path.

    Raises:
        CannotRun: if no snapshot can be read.
    """
    return make_page(RunContent(read_run(folder), track=track), title)


def make_page(content: RunContent, title: str | None = None, live: dict[str, Any] | None = None) -> Page:
    """The page of a run.

    Args:
        content: content of the run.
        title: title of the page. Default: the end of the folder's path.
        live: values with which the page follows the run, if `fg-lightning watch` serves it. None if it is a file.
    """
    values = {
        "title": name_run(content.run.folder) if title is None else title,
        "pictures": content.pictures(),
        "num_snapshots": len(content.snapshots),
        "map_encoding": content.describe_maps(),
        "methods": [method.method for method in content.methods],
        "numbers_link": manual_link(NUMBERS_PAGE),
        "sprites": content.sprites(),
        "layer_terms": {place: terms for place, terms in enumerate(content.layer_terms()) if terms},
        "data": {**content.constants(), **content.entries()},
        "live": live,
        **describe_state(content, is_live=live is not None),
    }
    return Page("run.html.j2", content_figures(content), values)


def describe_state(content: RunContent, *, is_live: bool = False) -> dict[str, Any]:
    """The facts, notes and findings at the top of a run's page. They may change while it trains.

    Args:
        content: content of the run.
        is_live: whether the page itself shows whether training has ended. Default: False.
    """
    notes = [note for note in content.notes if not (is_live and "film_strip.png" in note)]
    findings = read_findings(content.run.folder, notes)
    return {
        "facts": _facts(content.run, content.methods),
        "notes": notes,
        "findings": None if findings is None else [asdict(finding) for finding in findings],
    }


def name_run(folder: Path) -> str:
    """The end of the path, which identifies a run."""
    parts = folder.parts[1:]
    named = parts[:-1] if parts and parts[-1] == "fullgrad" else parts
    return "/".join(named[-2:]) or str(folder)


def content_figures(content: RunContent) -> list[Figure]:
    """The curves of a run, and the share of the output by layer."""
    numbers = {method.method: [method.numbers.get(index, {}) for index in content.indices] for method in content.methods}
    figures = run_figures(content.snapshots, numbers, content.map_size)
    run = content.run
    if any(run.layers.values()):
        layers, shares = shares_by_layer({index: run.layers.get(index, []) for index in run.snapshots})
        figures.append(layer_figure(layers, [content.axis.title(snapshot) for snapshot in content.snapshots], shares))
    return figures


def _facts(run: Run, methods: Sequence[Any]) -> list[str]:
    last = list(run.snapshots.values())[-1]
    error = last.numbers.get("fullgrad/completeness_error")
    facts = [
        str(run.about.get("module", "")),
        _count(len(run.pictures), "image"),
        f"{_count(len(run.snapshots), 'snapshot')}, the last at {last.title}" + f" (step {last.step})" * (last.num_steps is None),
        "" if error is None else f"completeness error {error:.1e}",
        f"ψ {run.about['psi']}" if "psi" in run.about else "",
        f"methods {', '.join(method.method for method in methods)}" if len(methods) > 1 else "",
    ]
    return [fact for fact in facts if fact]


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
