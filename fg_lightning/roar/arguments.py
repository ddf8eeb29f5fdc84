"""What a ROARExperiment is given, looked at before anything is done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from fg_lightning.roar.cells import ALL

MODES = ("roar", "kar", "road")

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
    """Raises ValueError if one is less than 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")


def check_names(methods: Iterable[str]) -> None:
    """Names of methods become names of files, and stand in the table beside the cells that all methods share.

    Raises:
        ValueError: if they cannot.
    """
    for name in methods:
        if name == ALL:
            raise ValueError(f"no method may be called {ALL!r}, which is what the table calls the cells that methods share")
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"a method's name must be of letters, digits, _ . + and -, since files are called by it; not {name!r}")


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
        ValueError: if they are for several devices or nodes.
    """
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
