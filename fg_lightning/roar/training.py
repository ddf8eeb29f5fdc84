"""One training and one test, the same each time for the same seed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fg_lightning.errors import CannotRun
from fg_lightning.roar.errors import Diverged
from fg_lightning.roar.quiet import quiet

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
