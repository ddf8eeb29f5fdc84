"""The checkpoint that a command begins with: whether it is one, and which options it overrules."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from packaging.version import InvalidVersion, Version

from fg_lightning.checkpoints import read_checkpoint
from fg_lightning.errors import CannotRun
from fg_lightning.training.words import options_of

SHARDED = (".metadata", "meta.pt", "checkpoint", "latest")
"""What lies in a checkpoint that is a folder: those of FSDP, of model parallelism and of DeepSpeed."""


def check_checkpoint(path: str, command: str) -> None:
    """Whether there is a checkpoint to begin with.

    Args:
        path: as in `--ckpt_path`. Addresses, Lightning's registry and folders of shards are not looked into, nor what `last` and
            `hpc` stand for when a training goes on. What is in a file is looked at, and none of its code runs.
        command: fit, validate, test or predict.

    Raises:
        CannotRun: if there is not, or it is not Lightning's, or not one with which a training can go on.
    """
    if "://" in path or path.startswith("registry") or (command == "fit" and path in ("last", "hpc")):
        return
    if Path(path).is_dir() and any((Path(path) / name).exists() for name in SHARDED):
        return
    if not Path(path).exists():
        where = "the folder checkpoints/ of its run has best.ckpt and last.ckpt"
        raise CannotRun(f"there is no checkpoint {Path(path).absolute()}; name the file that a training left: {where}")
    found = read_checkpoint(Path(path), is_mapped=True)
    needed = ["state_dict", "pytorch-lightning_version", *(["optimizer_states", "loops"] if command == "fit" else [])]
    missing = [name for name in needed if name not in found]
    if missing:
        advice = "; to begin a training with weights alone, load them in your model" if command == "fit" else ""
        raise CannotRun(f"{path} is not a checkpoint of Lightning's for {command}: it has no {', '.join(missing)}{advice}")
    if not isinstance(found["state_dict"], Mapping) or not isinstance(found.get("hyper_parameters") or {}, Mapping):
        raise CannotRun(f"{path} is not a checkpoint of Lightning's: its state_dict or hyper_parameters are no table of names")
    check_version(path, found["pytorch-lightning_version"])


def check_version(path: Path | str, version: Any) -> None:
    """Raises CannotRun if what stands for Lightning's version in a checkpoint is none."""
    try:
        Version(version)
    except (InvalidVersion, TypeError) as error:
        raise CannotRun(f"{path} is not a checkpoint of Lightning's: its pytorch-lightning_version is {version!r}") from error


def model_of(path: Path, usual: str) -> dict[str, Any] | None:
    """The class and the arguments of the model in a checkpoint; None if it keeps no arguments.

    Args:
        path: of the checkpoint.
        usual: the class path where the checkpoint names none, as after a training that a script began; of what is kept then, the
            arguments of that class count.

    Raises:
        CannotRun: if the file cannot be read.
    """
    kept = dict(read_checkpoint(path, is_mapped=True).get("hyper_parameters") or {})
    kept.pop("_instantiator", None)
    if "_class_path" in kept:
        return {"class_path": kept.pop("_class_path"), "dict_kwargs": kept}
    known = options_of(pkgutil.resolve_name(usual))
    arguments = {name: value for name, value in kept.items() if name in known}
    return {"class_path": usual, "init_args": arguments} if arguments else None


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
