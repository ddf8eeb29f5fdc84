"""FullGradMonitor: watch saliency evolve while a network trains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Union

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from fg_lightning.callbacks import callback_metrics
from fg_lightning.callbacks.module_call import Forward
from fg_lightning.callbacks.probe_source import probe_of_loader, reads_by_index, training_loader, validation_loader
from fg_lightning.fullgrad.postprocess import Psi
from fg_lightning.history.history import History
from fg_lightning.recording.normalization import Facts
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.recorder import Faults, Settings, Watch, step_of
from fg_lightning.recording.resume import Resumed
from fg_lightning.recording.task import MonitorTarget

SHARDING_STRATEGIES = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class FullGradMonitor(Callback):
    """Draws FullGrad maps of the same held-out images all through training and checks that they are complete.

    Looks at the untrained network, after every `every_n_epochs`-th epoch and when training ends, never in the sanity check. Each
    look logs, at the step and with the epoch with which Lightning logs an epoch's own metrics:

    - `fullgrad/saliency`: every image with its map over it, its class and what the network predicts (loggers that take images);
    - `fullgrad/completeness_error`, `fullgrad/completeness_error_max`: |f - sum of all terms| / |f|, mean and maximum over the
      images; near zero, or the maps are not to be trusted;
    - `fullgrad/input_share`, `fullgrad/bias_share`, `fullgrad/implicit_share`: what share of the output each kind of term explains;
    - `fullgrad/drift`, `fullgrad/drift_from_untrained`: mean cosine distance to the maps of the look before, and to the first;
    - `fullgrad/concentration`: mean Gini index of the maps, near 1 where few pixels count;
    - `fullgrad/table` (Weights & Biases): a row for every image and look;

    and at the end `fullgrad/film_strip` (a row per image, a column per look) and `fullgrad/bias_terms` (a row per layer). All of it
    also lies under `fullgrad/` in the run's folder, as it is found: see docs/monitor.md, which also tells what a checkpoint keeps.

    `ModelCheckpoint`, `EarlyStopping` and `ReduceLROnPlateau` find the numbers in `trainer.callback_metrics`.

    Training is not disturbed: weights come out bit for bit as without the monitor, unless the data set keeps random state of its
    own. What goes wrong in a look is warned of once, and training goes on.

    What is explained: the label's score; with several labels that of the first; of a single logit the logit; of a label map the
    mean score of its largest class (class 0 excepted) over its region; of anything else the output, or its mean. If labels fit no
    class of the output, the class that the network predicts in the first look. See `task`, and docs/monitor.md.

    Args:
        every_n_epochs: look after every so many epochs.
        num_samples: how many images to look at, evenly spread over the validation data (without any: the training data).
        probe: images [N, C, *S] as the model takes them, or (images, labels), to look at instead.
        target: what to explain instead: a class, one for each image, or a function from the module's output to [N].
        forward: how to call a module that takes more than the images: a function of the module and the batch they are part of.
            By default the module is called on the images alone, as its forward takes them.
        psi: FullGrad's post-processing: "absolute", "positive", "signed" or a function; see `fg_lightning.FullGrad`.
        normalization: (mean, std) of the channels, to show images as they were; by default what the data's transforms say, or
            else each image's own range.
        class_names: one for each class; by default those of the data set.
        task: what the output means: "classes" [N, K], "labels" [N, K] (an image may have several), "logit" [N] or [N, 1],
            "regions" [N, K, *S] or "number". By default the labels, the losses, the metrics and the data set decide; if they do
            not, a message tells what is assumed.
        animation: when training ends, also write `animation.gif`: the film strip in motion.
        report: when training ends, also write `report.html`, as `fg-lightning report` does: one file that opens without a network.
        strict: raise what goes wrong instead of warning.

    Raises:
        TypeError: if an argument is of no kind that makes sense.
        ValueError: if it makes no sense otherwise.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[FullGradMonitor(every_n_epochs=5)], logger=False)
    """

    attached_by: str | None = None
    """What put it there, if not a script; see attach.py."""

    is_superseded: bool = False
    """Whether a newer one was attached: a script may give one list of callbacks to several Trainers, and each Trainer adds one."""

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_samples: int = 8,
        probe: Union[Tensor, tuple[Tensor, Tensor], None] = None,
        target: MonitorTarget = None,
        forward: Union[Forward, None] = None,
        psi: Union[str, Psi] = "absolute",
        normalization: Union[Sequence[Sequence[float]], None] = None,
        class_names: Union[Sequence[str], None] = None,
        task: Union[str, None] = None,
        animation: bool = False,
        report: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__()
        _check_counts(every_n_epochs=every_n_epochs, num_samples=num_samples)
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.psi = psi
        if not isinstance(strict, bool):
            raise TypeError(f"strict must be True or False, not {strict!r}")
        self.strict = strict
        drawn = {"animation": animation, "report": report}
        self.settings = Settings.checked(psi, target, forward, normalization, class_names, task=task, **drawn)
        self._given = None if probe is None else Probe.given(probe)
        self._faults = Faults(strict)
        self._checkpoint: dict[str, Any] = {}
        self._watch: Watch | None = None
        self._stands_back = False
        self._awaits_loader = False
        self._measured_at: int | None = None

    @property
    def history(self) -> History | None:
        """What was found so far; None before there are images to look at, and on all ranks but the first."""
        return None if self._watch is None else self._watch.history

    @property
    def probe(self) -> Probe | None:
        """What is looked at, with the labels that are explained once a look was taken; None where `history` is."""
        return None if self._watch is None else self._watch.looker.probe

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy of an attached one, such as a script makes of its list of callbacks, is one of the attached."""
        from fg_lightning.callbacks.attach import count_as_attached

        self.__dict__.update(state)
        if self.attached_by is not None:
            count_as_attached(self)

    @property
    def state_key(self) -> str:
        """Differs for two monitors of one Trainer, such as one in a script and one attached to it."""
        if self.attached_by is None:
            return "FullGradMonitor"
        if self.is_superseded:
            return self._generate_state_key(attached_by=self.attached_by, superseded=id(self))
        return self._generate_state_key(attached_by=self.attached_by)

    # --- the hooks, in the order in which Lightning calls them

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._watch, self._checkpoint, self._faults, self._measured_at = None, {}, Faults(self.strict), None
            self._awaits_loader = False
            self._stands_back = self._is_one_too_many(trainer) or self._is_barred(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._checkpoint = state_dict

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Data that can only be streamed is taken as it comes by, in the sanity check or else after the first epoch."""
        if self._awaits_loader:
            self._awaits_loader = False
            with self._faults.kept_from_training():
                self._begin(trainer, self._probe_at_start(trainer, pl_module))
        if self._given is None and self._lacks_probe(trainer) and not reads_by_index(validation_loader(trainer)):
            with self._faults.kept_from_training():
                self._begin(trainer, None)  # a stream cannot be asked for the images that a checkpoint has
                if self._watch is None:
                    self._begin(trainer, self._probe_of(batch))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._faults.kept_from_training():
            self._refuse_sharding(trainer)
            if self._lacks_probe(trainer):
                self._begin(trainer, self._probe_at_start(trainer, pl_module))
            self._look(trainer, pl_module, trainer.current_epoch)
        self._provide(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._lacks_probe(trainer) and not trainer.enable_validation and not reads_by_index(training_loader(trainer)):
            with self._faults.kept_from_training():
                self._begin(trainer, self._probe_of(batch))
                self._look(trainer, pl_module, trainer.current_epoch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A checkpoint that is saved every so many steps reads the numbers next."""
        if self._is_read(trainer, callback_metrics.BATCH_END):
            self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What reads the numbers when validation ends may stand before this callback then, but not here."""
        if trainer.state.fn == "fit" and trainer.validating and self._is_read(trainer, callback_metrics.VALIDATION_END):
            try:
                if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                    self._look_after_epoch(trainer, pl_module)
            finally:
                self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self._look_after_epoch(trainer, pl_module)
        finally:
            if self._is_read(trainer, callback_metrics.EPOCH_END):
                self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._faults.kept_from_training():
            self._look(trainer, pl_module, trainer.current_epoch, is_last=True)
            if self._watch is not None:
                self._watch.conclude()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What was seen up to a crash or Ctrl-C is worth a strip, too."""
        with Faults(strict=False).kept_from_training():
            if self._watch is not None:
                self._watch.conclude()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; see `fg_lightning.recording.resume.kept`."""
        state: dict[str, Any] = {}
        with self._faults.kept_from_training():
            if not self._stands_back:
                state = self._checkpoint if self._watch is None else self._watch.state()
        return state

    # --- what they do

    def _lacks_probe(self, trainer: Trainer) -> bool:
        return self._watch is None and not self._stands_back and trainer.state.fn == "fit" and trainer.is_global_zero

    def _probe_at_start(self, trainer: Trainer, module: LightningModule) -> Probe | None:
        """The images to look at; None where they are still to come by."""
        if self._given is not None:
            return self._given
        loader = validation_loader(trainer)
        if not trainer.enable_validation:
            loader = training_loader(trainer)
            rank_zero_info("FullGradMonitor: there is no validation data, so the images it looks at are training data")
        self._awaits_loader = loader is None and trainer.enable_validation
        if not reads_by_index(loader):
            return None
        return probe_of_loader(loader, self.num_samples, trainer, module, with_batch=self.settings.forward is not None)

    def _probe_of(self, batch: Any) -> Probe:
        return Probe.of_batch(batch, self.num_samples, with_batch=self.settings.forward is not None)

    def _begin(self, trainer: Trainer, probe: Probe | None) -> None:
        if probe is None and not self._checkpoint:
            return
        resumed = Resumed.of(self._checkpoint) if self._checkpoint else None
        datamodule = getattr(trainer, "datamodule", None)
        facts = Facts.of(trainer.lightning_module, trainer.val_dataloaders, trainer.train_dataloader, datamodule)
        fresh = None if probe is None else probe.to("cpu")
        self._watch = Watch.begin(trainer, fresh, self.settings, facts, self._faults, resumed, is_given=self._given is not None)

    def _look(self, trainer: Trainer, module: LightningModule, epoch: int, *, is_last: bool = False) -> None:
        """Looks: first of all, when an epoch's turn has come, and last of all if the network is another than at the last look."""
        if self._watch is None:
            return
        last, step = self._watch.last_look, step_of(trainer, module, epoch)
        is_due = last is None or (last.epoch < epoch and epoch % self.every_n_epochs == 0)
        is_another = last is not None and ((last.epoch, last.step) < (epoch, step) or self._ends_averaged(trainer))
        if is_due or (is_last and is_another):
            self._measured_at = _batches(trainer)
            is_last = is_last or trainer.should_stop or epoch == trainer.max_epochs
            self._watch.look(module, epoch, step, is_last=is_last)

    def _look_after_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        with self._faults.kept_from_training():
            if epoch != trainer.max_epochs or not self._ends_averaged(trainer):
                self._look(trainer, module, epoch)
        self._provide(trainer)

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        """Provides the numbers of the weights as they are; where no look was due, nothing else becomes of them."""
        try:
            with self._faults.kept_from_training():
                if self._watch is not None and self._measured_at != _batches(trainer):
                    self._watch.numbers, self._measured_at = {}, _batches(trainer)
                    self._watch.measure(module)
        finally:  # the other processes wait for it
            self._provide(trainer, is_awaited=True)

    def _is_read(self, trainer: Trainer, moment: str | None = None) -> bool:
        return not self._stands_back and callback_metrics.is_read(trainer, moment)

    def _provide(self, trainer: Trainer, *, is_awaited: bool = False) -> None:
        """Puts the numbers where callbacks find them; in several processes and from an attached monitor only if they are read."""
        if is_awaited or (trainer.world_size == 1 and self._watch is not None and self.attached_by is None):
            callback_metrics.provide(trainer, {} if self._watch is None else self._watch.numbers)

    def _ends_averaged(self, trainer: Trainer) -> bool:
        """Whether a callback that is called before this one puts averages in the place of the weights when training ends."""
        before = takewhile(lambda callback: callback is not self, getattr(trainer, "callbacks", []))
        return any(kind.__name__ == "WeightAveraging" for callback in before for kind in type(callback).__mro__)

    def _is_one_too_many(self, trainer: Trainer) -> bool:
        """Whether it was attached to a script that has a monitor of its own, or another one was attached after it."""
        if self.attached_by is None:
            return False
        monitors = [callback for callback in getattr(trainer, "callbacks", []) if isinstance(callback, FullGradMonitor)]
        attached = [monitor for monitor in monitors if monitor.attached_by is not None]
        self.is_superseded = bool(attached) and attached[-1] is not self
        is_second = len(attached) < len(monitors)
        if is_second and not self.is_superseded:
            rank_zero_info(f"FullGradMonitor: the script has one of its own, so the one of {self.attached_by} is disabled")
        return is_second or self.is_superseded

    def _is_barred(self, trainer: Trainer) -> bool:
        """Whether the Trainer asks for nothing that costs time."""
        is_barred = bool(getattr(trainer, "barebones", False))
        if is_barred and self.attached_by is None:
            rank_zero_warn("FullGradMonitor: Trainer(barebones=True) switches it off: it would cost time; remove one of the two")
        return is_barred

    def _refuse_sharding(self, trainer: Trainer) -> None:
        if not self._stands_back and any(kind.__name__ in SHARDING_STRATEGIES for kind in type(trainer.strategy).__mro__):
            self._stands_back = True
            if trainer.is_global_zero:
                name = type(trainer.strategy).__name__
                raise NotImplementedError(f"{name} spreads the weights, and one process cannot look alone")


def _batches(trainer: Trainer) -> int:
    """How many batches the network was trained on."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be at least 1, an integer, not {value!r}")
