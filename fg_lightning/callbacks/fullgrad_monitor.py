"""FullGradMonitor: records how saliency changes while Lightning trains a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Union
from weakref import WeakSet

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from fg_lightning.callbacks import callback_metrics
from fg_lightning.callbacks.probe_finder import ProbeChoice, ProbeFinder, ProbeRequest
from fg_lightning.callbacks.probe_source import reads_by_index, training_loader, validation_loader
from fg_lightning.callbacks.run_folder import run_folder
from fg_lightning.callbacks.trainer_limits import ends_averaged, is_barebones, is_sharded, refuse_sharding
from fg_lightning.callbacks.training_progress import Moment, Rhythm, num_batches
from fg_lightning.fullgrad import Psi
from fg_lightning.history import History, Snapshot
from fg_lightning.history.records import MAP_NUMBERS, NUMBERS
from fg_lightning.recording.called_module import Forward
from fg_lightning.recording.findings import Finding
from fg_lightning.recording.masks import MaskFunction
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.methods import Methods
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.recorder import FullGradRecorder
from fg_lightning.recording.settings import Settings
from fg_lightning.recording.task import ProbeTarget


class FullGradMonitor(Callback):
    """Explains the same held-out images all through training with FullGrad maps, and checks that the maps are complete.

    It takes a snapshot of the untrained network, after every `every_n_epochs`-th epoch or every `every_n_steps`-th step, and when
    training ends, but not in Lightning's sanity check. Each snapshot logs, with the same step and epoch as Lightning's own metrics
    of that moment:

    - `fullgrad/saliency`: each image under its map, with its class and the prediction (loggers that take images);
    - `fullgrad/completeness_error`, `fullgrad/completeness_error_max`: |f - sum of all terms| / |f|, mean and maximum over the
      images. If it is not near zero, do not trust the maps;
    - `fullgrad/input_share`, `fullgrad/bias_share`, `fullgrad/implicit_share`: the share of the output that each kind of term
      explains;
    - `fullgrad/drift`, `fullgrad/drift_from_untrained`: mean cosine distance to the maps of the snapshot before, and of the first;
    - `fullgrad/concentration`: mean Gini index of the maps, near 1 if few pixels count;
    - `fullgrad/border_share` and `fullgrad/top_left_share`, ...: share of the maps at the border and in each corner; with masks
      `fullgrad/relevance_mass` and `fullgrad/pointing_game`: share of the maps, and of their maxima, on the masks;
    - `fullgrad/table` (Weights & Biases): a row for each image and snapshot;
    - `<method>/saliency` and the numbers of maps, such as `gradcam/drift`, for each further method;

    It logs `fullgrad/film_strip` (a row per image, a column per snapshot) with snapshots 2, 4, 8, 16 and so on, and at the end. At
    the end it also logs `fullgrad/bias_terms` (a row per layer). It writes the same to `fullgrad/` in the run's folder, snapshot by
    snapshot. docs/reference/monitor.md describes the files and the content of a checkpoint.

    `ModelCheckpoint`, `EarlyStopping` and `ReduceLROnPlateau` find the numbers in `trainer.callback_metrics`.

    It does not affect training: the weights are bit for bit the same as without the monitor, unless the data set has a random state
    of its own. An error in a snapshot becomes a warning, given once, and training continues.

    The explained number of an image is its label's score; with several labels, the score of the first; with a single logit, the
    logit; with a label map, the mean score of its largest class (except class 0) over its region; otherwise the output or its mean.
    If a label is not a class of the output, the class that the network predicts in the first snapshot replaces it. See `task`, and
    docs/reference/monitor.md. Every method explains the same numbers of the same images.

    Args:
        methods: methods whose maps are shown: names in `fg_lightning.METHODS`, or functions that make an attribution of a model.
            That model returns the explained number of each image, [N]; the attribution's `attribute(images, target=None,
            additional_forward_args=...)` returns maps [N, 1, *S]. A mapping gives them names. The table shows the first method's
            maps. If a method fails, a warning names it and the others continue. Default: FullGrad. FullGrad's maps are always
            computed, because the numbers of the decomposition come with them.
        reading: "exact", or "locally_affine" to hold norms, attention weights and gates constant, as for transformers. Default:
            "exact".
        every_n_epochs: number of epochs between snapshots. Default: 1, unless `every_n_steps` is given.
        every_n_steps: number of optimizer steps between snapshots; with several optimizers, of batches. Default: None, by epochs.
        num_samples: number of images of the validation data, or of the training data if there is no other. Default: 8.
        probe: "balanced": equally many images of each class if the labels are known without reading a sample, otherwise evenly
            spread. "hardest": those of at most 512 images that the network gets most wrong after its first epoch; the first
            snapshot follows that epoch. A list of indices: these images of the validation data. Or images [N, C, *S] as the model
            takes them, (images, labels) or (images, labels, masks); images may be a tuple for several image inputs. Default: the
            result of a method `fullgrad_probe` of the datamodule or module, or "balanced".
        masks: a function of the probe's batch that returns where the network should look: masks or boxes in pixels, as in
            probe=(images, labels, masks). Default: those in a field of the batch called mask, boxes or the like, if there is one.
        target: what to explain instead: a class, one for each image, or a function from the module's output to [N]. Default: None.
        forward: a function of the module and the batch of the images that calls a module with more inputs than images. Default:
            the module is called on the images alone.
        psi: FullGrad's post-processing: "absolute", "positive", "signed" or a function; see `fg_lightning.FullGrad`. Default:
            "absolute".
        implicit: whether FullGrad's maps show the implicit biases of non-linearities. Default: True.
        normalization: (mean, std) of the channels, which is undone in pictures. Default: that of the data's transforms. Without
            it, each image is scaled by its own range.
        class_names: a name for each class. Default: those of the data set.
        task: what the output means: "classes" [N, K], "labels" [N, K] (an image may have several), "logit" [N] or [N, 1],
            "regions" [N, K, *S] or "number". Default: labels, losses, metrics and the data set decide. If they cannot, a message
            tells what is assumed.
        animation: whether to write `animation.gif`, the film strip in motion, when training ends. Default: False.
        alert: whether to send each finding once as an alert of Weights & Biases; see docs/findings.md. Default: False.
        report: whether to write `report.html` when training ends, as `fg-lightning report` does. Default: False.
        strict: whether to raise errors instead of warning. Default: False.

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
    """All attached monitors. A Trainer adds its monitor to the script's list of callbacks, where the next Trainer finds it."""

    has_met_training: ClassVar[bool] = False
    """Whether a fit had a monitor in this process; see attach.py."""

    is_superseded: bool = False
    """Whether a newer monitor replaces it. A script may pass one list of callbacks to several Trainers, and each adds a monitor."""

    def __init__(
        self,
        methods: Methods = ("fullgrad",),
        reading: str = "exact",
        every_n_epochs: Union[int, None] = None,
        every_n_steps: Union[int, None] = None,
        num_samples: int = 8,
        probe: ProbeRequest = None,
        masks: Union[MaskFunction, None] = None,
        target: ProbeTarget = None,
        forward: Union[Forward, None] = None,
        psi: Union[str, Psi] = "absolute",
        implicit: bool = True,
        normalization: Union[Sequence[Sequence[float]], None] = None,
        class_names: Union[Sequence[str], None] = None,
        task: Union[str, None] = None,
        animation: bool = False,
        alert: bool = False,
        report: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples must be an integer of at least 1, not {num_samples!r}")
        for name, value in {"strict": strict, "report": report}.items():
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, not {value!r}")
        self.rhythm = Rhythm(every_n_epochs, every_n_steps)
        self.num_samples = num_samples
        self.report = report
        self.strict = strict
        self.settings = Settings(
            psi=psi,
            target=target,
            task=task,
            forward=forward,
            normalization=normalization,
            class_names=class_names,
            animation=animation,
            methods=methods,
            implicit=implicit,
            reading=reading,  # type: ignore[arg-type]
            masks=masks,
            alert=alert,
        )
        self._asked = ProbeChoice.from_user(probe)
        self._is_asked = probe is not None
        self._reset()

    def _reset(self) -> None:
        self._messages = Messages("FullGradMonitor", self.strict, rank_zero_info)
        self._checkpoint: dict[str, Any] = {}
        self._recorder: FullGradRecorder | None = None
        self._is_disabled = False
        self._finder = ProbeFinder(
            self._asked, is_asked=self._is_asked, num_samples=self.num_samples, settings=self.settings, messages=self._messages
        )
        self._measured_at: int | None = None

    @property
    def history(self) -> History | None:
        """The snapshots so far; None before there are images to explain, and on all ranks except the first."""
        return None if self._recorder is None else self._recorder.history

    @property
    def probe(self) -> Probe | None:
        """The images; after the first snapshot, with the explained labels. None if `history` is None."""
        return None if self._recorder is None else self._recorder.probe

    @property
    def findings(self) -> list[Finding]:
        """The findings of the last snapshot; see docs/findings.md."""
        return [] if self._recorder is None else self._recorder.findings

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes a copy of an attached monitor count as attached, too: scripts may copy their list of callbacks."""
        self.__dict__.update(state)
        if self.attached_by is not None:
            self.all_attached.add(self)

    @property
    def state_key(self) -> str:
        """Two monitors of one Trainer have different keys, such as the script's own one and an attached one."""
        if self.attached_by is None:
            return "FullGradMonitor"
        if self.is_superseded:
            return self._generate_state_key(attached_by=self.attached_by, superseded=id(self))
        return self._generate_state_key(attached_by=self.attached_by)

    # --- the hooks, in the order in which Lightning calls them

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            FullGradMonitor.has_met_training = True
            self._reset()
            self._is_disabled = self._is_duplicate(trainer) or is_barebones(trainer, is_told=self.attached_by is None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._checkpoint = state_dict

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Streamed data is captured as validation reads it, in the sanity check or else after the first epoch."""
        if self._finder.awaits_loader:
            self._finder.awaits_loader = False
            with self._messages.errors_as_warnings():
                self._find_probe(trainer, pl_module)
        if self._finder.choice.given is None and self._lacks_probe(trainer) and not reads_by_index(validation_loader(trainer)):
            with self._messages.errors_as_warnings():
                self._start_recorder(trainer, None)  # a stream cannot be asked for the images of a checkpoint
                if self._recorder is None:
                    self._start_recorder(trainer, self._finder.from_stream(batch))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._messages.errors_as_warnings():
            if not self._is_disabled and is_sharded(trainer):
                self._is_disabled = True
                refuse_sharding(trainer)
            if self._lacks_probe(trainer):
                self._find_probe(trainer, pl_module, is_trained=trainer.current_epoch > 0)
            self._snapshot_if_due(Moment.of(trainer, pl_module), trainer, pl_module)
        self._publish(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._lacks_probe(trainer) and not trainer.enable_validation and not reads_by_index(training_loader(trainer)):
            with self._messages.errors_as_warnings():
                self._start_recorder(trainer, self._finder.from_stream(batch))
                self._snapshot_if_due(Moment.of(trainer, pl_module), trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Takes snapshots by steps. Callbacks that save a checkpoint after some steps read the numbers next."""
        if self.rhythm.every_n_steps is not None and self._recorder is not None:
            with self._messages.errors_as_warnings():
                moment = Moment.of(trainer, pl_module, after_batch=True)
                if not moment.is_end or not ends_averaged(trainer, self):
                    self._snapshot_if_due(moment, trainer, pl_module)
            self._publish(trainer)
        if self._is_read(trainer, callback_metrics.BATCH_END):
            self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publishes the numbers before `on_validation_end`, where callbacks before this one may read them."""
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
            if self._finder.awaits_epoch and self._lacks_probe(trainer):
                self._find_probe(trainer, pl_module, is_trained=True)
            self._snapshot_if_changed(Moment.of(trainer, pl_module), trainer, pl_module)
            self._conclude()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draws the snapshots up to a crash or Ctrl-C."""
        with Messages("FullGradMonitor").errors_as_warnings():
            self._conclude()

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint; see `FullGradRecorder.state_dict`."""
        state: dict[str, Any] = {}
        with self._messages.errors_as_warnings():
            if not self._is_disabled:
                state = self._checkpoint if self._recorder is None else self._recorder.state_dict()
        return state

    # --- what they do

    def _lacks_probe(self, trainer: Trainer) -> bool:
        return self._recorder is None and not self._is_disabled and trainer.state.fn == "fit" and trainer.is_global_zero

    def _find_probe(self, trainer: Trainer, module: LightningModule, *, is_trained: bool = False) -> None:
        """Finds the images to explain, and makes the recorder."""
        self._checkpoint = self._finder.check_checkpoint(self._checkpoint)
        indices = self._checkpoint.get("indices")
        self._start_recorder(trainer, self._finder.find(trainer, module, is_trained=is_trained, indices=indices))

    def _start_recorder(self, trainer: Trainer, probe: Probe | None) -> None:
        """Makes the recorder if there are images, from the run or from the checkpoint."""
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

    def _snapshot_if_due(self, moment: Moment, trainer: Trainer, module: LightningModule) -> None:
        """Takes the first snapshot, and after that one after every n-th epoch or step."""
        if self._recorder is not None and self.rhythm.is_due(moment, self._last_snapshot):
            self._snapshot(moment, trainer, module, is_last=moment.is_end)

    def _snapshot_if_changed(self, moment: Moment, trainer: Trainer, module: LightningModule) -> None:
        """Takes a snapshot when training ends, if the network changed since the last one; else checks the last one."""
        last = self._last_snapshot
        has_changed = last is None or (last.epoch, last.step) < (moment.epoch, moment.step) or ends_averaged(trainer, self)
        if self._recorder is not None and has_changed:
            self._snapshot(moment, trainer, module, is_last=True)
        elif self._recorder is not None:
            self._recorder.check_sanity(module)

    def _snapshot(self, moment: Moment, trainer: Trainer, module: LightningModule, *, is_last: bool) -> None:
        assert self._recorder is not None
        self._measured_at = num_batches(trainer)
        num_steps = self.rhythm.num_steps(moment)
        self._recorder.snapshot(module, step=moment.step, epoch=moment.epoch, num_steps=num_steps, is_last=is_last)

    @property
    def _last_snapshot(self) -> Snapshot | None:
        return None if self._recorder is None else next(reversed(self._recorder.history.snapshots), None)

    def _snapshot_after_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        with self._messages.errors_as_warnings():
            if self._finder.awaits_epoch and self._lacks_probe(trainer):
                self._find_probe(trainer, module, is_trained=True)
            moment = Moment.of(trainer, module, after_epoch=True)
            is_awaited = moment.epoch == trainer.max_epochs and ends_averaged(trainer, self)
            if (self.rhythm.every_n_steps is None or self._last_snapshot is None) and not is_awaited:
                self._snapshot_if_due(moment, trainer, module)
        self._publish(trainer)

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        """Publishes the numbers of the current weights. It neither logs nor stores them."""
        try:
            with self._messages.errors_as_warnings():
                if self._recorder is not None and self._measured_at != num_batches(trainer):
                    self._measured_at = num_batches(trainer)
                    self._recorder.measure(module)
        finally:  # the other processes wait for it
            self._publish(trainer, is_awaited=True)

    def _is_read(self, trainer: Trainer, moment: str) -> bool:
        return not self._is_disabled and callback_metrics.are_numbers_read(trainer, moment, self._keys)

    def _publish(self, trainer: Trainer, *, is_awaited: bool = False) -> None:
        """Puts the numbers where callbacks find them. In several processes, or if attached: only if a callback reads them."""
        if is_awaited or (trainer.world_size == 1 and self._recorder is not None and self.attached_by is None):
            callback_metrics.publish_numbers(trainer, {} if self._recorder is None else self._recorder.numbers, self._keys)

    @property
    def _keys(self) -> list[str]:
        """The log keys of all numbers, the same in every process."""
        of_methods = [f"{method}/{name}" for method in self.settings.further_methods for name in MAP_NUMBERS]
        return [*(f"fullgrad/{name}" for name in NUMBERS), *of_methods]

    def _conclude(self) -> None:
        strip = None if self._recorder is None else self._recorder.conclude()
        if strip is not None and self.report:
            from fg_lightning.report import write_report

            rank_zero_info(f"FullGradMonitor: report, see {write_report(strip.parent)}")

    def _is_duplicate(self, trainer: Trainer) -> bool:
        """Whether it is attached, and the Trainer has the script's own monitor or one that was attached later."""
        if self.attached_by is None:
            return False
        monitors = [callback for callback in getattr(trainer, "callbacks", []) if isinstance(callback, FullGradMonitor)]
        attached = [monitor for monitor in monitors if monitor.attached_by is not None]
        self.is_superseded = bool(attached) and attached[-1] is not self
        is_second = len(attached) < len(monitors)
        if is_second and not self.is_superseded:
            rank_zero_info(f"FullGradMonitor: the script has its own monitor, so the one of {self.attached_by} is disabled")
        return is_second or self.is_superseded
