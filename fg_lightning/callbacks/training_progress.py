"""The progress of training, as Lightning counts it, and when a snapshot is due.

This module reads private names of Lightning 2.6: `_batches_that_stepped` of the training loop is the step of Lightning's loggers
(`global_step` counts the steps of all optimizers); `_should_accumulate` and `_num_ready_batches_reached` tell whether the optimizer
stepped after a batch, and whether it was the last batch of its epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer

from fg_lightning.history import Snapshot


@dataclass(frozen=True)
class Moment:
    """The progress of training.

    Attributes:
        epoch: number of epochs that the network was trained for. After a batch, the current epoch counts.
        step: the step with which Lightning logs its own metrics of the current weights: the last step; before the first epoch, the
            next step. Steps are batches; with accumulated gradients, only the batches after which the optimizer steps.
        num_steps: number of steps that the network was trained for.
        is_end: whether training ends here, as far as this is known.
    """

    epoch: int
    step: int
    num_steps: int
    is_end: bool

    @classmethod
    def of(cls, trainer: Trainer, module: LightningModule, *, after_epoch: bool = False, after_batch: bool = False) -> Moment:
        """The moment of a hook.

        Args:
            trainer: the Trainer, in a fit.
            module: the module that is trained.
            after_epoch: whether the hook is at the end of an epoch that Lightning has not counted yet. Default: False.
            after_batch: whether the hook is at the end of a batch that Lightning has not counted yet. Default: False.
        """
        loop, epoch = trainer.fit_loop.epoch_loop, trainer.current_epoch + (after_epoch or after_batch)
        stepped: int = loop._batches_that_stepped
        # Lightning counts a batch when its hooks and its validation are over.
        stepped += bool(trainer.validating) or (after_batch and not loop._should_accumulate())
        if module.automatic_optimization:
            stepped = max(stepped, trainer.global_step)  # a checkpoint that was saved in validation has counted one less
        is_whole = not after_batch or loop._num_ready_batches_reached()
        is_end = trainer.should_stop or (is_whole and epoch == trainer.max_epochs) or trainer.global_step == trainer.max_steps
        return cls(epoch, max(stepped - 1, 0) if epoch else stepped, stepped, bool(is_end))


@dataclass(frozen=True)
class Rhythm:
    """When snapshots are taken: after every n-th epoch, or after every n-th step.

    Raises:
        ValueError: if a number is not a positive integer, or both are given.
    """

    every_n_epochs: int | None
    every_n_steps: int | None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
        if len(given) > 1:
            both = " and ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"{both} are both given; snapshots are taken by epochs or by steps, so leave one out")

    def is_due(self, moment: Moment, last: Snapshot | None) -> bool:
        """Whether a snapshot is due at the end of an epoch; if snapshots are taken by steps, at the end of a batch.

        Args:
            moment: the moment of that end.
            last: the snapshot before; None if there is none.
        """
        if last is None:
            return True
        if self.every_n_steps is not None:
            done = last.step + (not last.is_untrained) if last.num_steps is None else last.num_steps
            return done < moment.num_steps and moment.num_steps % self.every_n_steps == 0
        is_within_epoch = last.num_steps is not None and last.epoch == moment.epoch and last.step < moment.step
        return (last.epoch < moment.epoch or is_within_epoch) and moment.epoch % (self.every_n_epochs or 1) == 0

    def num_steps(self, moment: Moment) -> int | None:
        """The number of steps in the title of a snapshot; None if its title has the number of epochs."""
        return None if self.every_n_steps is None else moment.num_steps


def num_batches(trainer: Trainer) -> int:
    """Number of batches that the network was trained on."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready
