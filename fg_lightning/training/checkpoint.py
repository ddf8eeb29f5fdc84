"""The checkpoint that a command begins with: whether it is one, and which options it overrules."""

from __future__ import annotations

import inspect
import pkgutil
import zipfile
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fg_lightning.errors import CannotRun


def check_checkpoint(path: str, command: str) -> None:
    """Whether there is a checkpoint to begin with.

    Args:
        path: as in `--ckpt_path`. Addresses, Lightning's registry and folders of shards are not looked into, nor what `last` and
            `hpc` stand for when a training goes on.
        command: fit, validate, test or predict.

    Raises:
        CannotRun: if there is not.
    """
    if "://" in path or path.startswith("registry") or (command == "fit" and path in ("last", "hpc")) or Path(path).is_dir():
        return
    if not Path(path).is_file():
        where = "the folder checkpoints/ of its run has best.ckpt and last.ckpt"
        raise CannotRun(f"there is no checkpoint {Path(path).absolute()}; name the file that a training left: {where}")
    if not zipfile.is_zipfile(path):  # as all that torch.save writes, and nothing that was cut off
        raise CannotRun(f"{path} is no checkpoint, or only a part of one; name a file that a training left, or copy it again")


def overruled(asked: Namespace, kept: Namespace) -> dict[str, tuple[Any, Any]]:
    """The options of a model that a person gave and a checkpoint has others for: name -> (asked for, kept in the checkpoint).

    Args:
        asked: the class path and arguments of the model, as they were given.
        kept: those that count.
    """
    usual = inspect.signature(pkgutil.resolve_name(asked.class_path)).parameters
    given = {name: value for name, value in asked.get("init_args", {}).items() if name in usual and value != usual[name].default}
    counts = {**kept.get("init_args", {}), **(kept.get("dict_kwargs") or {})}
    return {name: (value, counts[name]) for name, value in given.items() if name in counts and counts[name] != value}
