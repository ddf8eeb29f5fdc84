"""FullGradMonitor: records how saliency changes while Lightning trains a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, Union
from weakref import WeakSet

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from fg_lightning.callbacks import callback_metrics
from fg_lightning.callbacks.probe_source import load_probe, reads_by_index, training_loader, validation_loader
from fg_lightning.fullgrad import Psi
from fg_lightning.history import History
from fg_lightning.recording.explainer import Forward
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.recorder import FullGradRecorder
from fg_lightning.recording.settings import Settings
from fg_lightning.recording.task import ProbeTarget

SHARDING_STRATEGIES = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class FullGradMonitor(Callback):
    """Explains the same held-out images all through training with FullGrad maps, and checks that the maps are complete.

    It takes a snapshot of the untrained network, after every `every_n_epochs`-th epoch and when training ends, never in the sanity
    check. Each snapshot logs, at the step and with the epoch at which Lightning logs an epoch's own metrics:

    - `fullgrad/saliency`: each image under its map, with its class and the prediction (loggers that take images);
    - `fullgrad/completeness_error`, `fullgrad/completeness_error_max`: |f - sum of all terms| / |f|, mean and maximum over the
      images. If it is not near zero, do not trust the maps;
    - `fullgrad/input_share`, `fullgrad/bias_share`, `fullgrad/implicit_share`: the share of the output that each kind of term
      explains;
    - `fullgrad/drift`, `fullgrad/drift_from_untrained`: mean cosine distance to the maps of the snapshot before, and of the first;
    - `fullgrad/concentration`: mean Gini index of the maps, near 1 if few pixels count;
    - `fullgrad/table` (Weights & Biases): a row for each image and snapshot;

    and at the end `fullgrad/film_strip` (a row per image, a column per snapshot) and `fullgrad/bias_terms` (a row per layer). The
    same is written to `fullgrad/` in the run's folder, snapshot by snapshot. docs/monitor.md describes the files and what a
    checkpoint keeps.

    `ModelCheckpoint`, `EarlyStopping` and `ReduceLROnPlateau` find the numbers in `trainer.callback_metrics`.

    It does not affect training: weights come out bit for bit as without the monitor, unless the data set has a random state of its
    own. An error in a snapshot becomes a warning, given once, and training continues.

    What is explained: the label's score; with several labels that of the first; of a single logit the logit; of a label map the
    mean score of its largest class (except class 0) over its region; of anything else the output, or its mean. If labels fit no
    class of the output, it is the class that the network predicts in the first snapshot. See `task`, and docs/monitor.md.

    Args:
        every_n_epochs: number of epochs between snapshots.
        num_samples: number of images, evenly spread over the validation data, or over the training data if there is no other.
        probe: images [N, C, *S] as the model takes them, or (images, labels), instead of images from the data.
        target: what to explain instead: a class, one for each image, or a function from the module's output to [N].
        forward: how to call a module that takes more than the images: a function of the module and the batch they are part of.
            Default: the module is called on the images alone.
        psi: FullGrad's post-processing: "absolute", "positive", "signed" or a function; see `fg_lightning.FullGrad`.
        normalization: (mean, std) of the channels, to show the images as they were. Default: that of the data's transforms, or
            else each image's own range.
        class_names: one for each class. Default: those of the data set.
        task: what the output means: "classes" [N, K], "labels" [N, K] (an image may have several), "logit" [N] or [N, 1],
            "regions" [N, K, *S] or "number". Default: the labels, the losses, the metrics and the data set decide. If they do
            not, a message says what is assumed.
        animation: also write `animation.gif` when training ends: the film strip in motion.
        report: also write `report.html` when training ends, as `fg-lightning report` does. It works offline.
        strict: raise errors instead of warning.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if its value makes no sense.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[FullGradMonitor(every_n_epochs=5)], logger=False)
    """

    attached_by: str | None = None
    """The environment variable that attached it; None if a script did. See attach.py."""

    all_attached: ClassVar[WeakSet[FullGradMonitor]] = WeakSet()
    """Those attached so far. A Trainer adds its monitor to the script's list of callbacks, where the next Trainer finds it."""

    is_superseded: bool = False
    """Whether a newer one was attached: a script may give one list of callbacks to several Trainers, and each Trainer adds one."""

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_samples: int = 8,
        probe: Union[Tensor, tuple[Tensor, Tensor], None] = None,
        target: ProbeTarget = None,
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
        for name, value in {"every_n_epochs": every_n_epochs, "num_samples": num_samples}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be at least 1, an integer, not {value!r}")
        for name, value in {"strict": strict, "report": report}.items():
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, not {value!r}")
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.report = report
        self.strict = strict
        self.settings = Settings(psi, target, task, forward, normalization, class_names, animation)
        self._given = None if probe is None else Probe.from_user(probe)
        self._reset()

    def _reset(self) -> None:
        self._messages = Messages("FullGradMonitor", self.strict, rank_zero_info)
        self._checkpoint: dict[str, Any] = {}
        self._recorder: FullGradRecorder | None = None
        self._is_disabled = False
        self._awaits_loader = False
        self._measured_at: int | None = None

    @property
    def history(self) -> History | None:
        """The snapshots so far; None before there are images to explain, and on all ranks except the first."""
        return None if self._recorder is None else self._recorder.history

    @property
    def probe(self) -> Probe | None:
        """The images, with the labels that are explained once there is a snapshot; None if `history` is."""
        return None if self._recorder is None else self._recorder.probe

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy of an attached monitor, such as a script makes of its list of callbacks, is attached, too."""
        self.__dict__.update(state)
        if self.attached_by is not None:
            self.all_attached.add(self)

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
            self._reset()
            self._is_disabled = self._is_duplicate(trainer) or self._is_barebones(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._checkpoint = state_dict

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Streamed data is captured as validation reads it, in the sanity check or else after the first epoch."""
        if self._awaits_loader:
            self._awaits_loader = False
            with self._messages.errors_as_warnings():
                self._start_recorder(trainer, self._find_probe(trainer, pl_module))
        if self._given is None and self._lacks_probe(trainer) and not reads_by_index(validation_loader(trainer)):
            with self._messages.errors_as_warnings():
                self._start_recorder(trainer, None)  # a stream cannot be asked for the images of a checkpoint
                if self._recorder is None:
                    self._start_recorder(trainer, self._probe_from_batch(batch))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._messages.errors_as_warnings():
            self._disable_if_sharded(trainer)
            if self._lacks_probe(trainer):
                self._start_recorder(trainer, self._find_probe(trainer, pl_module))
            self._snapshot_if_due(trainer, pl_module, trainer.current_epoch)
        self._publish(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._lacks_probe(trainer) and not trainer.enable_validation and not reads_by_index(training_loader(trainer)):
            with self._messages.errors_as_warnings():
                self._start_recorder(trainer, self._probe_from_batch(batch))
                self._snapshot_if_due(trainer, pl_module, trainer.current_epoch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A checkpoint that is saved after a number of steps reads the numbers next."""
        if self._is_read(trainer, callback_metrics.BATCH_END):
            self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A callback that reads the numbers when validation ends may stand before this one then, but not here."""
        if trainer.state.fn == "fit" and trainer.validating and self._is_read(trainer, callback_metrics.VALIDATION_END):
            try:
                if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                    self._snapshot_after_epoch(trainer, pl_module)
            finally:
                self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self._snapshot_after_epoch(trainer, pl_module)
        finally:
            if self._is_read(trainer, callback_metrics.EPOCH_END):
                self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._messages.errors_as_warnings():
            self._snapshot_if_due(trainer, pl_module, trainer.current_epoch, is_last=True)
            self._conclude()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The snapshots up to a crash or Ctrl-C are drawn, too."""
        with Messages("FullGradMonitor").errors_as_warnings():
            self._conclude()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; see `FullGradRecorder.state_dict`."""
        state: dict[str, Any] = {}
        with self._messages.errors_as_warnings():
            if not self._is_disabled:
                state = self._checkpoint if self._recorder is None else self._recorder.state_dict()
        return state

    # --- what they do

    def _lacks_probe(self, trainer: Trainer) -> bool:
        return self._recorder is None and not self._is_disabled and trainer.state.fn == "fit" and trainer.is_global_zero

    def _find_probe(self, trainer: Trainer, module: LightningModule) -> Probe | None:
        """The images to explain; None if the data can only be streamed."""
        if self._given is not None:
            return self._given
        loader = validation_loader(trainer)
        if not trainer.enable_validation:
            loader = training_loader(trainer)
            rank_zero_info("FullGradMonitor: there is no validation data, so the images that it explains are training data")
        self._awaits_loader = loader is None and trainer.enable_validation
        if not reads_by_index(loader):
            return None
        return load_probe(loader, self.num_samples, trainer, module, with_batch=self.settings.forward is not None)

    def _probe_from_batch(self, batch: Any) -> Probe:
        return Probe.from_batch(batch, self.num_samples, with_batch=self.settings.forward is not None)

    def _start_recorder(self, trainer: Trainer, probe: Probe | None) -> None:
        """Makes the recorder as soon as there are images, the run's own or the checkpoint's."""
        if probe is None and not self._checkpoint:
            return
        recorder = FullGradRecorder(
            None if getattr(trainer, "fast_dev_run", False) else run_folder(trainer),
            probe,
            **vars(self.settings),
            loggers=trainer.loggers,
            data=(trainer.val_dataloaders, trainer.train_dataloader, getattr(trainer, "datamodule", None)),
            messages=self._messages,
        )
        recorder.load_state_dict(self._checkpoint, is_same_run=trainer.logger is not None)
        if recorder.probe is not None:
            self._recorder = recorder

    def _snapshot_if_due(self, trainer: Trainer, module: LightningModule, epoch: int, *, is_last: bool = False) -> None:
        """Takes a snapshot: the first; after every n-th epoch; and at the end, if the network changed since the last one."""
        if self._recorder is None:
            return
        last, step = next(reversed(self._recorder.history.snapshots), None), logging_step(trainer, module, epoch)
        is_due = last is None or (last.epoch < epoch and epoch % self.every_n_epochs == 0)
        has_changed = last is not None and ((last.epoch, last.step) < (epoch, step) or self._ends_averaged(trainer))
        if is_due or (is_last and has_changed):
            self._measured_at = num_batches(trainer)
            is_last = is_last or trainer.should_stop or epoch == trainer.max_epochs
            self._recorder.snapshot(module, step=step, epoch=epoch, is_last=is_last)

    def _snapshot_after_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        with self._messages.errors_as_warnings():
            if epoch != trainer.max_epochs or not self._ends_averaged(trainer):
                self._snapshot_if_due(trainer, module, epoch)
        self._publish(trainer)

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        """Publishes the numbers of the current weights; if no snapshot is due, they are neither logged nor kept."""
        try:
            with self._messages.errors_as_warnings():
                if self._recorder is not None and self._measured_at != num_batches(trainer):
                    self._measured_at = num_batches(trainer)
                    self._recorder.measure(module)
        finally:  # the other processes wait for it
            self._publish(trainer, is_awaited=True)

    def _is_read(self, trainer: Trainer, moment: str) -> bool:
        return not self._is_disabled and callback_metrics.are_numbers_read(trainer, moment)

    def _publish(self, trainer: Trainer, *, is_awaited: bool = False) -> None:
        """Puts the numbers where callbacks find them; in several processes and if attached only if a callback reads them."""
        if is_awaited or (trainer.world_size == 1 and self._recorder is not None and self.attached_by is None):
            callback_metrics.publish_numbers(trainer, {} if self._recorder is None else self._recorder.numbers)

    def _conclude(self) -> None:
        strip = None if self._recorder is None else self._recorder.conclude()
        if strip is not None and self.report:
            from fg_lightning.report import write_report

            rank_zero_info(f"FullGradMonitor: report, see {write_report(strip.parent)}")

    def _ends_averaged(self, trainer: Trainer) -> bool:
        """Whether a callback that is called before this one replaces the weights by averages when training ends."""
        before = takewhile(lambda callback: callback is not self, getattr(trainer, "callbacks", []))
        return any(kind.__name__ == "WeightAveraging" for callback in before for kind in type(callback).__mro__)

    def _is_duplicate(self, trainer: Trainer) -> bool:
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

    def _is_barebones(self, trainer: Trainer) -> bool:
        """Whether the Trainer forbids everything that costs time."""
        is_barebones = bool(getattr(trainer, "barebones", False))
        if is_barebones and self.attached_by is None:
            rank_zero_warn("FullGradMonitor: Trainer(barebones=True) disables it, because it costs time; remove one of the two")
        return is_barebones

    def _disable_if_sharded(self, trainer: Trainer) -> None:
        """
        Raises:
            NotImplementedError: on the first rank, if the weights are spread over processes.
        """
        if not self._is_disabled and any(kind.__name__ in SHARDING_STRATEGIES for kind in type(trainer.strategy).__mro__):
            self._is_disabled = True
            if trainer.is_global_zero:
                name = type(trainer.strategy).__name__
                raise NotImplementedError(
                    f"{name} spreads the weights over processes, which is not supported; the monitor is disabled"
                )


def run_folder(trainer: Trainer) -> Path:
    """`fullgrad/` beside the run's checkpoints; without a logger `fullgrad/version_0/` in the default root.

    A run whose files lie elsewhere (s3://...) gets a folder in the working directory.
    """
    logger, root = trainer.logger, str(trainer.default_root_dir)
    log_dir = getattr(logger, "log_dir", None)
    places = [getattr(logger, name, None) for name in ("save_dir", "name", "version")]
    if isinstance(log_dir, (str, Path)):
        folder = os.path.join(log_dir, "fullgrad")
    elif logger is None or not all(place is None or isinstance(place, (str, int, Path)) for place in (log_dir, *places)):
        folder = os.path.join(root, "fullgrad", "version_0")  # the name of a mock, for example, is not text
    else:
        save_dir, name, version = places
        version = version if isinstance(version, str) else f"version_{version}"
        folder = os.path.join(save_dir or root, str(name), version, "fullgrad")
    return Path("fullgrad", "version_0") if "://" in folder else Path(folder)


def logging_step(trainer: Trainer, module: LightningModule, epoch: int) -> int:
    """The step at which Lightning logs what belongs to the current weights.

    After `epoch` epochs it is the last step, with which Lightning logs the epoch's own metrics; in the first epoch the next one.
    Steps are batches, or with accumulated gradients the batches after which the optimizer steps.
    """
    # The step of Lightning's loggers, private as of Lightning 2.6; `global_step` counts the steps of all optimizers.
    stepped: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    stepped += bool(trainer.validating)  # Lightning counts a batch when its validation is over
    if module.automatic_optimization:
        stepped = max(stepped, trainer.global_step)  # a checkpoint that was saved in validation has counted one less
    return max(stepped - 1, 0) if epoch else stepped


def num_batches(trainer: Trainer) -> int:
    """Number of batches that the network was trained on."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready
