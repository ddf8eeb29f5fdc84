"""What there is to report on in a folder that a person names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fg_lightning.callbacks.history import HISTORY
from fg_lightning.errors import CannotRun
from fg_lightning.roar.folder import NAME as EXPERIMENT
from fg_lightning.roar.results import COLUMNS

DEEPEST = 6
"""So many folders below the named one are looked into."""

TABLE = "results.csv"


@dataclass(frozen=True)
class Found:
    """
    Attributes:
        folder: that holds what was found; absolute.
        is_experiment: whether it is ROAR's, not a monitored run's.
    """

    folder: Path
    is_experiment: bool


def found(folder: Path) -> Found:
    """The run or the experiment in a folder, or the only one below it.

    Raises:
        CannotRun: if there is none, or more than one.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise CannotRun(f"{folder} {what}; name the folder of a run that FullGradMonitor watched, or of a ROAR experiment")
    below = [where for where in _folders(folder) if _is_run(where) or _is_experiment(where)]
    if not below:
        raise CannotRun(
            f"{folder} holds neither a monitored run (a folder fullgrad/ with {HISTORY}) nor a ROAR experiment (experiment.json, "
            "cells/), and no folder below it does; name the one that FullGradMonitor or fg-lightning roar wrote to"
        )
    if len(below) > 1 and below[0] != folder:
        newest_first = sorted(below, key=lambda where: -where.stat().st_mtime)
        raise CannotRun(f"there are {len(below)} runs below {folder}, name one, the newest is first: {_listed(newest_first)}")
    return Found(below[0], not _is_run(below[0]))


def _folders(top: Path) -> list[Path]:
    """The folder and those below it, the nearest first; links are not followed."""
    reached = []
    for where, names, _ in os.walk(top):
        reached.append(Path(where))
        if len(Path(where).relative_to(top).parts) == DEEPEST:
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(reached, key=lambda where: (len(where.parts), where))


def _is_run(folder: Path) -> bool:
    return (folder / HISTORY).is_file() or (folder / "probe.json").is_file()


def _is_experiment(folder: Path) -> bool:
    return (folder / EXPERIMENT).is_file() or (folder / "cells").is_dir() or _first_line(folder / TABLE) == ",".join(COLUMNS)


def _first_line(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(errors="replace") as file:
        return file.readline().rstrip("\n")


def _listed(folders: list[Path]) -> str:
    return ", ".join(map(str, folders[:8])) + (f" and {len(folders) - 8} more" if len(folders) > 8 else "")
