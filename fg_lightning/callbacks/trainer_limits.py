"""Trainers that forbid snapshots, prevent them, or change the weights when training ends."""

from __future__ import annotations

from itertools import takewhile

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn

SHARDING_STRATEGIES = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def is_barebones(trainer: Trainer, *, is_told: bool) -> bool:
    """Whether the Trainer forbids everything that costs time.

    Args:
        trainer: the Trainer, in the setup of a fit.
        is_told: whether to warn the user.
    """
    is_forbidden = bool(getattr(trainer, "barebones", False))
    if is_forbidden and is_told:
        rank_zero_warn("FullGradMonitor: Trainer(barebones=True) disables the monitor, which costs time; remove one of the two")
    return is_forbidden


def is_sharded(trainer: Trainer) -> bool:
    """Whether the strategy spreads the weights over processes."""
    return any(kind.__name__ in SHARDING_STRATEGIES for kind in type(trainer.strategy).__mro__)


def refuse_sharding(trainer: Trainer) -> None:
    """Refuses to monitor a strategy that spreads the weights over processes.

    Raises:
        NotImplementedError: always, on the first rank.
    """
    if trainer.is_global_zero:
        name = type(trainer.strategy).__name__
        raise NotImplementedError(f"{name} spreads the weights over processes, which is not supported; the monitor is disabled")


def ends_averaged(trainer: Trainer, monitor: Callback) -> bool:
    """Whether a callback that is called before the monitor replaces the weights by averages when training ends."""
    before = takewhile(lambda callback: callback is not monitor, getattr(trainer, "callbacks", []))
    return any(kind.__name__ == "WeightAveraging" for callback in before for kind in type(callback).__mro__)
