"""Compares a training with the monitor to the same training without it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

COMPARED = ("weights", "replaced", "requires_grad", "moved", "optimizers", "metrics", "last_metrics", "random", "steps")
"""Keys of `result.json` whose values must be the same."""


@dataclass(frozen=True)
class Comparison:
    """A training with and without the monitor.

    Attributes:
        name: PROJECT:NAME.
        version: version of the project.
        differences: keys of `result.json` whose values differ, with the entries that differ. Empty if none differ.
        error: why the training failed without the monitor. None if it did not.
        num_moved: number of parameters that changed.
        num_trainable: number of parameters that require gradients.
        explained: task, shape and values that the monitor recorded, in words.
        num_snapshots: number of snapshots.
        completeness: largest completeness error of the last snapshot.
        seconds: time without the monitor, and with it.
        said: messages of the monitor.
    """

    name: str
    version: str = ""
    differences: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    num_moved: int = 0
    num_trainable: int = 0
    explained: str = ""
    num_snapshots: int = 0
    completeness: str = ""
    seconds: tuple[float, float] = (0.0, 0.0)
    said: tuple[str, ...] = ()

    @property
    def training(self) -> str:
        return self.name.partition(":")[2]

    @property
    def is_harmed(self) -> bool:
        return bool(self.differences) and self.error is None

    @classmethod
    def of(cls, name: str, without: dict[str, Any], watched: dict[str, Any], folder: Path) -> Comparison:
        """The comparison of two results.

        Args:
            name: PROJECT:NAME.
            without: `result.json` of the training without the monitor.
            watched: `result.json` of the training with the monitor.
            folder: folder of the training with the monitor.
        """
        if "error" in without:
            return cls(name, error=str(without["error"]))
        if "error" in watched:
            return cls(name, without["version"], {"died": str(watched["error"])}, seconds=(without["seconds"], 0.0))
        record = next(iter(sorted(folder.rglob("history.csv"))), None)
        num_snapshots, completeness = (0, "") if record is None else _read_history(record)
        return cls(
            name=name,
            version=without["version"],
            differences=differences(without, watched),
            num_moved=len(watched["moved"]),
            num_trainable=len(watched["requires_grad"]),
            explained="nothing" if record is None else _explained(record.parent),
            num_snapshots=num_snapshots,
            completeness=completeness,
            seconds=(without["seconds"], watched["seconds"]),
            said=tuple(watched["said"]),
        )

    def judged_by(self, again: dict[str, Any], without: dict[str, Any]) -> Comparison:
        """The comparison without the differences that also occur between two trainings without the monitor."""
        if "error" in again:
            return self
        own = differences(without, again)
        kept = {key: what for key, what in self.differences.items() if key not in own}
        note = (f"not reproducible, even without the monitor: {', '.join(own)}",) if own else ()
        return replace(self, differences=kept, said=self.said + note)


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """The keys of `COMPARED` whose values differ, with some of the entries that differ."""
    found = {}
    for key in COMPARED:
        if isinstance(one[key], dict):
            names = [name for name in {**one[key], **other[key]} if one[key].get(name) != other[key].get(name)]
        elif isinstance(one[key], list):
            names = sorted(Counter(map(str, one[key])) - Counter(map(str, other[key]))) + sorted(
                Counter(map(str, other[key])) - Counter(map(str, one[key]))
            )
        else:
            names = [] if one[key] == other[key] else [f"{one[key]} and {other[key]}"]
        if names:
            found[key] = f"{len(names)}: {', '.join(names[:3])}"
    return found


def _read_history(file: Path) -> tuple[int, str]:
    rows = _rows(file)
    return len(rows), rows[-1].get("completeness_error_max", "") if rows else ""


def _explained(folder: Path) -> str:
    """The task, and the values beside the first images in the last snapshot."""
    about = json.loads((folder / "probe.json").read_text())
    names = about.get("class_names")
    rows = _rows(folder / "images.csv")
    rows = [row for row in rows if row.get("snapshot") == rows[-1].get("snapshot")]
    parts = [str(about.get("task", "?")), f"{about.get('images')}"]
    for column in ("explained", "prediction", "confidence"):
        values = [row.get(column, "") for row in rows]
        if any(values):
            parts.append(f"{column} {', '.join(_short(value) for value in values[:3])}")
    return "; ".join(parts) + (f"; class names {', '.join(map(str, names[:3]))}" if names else "")


def _short(value: str) -> str:
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value or "-"


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))
