"""Where the findings of a run go."""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """`fullgrad/` beside the run's checkpoints; without a logger `fullgrad/version_0/` in the default root.

    A run whose files lie elsewhere (s3://...) keeps its findings in the working folder.
    """
    logger, root = trainer.logger, str(trainer.default_root_dir)
    log_dir = getattr(logger, "log_dir", None)
    places = [getattr(logger, name, None) for name in ("save_dir", "name", "version")]
    if isinstance(log_dir, (str, Path)):
        folder = os.path.join(log_dir, "fullgrad")
    elif logger is None or not all(place is None or isinstance(place, (str, int, Path)) for place in (log_dir, *places)):
        folder = os.path.join(root, "fullgrad", "version_0")  # a mock, say, has a name that is no text
    else:
        save_dir, name, version = places
        version = version if isinstance(version, str) else f"version_{version}"
        folder = os.path.join(save_dir or root, str(name), version, "fullgrad")
    return Path("fullgrad", "version_0") if "://" in folder else Path(folder)


def unused(folder: Path) -> Path:
    """The folder, or where something lies there the first of `..._1`, `..._2`, ... in which nothing does."""
    stem = folder.name.removesuffix("_0")
    taken = count(1)
    while os.path.lexists(folder):  # without an error where it may not be looked for
        folder = folder.with_name(f"{stem}_{next(taken)}")
    return folder


def with_siblings(folder: Path) -> list[Path]:
    """The folders beside one that `unused` may have given to other runs, and itself."""
    stem = folder.name.rstrip("0123456789").removesuffix("_")
    names = re.compile(re.escape(stem) + r"(_\d+)?")
    return [path for path in folder.parent.iterdir() if path.is_dir() and names.fullmatch(path.name)]
