"""Finds runs and experiments below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from fg_lightning.errors import CannotRun, list_briefly
from fg_lightning.history.records import COLUMNS, HISTORY
from fg_lightning.history.run_reader import read_json
from fg_lightning.report.roar_page import is_experiment
from fg_lightning.roar.experiment_folder import EXPERIMENT_FILE

REPORT = "report.html"
"""The report of a run or an experiment, in its folder."""

MAX_DEPTH = 6
"""Number of levels of subfolders that are searched."""


def locate_run(folder: Path) -> Path:
    """The absolute folder of a run or an experiment: the given one, or the only one below it.

    Raises:
        CannotRun: if there is none, or more than one.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise CannotRun(f"{folder} {what}; give the folder of a run that FullGradMonitor recorded, or of an experiment")
    candidates = find_runs(folder, with_experiments=True)
    if not candidates:
        files = {HISTORY: "a run", EXPERIMENT_FILE: "an experiment"}
        foreign = [f"its {name} is not that of {what}" for name, what in files.items() if (folder / name).is_file()]
        raise CannotRun(
            f"{folder} holds neither a monitored run (a folder fullgrad/ with {HISTORY}) nor an experiment ({EXPERIMENT_FILE}, "
            f"cells/), and no folder below it does{''.join(f'; {note}' for note in foreign)}; give the folder that "
            "FullGradMonitor, fg-lightning roar or fg-lightning planted wrote to"
        )
    if len(candidates) > 1 and candidates[0] != folder:
        newest_first = sorted(candidates, key=lambda path: -path.stat().st_mtime)
        listed = list_briefly(newest_first)
        raise CannotRun(
            f"there are {len(candidates)} runs below {folder}; give one, or several to compare them. The newest first: {listed}"
        )
    return candidates[0]


def find_runs(top: Path, *, with_experiments: bool = False) -> list[Path]:
    """The folders of runs at or below a folder, the nearest first. Links and hidden folders are skipped.

    Args:
        top: the folder.
        with_experiments: whether to list experiments, too. Default: False.
    """
    folders = []
    for where, names, _ in os.walk(top):
        path = Path(where)
        if is_run(path) or (with_experiments and is_experiment(path)):
            folders.append(path)
        if is_run(path) or len(path.relative_to(top).parts) == MAX_DEPTH:
            names.clear()  # folders in a run hold its records of other methods
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(folders, key=lambda path: (len(path.parts), path))


def is_run(folder: Path) -> bool:
    """Whether a monitor recorded in this folder: its table has the columns of a run, or its `probe.json` describes a run."""
    return _has_columns(folder / HISTORY) or "fingerprint" in read_json(folder / "probe.json", "", [])


def _has_columns(path: Path) -> bool:
    heading = ",".join(COLUMNS[HISTORY][:5])  # the fifth is a number that tables of other methods do not have
    try:
        with path.open("rb") as file:
            return file.read(len(heading)) == heading.encode()
    except OSError:
        return False
