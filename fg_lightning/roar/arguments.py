"""What a ROARExperiment is given, looked at before anything is done."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from fg_lightning.removal import Fill, find_imputer
from fg_lightning.removal.ranking import check_fraction
from fg_lightning.roar.cells import ALL

MODES = ("roar", "kar", "road")

TARGETS = ("predicted", "label")

LONGEST = 150
"""Bytes of a method's name; a file system takes 255, of which a fraction, a seed and a suffix need some."""

LOWER_IS_BETTER = ("loss", "error", "perplexity")
"""Parts of the names of metrics that fall as a network gets better."""


def check_makers(data: Any, model: Any) -> None:
    """
    Raises:
        TypeError: if one is an instance.
    """
    for name, given, kind in (("data", data, LightningDataModule), ("model", model, LightningModule)):
        if isinstance(given, kind) or not callable(given):
            raise TypeError(
                f"{name} must be a function that makes a new {kind.__name__}, such as the class itself or a lambda, since every "
                f"training starts from scratch; not {type(given).__name__}"
            )


def check_mode(mode: str) -> None:
    """Raises ValueError."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")


def check_counts(**counts: int) -> None:
    """Raises TypeError if one is not an integer, and ValueError if one is less than 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name} must be an integer, not {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises ValueError if one lies outside 0..1 or is given twice, or none is between 0 and 1, where methods differ."""
    for fraction in fractions:
        check_fraction(fraction)
    names = [f"{fraction:g}" for fraction in fractions]  # cells are told apart by them
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"fractions must differ, but {', '.join(twice)} is given more than once")
    if not any(0 < float(name) < 1 for name in names):
        raise ValueError(
            "fractions must have one between 0 and 1, since methods differ only where some pixels go and some stay; not "
            f"{list(fractions)}"
        )


def check_names(methods: Iterable[str]) -> None:
    """Names of methods become names of files, and stand in the table beside the cells that all methods share.

    Raises:
        ValueError: if they cannot, there is none, or one is given twice.
    """
    names = list(methods)
    if not names:
        raise ValueError("methods must have at least one name, such as fullgrad")
    for name in names:
        if name == ALL:
            raise ValueError(f"no method may be called {ALL!r}, which is what the table calls the cells that methods share")
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"a method's name must be of letters, digits, _ . + and -, since files are called by it; not {name!r}")
        if len(name.encode()) > LONGEST:
            raise ValueError(
                f"a method's name must have at most {LONGEST} bytes, since files are called by it; not {name[:40]!r}..."
            )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"methods must differ, but {', '.join(twice)} is given more than once")


def check_kinds(target: str, engine: Any, imputation: Fill) -> None:
    """
    Raises:
        TypeError: if the engine is none, or pixels cannot be replaced by such a thing.
        ValueError: if there is no such target or imputation.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
    if engine is not None and not all(callable(getattr(engine, name, None)) for name in ("run", "close")):
        raise TypeError(f"engine must be a LocalEngine() or a RayEngine(), not {engine!r}")
    try:
        find_imputer(imputation)
    except (TypeError, ValueError) as error:
        raise type(error)(f"imputation: {error}") from error


def check_metric(metric: str | None) -> None:
    """Raises ValueError if more of it is not better."""
    if metric is not None and any(part in metric.lower() for part in LOWER_IS_BETTER):
        raise ValueError(
            f"metric must be one that is higher for a better network, such as accuracy, since scores are differences of it; "
            f"{metric!r} is lower: log its negative in test_step under another name, and name that"
        )


def on_one_device(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments for a process of its own, where "auto" devices are one.

    Raises:
        ValueError: if they are for several devices or nodes, or one is none of the Trainer's.
    """
    known = list(inspect.signature(Trainer.__init__).parameters)[1:]
    if unknown := [name for name in trainer if name not in known]:
        close = get_close_matches(str(unknown[0]), known, n=1)
        raise ValueError(f"Lightning's Trainer has no argument {unknown[0]!r}" + (f"; did you mean {close[0]}?" if close else ""))
    given = {key: value for key, value in trainer.items() if (key, value) != ("devices", "auto")}
    devices = given.get("devices", 1)
    is_one = len(devices) == 1 if isinstance(devices, (list, tuple)) else str(devices) == "1"
    if not is_one or given.get("num_nodes", 1) != 1:
        raise ValueError(
            f"a training of the experiment takes one device, so devices in the Trainer's arguments must be 1, auto or the index of "
            f"one, [2], and num_nodes 1; not devices {devices!r}, num_nodes {given.get('num_nodes', 1)!r}. To use several devices, "
            "run trainings side by side: RayEngine(gpus=1), or --engine ray --gpus 1"
        )
    return given
