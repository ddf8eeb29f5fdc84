"""The cells of an experiment: which trainings there are, and what each of them left.

What Lightning says of every training, which is too much where there are hundreds.

One training and one test, the same each time for the same seed.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fg_lightning.atomic_files import write_json
from fg_lightning.errors import CannotRun, Diverged
from fg_lightning.roar.manifest import sealed, unsealed

ALL = "all"
"""The method of a cell in which no pixel goes, or every one: it is the same for all."""


@dataclass(frozen=True)
class Cell:
    """One training: the images of one method at one fraction, with one seed."""

    method: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.fraction:g}-{self.seed}"


@dataclass(frozen=True)
class Result:
    """
    Attributes:
        cell: what was run.
        accuracy: on the test images; None if it failed.
        metrics: everything that the test logged.
        total_variation: of the masks of the test images, a pixel.
        seconds: that it took.
        reason: why it failed; empty if it did not.
    """

    cell: Cell
    accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    total_variation: float | None = None
    seconds: float = 0.0
    reason: str = ""


def cells_of(methods: Sequence[str], fractions: Sequence[float], seeds: int) -> list[Cell]:
    """Every cell in the order of the table; what no method has a part in comes first, once a seed.

    Fractions are told apart as far as the cells' names tell them, so that 0.3 and 0.1 + 0.2 are one.
    """
    fractions = sorted({float(f"{fraction:g}") for fraction in fractions})
    shared = [Cell(ALL, fraction, seed) for fraction in fractions if fraction in (0, 1) for seed in range(seeds)]
    own = [(method, fraction) for method in methods for fraction in fractions if 0 < fraction < 1]
    return shared + [Cell(method, fraction, seed) for method, fraction in own for seed in range(seeds)]


def write_result(folder: Path, result: Result) -> None:
    """Raises what `write_atomically` does."""
    write_json(_path(folder, result.cell), sealed(asdict(result)))


def read_result(folder: Path, cell: Cell) -> Result | None:
    """What a cell left, or None if it has not been run.

    Raises:
        CannotRun: if its file is not readable, was changed after it was written, or is of another cell.
    """
    path = _path(folder, cell)
    try:
        found: dict[str, Any] = unsealed(json.loads(path.read_text()))
        result = Result(**{**found, "cell": Cell(**found["cell"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CannotRun(f"{path} is damaged ({reason}); remove it, and the cell is run again") from error
    if result.cell.name != cell.name:
        raise CannotRun(f"{path} holds the cell {result.cell.name}: it was renamed or copied; remove it, and the cell is run again")
    return result


def _path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


SAID = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory.*",
    ".*GPU available but not used.*",
    ".*sequential samp.*",
    ".*LeafSpec.*",
    ".*Skipping val loop.*",
)
"""Warnings that advise on speed or repeat what was asked for."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's notes on devices and limits, and the warnings in SAID."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in SAID:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


ALONE: dict[str, Any] = {
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "deterministic": "warn",
    "benchmark": False,
}
"""Arguments of the Trainer, which the user's go before."""


class FiniteLoss(Callback):
    """Ends a training whose loss is not finite any more; looked at once an epoch, so that a GPU is not waited for at every step."""

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
            raise Diverged(f"the loss is not finite any more after epoch {trainer.current_epoch + 1}")


def fitted(model: LightningModule, data: LightningDataModule, max_epochs: int, given: Mapping[str, Any], logger: Any) -> None:
    """Trains a network.

    Raises:
        Diverged: if its loss does not stay finite.
    """
    with quiet():
        _trainer({**given, "max_epochs": max_epochs}, logger, FiniteLoss()).fit(model, data)


def tested(model: LightningModule, data: LightningDataModule, given: Mapping[str, Any], logger: Any) -> dict[str, float]:
    """What a network's test logs, by name.

    Raises:
        CannotRun: if it has none.
    """
    with quiet():
        scores = _trainer(given, logger).test(model, datamodule=data, verbose=False)
    if not scores:
        raise CannotRun(f"{type(data).__name__} has no test data, on which the networks are compared")
    return {key: float(value) for score in scores for key, value in score.items()}


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Runs what is in it from a seed, with deterministic algorithms and so many threads; puts all of that back."""
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, before = torch.backends.cudnn.benchmark, torch.get_num_threads()
    with isolate_rng(), patch.dict(os.environ):
        try:
            torch.set_num_threads(threads)
            seed_everything(seed, workers=True, verbose=False)
            yield
        finally:
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
            torch.backends.cudnn.benchmark = cudnn


def _trainer(given: Mapping[str, Any], logger: Any, *callbacks: Callback) -> Trainer:
    """Its callbacks are copies of the user's, so that none carries what it has counted into the next training."""
    of_user = given.get("callbacks") or []
    own = [*deepcopy(of_user if isinstance(of_user, Sequence) else [of_user]), *callbacks]
    return Trainer(**{**ALONE, **given, "callbacks": own, **({} if logger is None else {"logger": logger})})
