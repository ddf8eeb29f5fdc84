"""Finds which snapshots in a checkpoint are lost from the files of its run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from fg_lightning.errors import list_briefly
from fg_lightning.history.growing_files import GrowingArray
from fg_lightning.history.records import FORMAT, HISTORY, IMAGES, LAYERS, MAPS, Snapshot
from fg_lightning.history.run_reader import RunFiles, agree_in_concentration


class OtherRun(ValueError):
    """The folder holds another run."""


def find_lost_snapshots(
    folder: Path, snapshots: Sequence[Snapshot], fingerprint: str, methods: Iterable[str] = ()
) -> tuple[Set[int], list[str]]:
    """Compares the files of a folder with the snapshots in a checkpoint.

    The files hold a snapshot if its row in `history.csv` has the same numbers. If that row is missing, its maps must have the same
    concentration.

    Args:
        folder: folder of an earlier run.
        snapshots: the snapshots in the checkpoint.
        fingerprint: digest of the images and labels in the checkpoint.
        methods: keys of the further methods. Default: none.

    Returns:
        The indices of the snapshots that the files do not hold, and messages about damage.

    Raises:
        OtherRun: if the folder holds another run.
        OSError: if a file exists, but cannot be read now.
        ValueError: if a later version of the package wrote the folder.
    """
    files = RunFiles(folder)
    about = _identity(files)
    if about is not None and about["format"] != FORMAT:
        raise ValueError(f"{folder} has format {about['format']}, but this fg-lightning reads format {FORMAT}; update fg-lightning")
    if about is not None and about["fingerprint"] != fingerprint:
        raise OtherRun(str(folder))
    array, num_snapshots = files.maps, len(snapshots)
    try:
        num_entries, has_header = len(array), True
    except (ValueError, EOFError):
        num_entries, has_header = 0, False
    rows, _ = files.tables[HISTORY].salvage()
    unwritten = [index for index in range(num_snapshots) if (index,) not in rows]
    own = {i for i, snapshot in enumerate(snapshots) if i not in unwritten and _cells(rows[i,]) == snapshot.cells()}
    own |= {i for i in unwritten if i < num_entries and agree_in_concentration(array.entry(i), snapshots[i])}
    if about is None and not own:
        raise OtherRun(str(folder))
    maps = {index for index in own if index < num_entries}
    maps -= {index for index in maps if np.isnan(array.entry(index)).all()}
    damages = [] if about is not None else ["probe.json cannot be read"]
    damages += [f"{HISTORY} lacks {_enumerate(unwritten)}"] if unwritten else []
    if not has_header:
        damages.append(f"{MAPS} has no header")
    elif num_entries < num_snapshots:
        damages.append(f"{MAPS} lacks {_enumerate(range(num_entries, num_snapshots))}")
    for name in (IMAGES, LAYERS):
        short = _incomplete_snapshots(files, name, maps)
        damages += [f"{name} lacks rows of {_enumerate(short)}"] if short else []
    damages += [
        f"{name} lacks maps" for name in (f"{method}/{MAPS}" for method in methods) if _num_entries(folder / name) < num_snapshots
    ]
    return set(range(num_snapshots)) - own, [f"{folder} is damaged: {', '.join(damages)}"] if damages else []


def _identity(files: RunFiles) -> dict[str, Any] | None:
    """The format and fingerprint of a run; None if they cannot be read."""
    try:
        about = files.about()
        return {name: about[name] for name in ("format", "fingerprint")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _cells(row: dict[str, str]) -> tuple[Any, ...] | None:
    """The cells of a row of `history.csv`; None if the row is damaged."""
    try:
        return Snapshot.from_row(row).cells()
    except (KeyError, ValueError):
        return None


def _num_entries(path: Path) -> int:
    """Number of snapshots that an array of maps holds, as far as it can be read."""
    try:
        return len(GrowingArray(path))
    except (OSError, ValueError, EOFError):
        return 0


def _incomplete_snapshots(files: RunFiles, name: str, indices: Set[int]) -> list[int]:
    """The snapshots without rows in a table, and those that may lack rows because lines are missing at its end or damaged."""
    rows, is_whole = files.tables[name].salvage()
    counts = Counter(index for index, *_ in rows)
    usual, last = max(counts.values(), default=1), max(counts, default=0)
    return sorted(i for i in indices if not counts[i] or (counts[i] < usual and (i == last or not is_whole)))


def _enumerate(indices: Sequence[int]) -> str:
    """Names snapshots by their indices, at most five."""
    return f"snapshot{'' if len(indices) == 1 else 's'} {list_briefly(indices, 5)}"
