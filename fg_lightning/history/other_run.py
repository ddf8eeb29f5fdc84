"""What is left of a run's findings in its folder, whatever became of the files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from fg_lightning.history.csv_table import sound_rows
from fg_lightning.history.growing_array import GrowingArray
from fg_lightning.history.history import COLUMNS, FORMAT, HISTORY, IMAGES, LAYERS, MAPS, agree
from fg_lightning.recording.snapshot import NUMBERS, Look


class OtherRun(ValueError):
    """A folder holds the findings of another run."""


def examine(folder: Path, looks: Sequence[Look], fingerprint: str) -> tuple[Set[int], list[str]]:
    """Compares what lies in a folder with the looks that a checkpoint knows.

    A look's findings are its own if its row in `history.csv` has the same numbers; where that row is gone, if its maps have the
    concentration that the checkpoint tells.

    Args:
        folder: of an earlier run.
        looks: as the checkpoint has them.
        fingerprint: of the images that they are of.

    Returns:
        The looks whose findings do not lie there, and what is damaged, in words.

    Raises:
        OtherRun: if it is the folder of another run.
        OSError: if a file is there, but cannot be read now.
        ValueError: if a later version of the package wrote it.
    """
    about = _about(folder)
    if about is not None and about["format"] != FORMAT:
        raise ValueError(f"{folder} has format {about['format']}, this version of fg-lightning reads format {FORMAT}; update it")
    if about is not None and about["fingerprint"] != fingerprint:
        raise OtherRun(str(folder))
    array = GrowingArray(folder / MAPS)
    entries, has_header = _length(array)
    rows, _ = sound_rows(folder / HISTORY, COLUMNS[HISTORY])
    unwritten = [index for index in range(len(looks)) if (index,) not in rows]
    own = {i for i, look in enumerate(looks) if i not in unwritten and _look(rows[i,]) == look}
    own |= {i for i in unwritten if i < entries and agree(array.entry(i), looks[i])}
    if about is None and not own:
        raise OtherRun(str(folder))
    maps = {index for index in own if index < entries}
    maps -= {index for index in maps if np.isnan(array.entry(index)).all()}
    damages = {
        "probe.json cannot be read": about is None,
        f"{HISTORY} lacks {_listed(unwritten)}": bool(unwritten),
        f"{MAPS} has no header": not has_header,
        f"{MAPS} lacks {_listed(range(entries, len(looks)))}": has_header and entries < len(looks),
        f"{IMAGES} lacks rows of {_listed(_short_of(folder, IMAGES, maps))}": bool(_short_of(folder, IMAGES, maps)),
        f"{LAYERS} lacks rows of {_listed(_short_of(folder, LAYERS, maps))}": bool(_short_of(folder, LAYERS, maps)),
    }
    found = [words for words, is_so in damages.items() if is_so]
    return set(range(len(looks))) - own, [f"{folder} is damaged: {', '.join(found)}"] if found else []


def _about(folder: Path) -> dict[str, Any] | None:
    """Format and fingerprint; None if they are gone."""
    try:
        found = json.loads((folder / "probe.json").read_text())
        return {name: found[name] for name in ("format", "fingerprint")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _length(array: GrowingArray) -> tuple[int, bool]:
    """How many entries can be read, and whether it is an array or not there at all."""
    try:
        return len(array), True
    except (ValueError, EOFError):
        return 0, False


def _look(row: dict[str, str]) -> Look | None:
    try:
        numbers = {f"fullgrad/{key}": float(row[key]) for key in NUMBERS if row.get(key)}
        return Look(int(row["epoch"]), int(row["step"]), numbers)
    except (KeyError, ValueError):
        return None


def _short_of(folder: Path, name: str, looks: Set[int]) -> list[int]:
    """The looks that have no rows in a table, and those that may have lost some with its end or what cannot be read."""
    rows, is_whole = sound_rows(folder / name, COLUMNS[name])
    counts = Counter(look for look, *_ in rows)
    usual, last = max(counts.values(), default=1), max(counts, default=0)
    return sorted(look for look in looks if not counts[look] or (counts[look] < usual and (look == last or not is_whole)))


def _listed(looks: Sequence[int]) -> str:
    """Looks by their numbers, at most five."""
    shown = ", ".join(map(str, looks[:5])) + (f" and {len(looks) - 5} more" if len(looks) > 5 else "")
    return f"look {shown}" if len(looks) == 1 else f"looks {shown}"
