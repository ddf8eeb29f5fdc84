"""The monitor's numbers in `trainer.callback_metrics`, for callbacks and schedulers that monitor one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer

from fg_lightning.recording.snapshot import NUMBERS

PREFIX = "fullgrad/"
BATCH_END, VALIDATION_END, EPOCH_END = "batch end", "validation end", "epoch end"
"""The moments at which callbacks and schedulers read `callback_metrics`: Lightning's three."""


def is_read(trainer: Trainer, moment: str | None = None) -> bool:
    """Whether a callback or a scheduler reads one of the monitor's numbers at a moment, or at any. All processes agree."""
    return any(moment is None or moment in moments for _, moments in _readers(trainer))


def provide(trainer: Trainer, numbers: Mapping[str, float]) -> None:
    """Puts the numbers of the weights as they are into `callback_metrics`, the same in every process.

    A number that is read but undefined is NaN there: the callback then finds it, and does not take an older one for it.

    Args:
        trainer: in a fit; where there are several processes, all of them call this.
        numbers: those of the first process, by key.
    """
    if trainer.world_size > 1:
        numbers = trainer.strategy.broadcast(dict(numbers), src=0)
    read = {key for key, _ in _readers(trainer)}
    for name in NUMBERS:
        key = PREFIX + name
        if key in numbers or key in read:
            trainer.callback_metrics[key] = torch.tensor(numbers.get(key, float("nan")))
        else:
            trainer.callback_metrics.pop(key, None)


def _readers(trainer: Trainer) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every key of the monitor that is read, and when."""
    for callback in getattr(trainer, "callbacks", []):
        if _is_ours(key := getattr(callback, "monitor", None)):
            yield key, _moments(callback, trainer)
        elif PREFIX in str(getattr(callback, "filename", None) or ""):
            yield "", _moments(callback, trainer)
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and _is_ours(config.monitor):
            yield str(config.monitor), (EPOCH_END if config.interval == "epoch" else VALIDATION_END,)


def _is_ours(key: Any) -> bool:
    return isinstance(key, str) and key.startswith(PREFIX)


def _moments(callback: Any, trainer: Trainer) -> tuple[str, ...]:
    """When a callback reads what it monitors: Lightning's own as they are configured, any other at the end of both loops."""
    at_epoch_end = getattr(callback, "_check_on_train_epoch_end", None)  # EarlyStopping
    if hasattr(callback, "_should_save_on_train_epoch_end"):  # ModelCheckpoint
        at_epoch_end = callback._should_save_on_train_epoch_end(trainer)
    if at_epoch_end is None:
        return VALIDATION_END, EPOCH_END
    every = getattr(callback, "_every_n_train_steps", 0)
    at_batch_end = (BATCH_END,) if every and trainer.global_step and trainer.global_step % every == 0 else ()
    return (*at_batch_end, EPOCH_END if at_epoch_end else VALIDATION_END)
