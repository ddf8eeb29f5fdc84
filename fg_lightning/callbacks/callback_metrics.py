"""The monitor's numbers in `trainer.callback_metrics`, for callbacks and schedulers that monitor one of them.

This module reads private names of Lightning 2.6: `EarlyStopping._check_on_train_epoch_end`,
`ModelCheckpoint._should_save_on_train_epoch_end` and `._every_n_train_steps` tell when these callbacks read the metric that they
monitor. Their public arguments do not tell this, because the defaults depend on the Trainer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer

BATCH_END, VALIDATION_END, EPOCH_END = "batch end", "validation end", "epoch end"
"""The moments at which callbacks and schedulers read `callback_metrics`."""


def are_numbers_read(trainer: Trainer, moment: str, keys: Collection[str]) -> bool:
    """Whether a callback or a scheduler reads one of the monitor's numbers at a moment. All processes agree.

    Args:
        trainer: the Trainer, in a fit.
        moment: BATCH_END, VALIDATION_END or EPOCH_END.
        keys: the log keys of the monitor's numbers.
    """
    return any(moment in moments for _, moments in _readers(trainer, keys))


def publish_numbers(trainer: Trainer, numbers: Mapping[str, float], keys: Collection[str]) -> None:
    """Puts the numbers of the current weights into `callback_metrics`, the same in every process.

    A number that is read but undefined becomes NaN, so that a callback does not read an older one.

    Args:
        trainer: the Trainer, in a fit. If there are several processes, all of them must call this function.
        numbers: the numbers of the first process, by key.
        keys: the log keys of the monitor's numbers, defined or not.
    """
    if trainer.world_size > 1:
        numbers = trainer.strategy.broadcast(dict(numbers), src=0)
    read = {key for key, _ in _readers(trainer, keys)}
    for key in keys:
        if key in numbers or key in read:
            trainer.callback_metrics[key] = torch.tensor(numbers.get(key, float("nan")))
        else:
            trainer.callback_metrics.pop(key, None)


def _readers(trainer: Trainer, keys: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The monitor's keys that are read, with the moments. A callback that puts a number into a file name has the key ""."""
    for callback in getattr(trainer, "callbacks", []):
        key, filename = getattr(callback, "monitor", None), str(getattr(callback, "filename", None) or "")
        if isinstance(key, str) and key in keys:
            yield key, _reading_moments(callback, trainer)
        elif any(own in filename for own in keys):
            yield "", _reading_moments(callback, trainer)
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor in keys:
            yield str(config.monitor), (EPOCH_END if config.interval == "epoch" else VALIDATION_END,)


def _reading_moments(callback: Any, trainer: Trainer) -> tuple[str, ...]:
    """When a callback reads its metric: Lightning's callbacks by their settings, others at the end of validation and epoch."""
    at_epoch_end = getattr(callback, "_check_on_train_epoch_end", None)  # EarlyStopping
    if hasattr(callback, "_should_save_on_train_epoch_end"):  # ModelCheckpoint
        at_epoch_end = callback._should_save_on_train_epoch_end(trainer)
    if at_epoch_end is None:
        return VALIDATION_END, EPOCH_END
    every = getattr(callback, "_every_n_train_steps", 0)
    at_batch_end = (BATCH_END,) if every and trainer.global_step and trainer.global_step % every == 0 else ()
    return (*at_batch_end, EPOCH_END if at_epoch_end else VALIDATION_END)
