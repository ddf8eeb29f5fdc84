"""Trains and tests a network with Lightning's Trainer: quietly, on one device, with the same result for the same seed."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fg_lightning.errors import CannotRun, Diverged

SILENCED_WARNINGS = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory.*",
    ".*GPU available but not used.*",
    ".*sequential samp.*",
    ".*LeafSpec.*",
    ".*Skipping val loop.*",
)
"""Warnings that advise on speed or repeat a setting. Hundreds of trainings would repeat them hundreds of times."""

QUIET: dict[str, Any] = {
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Arguments of a Trainer that writes and prints nothing."""

DEFAULTS: dict[str, Any] = {**QUIET, "num_sanity_val_steps": 0, "deterministic": "warn", "benchmark": False}
"""Arguments of the Trainer of a training. The user's override them."""


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Silences Lightning's notes on devices and limits, and SILENCED_WARNINGS."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in SILENCED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def determinism(seed: int, num_threads: int) -> Iterator[None]:
    """Sets the seed, deterministic algorithms and the number of threads, and restores all of them afterwards."""
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, before = torch.backends.cudnn.benchmark, torch.get_num_threads()
    with isolate_rng(), patch.dict(os.environ):
        try:
            torch.set_num_threads(num_threads)
            seed_everything(seed, workers=True, verbose=False)
            yield
        finally:
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
            torch.backends.cudnn.benchmark = cudnn


class FiniteLoss(Callback):
    """Stops a training if its loss is not finite. It checks once an epoch, so that no step waits for a GPU."""

    def __init__(self) -> None:
        self._finite: Tensor | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Manual optimisation and a skipped batch give no loss.
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            finite = loss.detach().isfinite().all()
            self._finite = finite if self._finite is None else self._finite & finite

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._finite is not None and not bool(self._finite):
            raise Diverged(f"the loss is no longer finite after epoch {trainer.current_epoch + 1}")


def fit(model: LightningModule, data: LightningDataModule, max_epochs: int, options: Mapping[str, Any], logger: Any) -> None:
    """Trains a network.

    Args:
        model: the network.
        data: its data.
        max_epochs: number of epochs.
        options: further arguments of the Trainer.
        logger: a logger of Lightning, or None.

    Raises:
        Diverged: if the loss does not stay finite.
    """
    with silence_lightning():
        _trainer({**options, "max_epochs": max_epochs}, logger, FiniteLoss()).fit(model, data)


def test(
    model: LightningModule, data: LightningDataModule, options: Mapping[str, Any], logger: Any, *callbacks: Callback
) -> dict[str, float]:
    """Tests a network and returns the metrics that the test logs, by name. Arguments as for `fit`, and further callbacks.

    Raises:
        CannotRun: if there is no test data.
    """
    with silence_lightning():
        scores = _trainer(options, logger, *callbacks).test(model, datamodule=data, verbose=False)
    if not scores:
        raise CannotRun(f"{type(data).__name__} has no test data, on which the networks are compared")
    return {key: float(value) for score in scores for key, value in score.items()}


def check_trainer_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments, without devices "auto": the default is one device.

    Raises:
        ValueError: if they ask for several devices or nodes, contain max_epochs, or contain an argument that the Trainer does not
            have.
    """
    known = list(inspect.signature(Trainer.__init__).parameters)[1:]
    if unknown := [name for name in options if name not in known]:
        close = get_close_matches(str(unknown[0]), known, n=1)
        raise ValueError(f"Lightning's Trainer has no argument {unknown[0]!r}" + (f"; did you mean {close[0]}?" if close else ""))
    if "max_epochs" in options:
        raise ValueError("max_epochs is a setting of the experiment, not an argument of its Trainer: give it as max_epochs")
    own = {key: value for key, value in options.items() if (key, value) != ("devices", "auto")}
    devices = own.get("devices", 1)
    is_one = len(devices) == 1 if isinstance(devices, (list, tuple)) else str(devices) == "1"
    if not is_one or own.get("num_nodes", 1) != 1:
        raise ValueError(
            "each training uses one device: devices in the Trainer's arguments must be 1, auto or a list with one index, [2], "
            f"and num_nodes 1; not devices {devices!r}, num_nodes {own.get('num_nodes', 1)!r}. To use several devices, "
            "run trainings side by side: RayEngine(num_gpus=1), or --engine ray --num_gpus 1"
        )
    return own


def _trainer(options: Mapping[str, Any], logger: Any, *callbacks: Callback) -> Trainer:
    """A Trainer with copies of the user's callbacks, so that no training uses the state of another."""
    users = options.get("callbacks") or []
    own = [*deepcopy(users if isinstance(users, Sequence) else [users]), *callbacks]
    return Trainer(**{**DEFAULTS, **options, "callbacks": own, **({} if logger is None else {"logger": logger})})
