"""FullGradRecorder: explains the same images repeatedly while a network trains, in any training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Union

from PIL import Image
from torch import Tensor, nn

from fg_lightning.fullgrad import TargetError
from fg_lightning.fullgrad.postprocess import Psi
from fg_lightning.fullgrad.readings import Reading
from fg_lightning.fullgrad.torch_internals import unwrap_model
from fg_lightning.history import Explanation, History, Snapshot
from fg_lightning.history.run_reader import unused_folder
from fg_lightning.loggers import log_for
from fg_lightning.recording.called_module import Forward
from fg_lightning.recording.dataset_metadata import DatasetMetadata
from fg_lightning.recording.explainer import Explainer, device_of
from fg_lightning.recording.findings import Finding
from fg_lightning.recording.findings_log import FindingsLog
from fg_lightning.recording.masks import MaskFunction
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.methods import FULLGRAD, Methods, describe_zero_maps
from fg_lightning.recording.output_evidence import Evidence
from fg_lightning.recording.probe import NoProbe, Probe
from fg_lightning.recording.resume import ProbeChanged, ResumedRun, pack_state
from fg_lightning.recording.run_description import describe_run, name_classes
from fg_lightning.recording.sanity_checks import SanityCheck
from fg_lightning.recording.settings import Settings
from fg_lightning.recording.snapshot_images import Renderer, describe_explained
from fg_lightning.recording.snapshot_numbers import map_numbers, snapshot_numbers
from fg_lightning.recording.task import ProbeTarget
from fg_lightning.visualization.image_grids import pil_to_rgb
from fg_lightning.visualization.saliency_overlay import Normalization, planar, to_rgb

MOSTLY_IMPLICIT = 0.9
"""If implicit biases explain a larger share of the output, a message suggests another reading."""


class FullGradRecorder:
    """Takes snapshots of a network while it trains, in any PyTorch loop.

    Each snapshot explains the same images: it computes their FullGrad maps, checks that they are complete, writes maps and
    numbers to a folder, and logs them. docs/reference/keys_and_files.md lists them. Training is not affected: the network,
    its gradients, the images and the random state are restored. An error in a snapshot becomes a warning. With several
    processes, use a recorder in only one of them. The arguments not listed here are those of `FullGradMonitor`.

    Args:
        folder: folder of the run. If it exists, the first free one of `..._1`, `..._2`, ... is used, unless `load_state_dict`
            continues the run in it. None: nothing is written.
        probe: images [N, C, *S], floating-point, as the network takes them, or (images, labels), or (images, labels, masks) with
            masks of where the network should look: [N, *S], boxes in pixels [N, 4], or a list of [k, 4]. For a network with several
            image inputs, images and masks are tuples. Default: None, the images of `load_state_dict`.
        loggers: Lightning's or Fabric's loggers, or runs of Weights & Biases. Default: none.
        data: a loader or data set, or several, in which the normalization and the classes are searched. Default: none.
        strict: whether to raise errors instead of warning. Default: False.
        messages: sends the messages of the recorder in the name of another object; replaces `strict`. Default: None.

    Attributes:
        history: the snapshots so far.
        numbers: numbers of the last explanation, by log key; empty if it failed.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if its value makes no sense, or `probe` holds no images (`NoProbe`).

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> with FullGradRecorder(None, torch.rand(4, 1, 8, 8), task="classes") as recorder:
        ...     for epoch in range(2):
        ...         _ = recorder.snapshot(model, step=10 * epoch, epoch=epoch)
        >>> [snapshot.title for snapshot in recorder.history.snapshots]
        ['untrained', 'epoch 1']
    """

    has_taken_snapshots: ClassVar[bool] = False
    """Whether a recorder took a snapshot in this process."""

    def __init__(
        self,
        folder: str | Path | None,
        probe: Union[Tensor, Sequence[Any], Probe, None] = None,
        *,
        psi: Union[str, Psi] = "absolute",
        target: ProbeTarget = None,
        task: str | None = None,
        forward: Forward | None = None,
        normalization: Normalization | Sequence[Sequence[float]] | None = None,
        class_names: Sequence[str] | None = None,
        animation: bool = False,
        methods: Methods = ("fullgrad",),
        implicit: bool = True,
        reading: Reading = "exact",
        masks: MaskFunction | None = None,
        alert: bool = False,
        loggers: Sequence[Any] = (),
        data: Any = (),
        strict: bool = False,
        messages: Messages | None = None,
    ) -> None:
        self._settings = Settings(
            psi, target, task, forward, normalization, class_names, animation, methods, implicit, reading, masks, alert
        )
        self._messages = messages or Messages(type(self).__name__, strict)
        self._folder = None if folder is None else Path(folder)
        self._fresh = None if probe is None else self._read_probe(probe if isinstance(probe, Probe) else Probe.from_user(probe))
        self._logs = [log_for(logger) for logger in loggers]
        self._findings = FindingsLog(self._messages, self._logs, alert=alert)
        self._data = data if isinstance(data, (list, tuple)) else (data,)  # a loader would be read
        self._metadata = DatasetMetadata()
        self._renderer: Renderer | None = None
        self._num_drawn = 0
        self._explainer: Explainer | None = None
        self._fingerprint = ""
        self.numbers: dict[str, float] = {}
        further = self._settings.further_methods
        self.history = History(None if self._folder is None else unused_folder(self._folder), methods=further)
        if self._fresh is not None:
            self._explainer, self._fingerprint = self._build_explainer(self._fresh), self._fresh.fingerprint()

    def __enter__(self) -> FullGradRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        with nullcontext() if kind is None else Messages(self._messages.speaker).errors_as_warnings():  # of two errors the first
            self.conclude()

    @property
    def probe(self) -> Probe | None:
        """The images; after the first snapshot, with the explained labels. None until the images are known."""
        return None if self._explainer is None else self._explainer.probe

    @property
    def findings(self) -> list[Finding]:
        """The findings of the last snapshot; see docs/findings.md."""
        return self._findings.findings

    # --- recording

    def snapshot(
        self, model: nn.Module, *, step: int, epoch: int, num_steps: int | None = None, is_last: bool = False
    ) -> Snapshot | None:
        """Explains the network, writes the result and logs it. If writing fails, the result is still logged.

        Args:
            model: the network. It may be wrapped by Fabric, DDP or torch.compile.
            step: the step at which the numbers are logged.
            epoch: number of epochs that the network was trained for; 0 is the untrained network.
            num_steps: number of steps that the network was trained for, if you take snapshots by steps. The snapshot is then
                called "step 40", otherwise "epoch 2". Default: None.
            is_last: whether this is the last snapshot. The pictures of the whole run are then logged with it, and `check_sanity`
                is called. Default: False.

        Returns:
            The snapshot with its numbers; None if the network could not be explained.
        """
        snapshot = None
        with self._messages.errors_as_warnings():
            model = unwrap_model(model)
            explanation = self._explain(model)
            self._renderer = self._renderer or self._begin(model, explanation)
            self._suggest_reading()
            snapshot = Snapshot(epoch, step, self.numbers, num_steps)
            for key, maps in explanation.method_maps.items():
                note = describe_zero_maps(key, self._settings.further_methods[key], maps, snapshot.title)
                self._messages.inform_once(note, f"zero maps of {key}")
            FullGradRecorder.has_taken_snapshots = True
            self._keep(snapshot, explanation, self._renderer, is_last=is_last)
            if self.history.snapshots[-1:] == [snapshot]:  # it could be kept
                self._findings.inspect(self.history, explanation, self._renderer.labels)
            if is_last:
                self.check_sanity(model)
        self._findings.is_outdated = snapshot is None
        return snapshot

    def _suggest_reading(self) -> None:
        """Tells what may help if non-linearities explain most of the output, with the first snapshot whose output is not zero."""
        share = self.numbers.get("fullgrad/implicit_share")
        if share is None or any("fullgrad/implicit_share" in earlier.numbers for earlier in self.history.snapshots):
            return
        if self._settings.reading == "exact" and share > MOSTLY_IMPLICIT:
            self._messages.inform(
                f"implicit biases of non-linearities explain {share:.0%} of the output. In transformers, hold norms, attention "
                'weights and gates constant: reading="locally_affine". If the output is a softmax or sigmoid, explain the logits'
            )

    def measure(self, model: nn.Module) -> dict[str, float]:
        """The numbers of the network by log key, without a snapshot; empty if it could not be explained."""
        with self._messages.errors_as_warnings():
            self._explain(unwrap_model(model))
        return self.numbers

    def check_sanity(self, model: nn.Module) -> Mapping[str, SanityCheck]:
        """Compares the maps of the last snapshot with those of random weights and of the next class, and reports findings.

        Each method explains the probe twice more. Repeated calls check a snapshot once. The network is not changed: a copy of it
        gets the random weights.

        Args:
            model: the network as it was at that snapshot.

        Returns:
            The checks by method; empty before the first snapshot and after an error.
        """
        if self._explainer is None:
            return {}
        return self._findings.check_sanity(self.history, self._explainer, self._settings.further_methods, unwrap_model(model))

    def conclude(self, model: nn.Module | None = None) -> Path | None:
        """Draws the pictures of the whole run and logs them. Repeated calls draw them only if there are new snapshots.

        Args:
            model: the network of the last snapshot, for `check_sanity`. Default: None, for no further checks.

        Returns:
            The path of the film strip; None if there are no snapshots, no folder, or an error.
        """
        history = self.history
        if model is not None:
            self.check_sanity(model)
        self._findings.conclude()
        if not history.snapshots or history.folder is None or self._renderer is None:
            return None
        with self._messages.errors_as_warnings():
            if self._num_drawn != len(history.snapshots):
                pictures = self._draw_run(self._renderer)
                for log in self._logs:
                    with self._messages.errors_as_warnings():
                        log.conclude(pictures, history.snapshots[-1].step)
            lost = f"; {history.num_unwritten} more could not be written" if history.num_unwritten else ""
            count = f"{len(history.snapshots)} snapshot{'s' * (len(history.snapshots) > 1)}"
            self._messages.inform(f"{count}, see {history.strip_path}{lost}")
            return history.strip_path
        return None

    # --- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: tensors and plain values, without the maps. Empty before the first snapshot."""
        explainer = self._explainer
        if not self.history.snapshots or explainer is None or explainer.task is None:
            return {}
        settings, probe = self._settings.identity(), explainer.probe
        return pack_state(self.history, probe, explainer.task, self._fingerprint, settings, explainer.labels)

    def load_state_dict(self, state_dict: dict[str, Any], *, is_same_run: bool = True) -> None:
        """Continues the run that a checkpoint belongs to. Call it before the first snapshot.

        If the probe, or a setting that changes the maps, differs from that run, the recorder warns and begins a new history.

        Args:
            state_dict: the state of a recorder; see `state_dict`.
            is_same_run: whether to continue in the earlier folder if it is beside this one's; else it is copied. Default: True.
        """
        if not state_dict:
            return
        resumed, fresh = ResumedRun.from_state(state_dict), self._fresh
        if resumed.damage is not None:
            self._messages.warn(resumed.damage, "the run continues with the numbers of the checkpoint and the maps that are left")
        needs_fresh = self._settings.forward is not None or (fresh is not None and fresh.is_given)
        probe, changed = resumed.choose_probe(fresh, self._settings.identity(), needs_fresh=needs_fresh)
        if changed is not None:
            consequence = "a new history begins" if probe is None else "the images of the checkpoint are still explained"
            self._messages.warn(ProbeChanged(f"since the checkpoint was written, {changed}"), consequence)
        if probe is not None:
            self.history = resumed.history(self._folder, is_same_run=is_same_run)
            self._explainer, self._fingerprint = self._build_explainer(probe, resumed), resumed.fingerprint
            self._renderer = None
            self._findings.resume(self.history.folder)

    def _read_probe(self, probe: Probe) -> Probe:
        """The probe on the CPU, with its masks, or without if they do not fit."""
        probe = probe.to("cpu")
        try:
            return probe.with_masks(self._settings.masks)
        except Exception as error:  # also in the user's function
            self._messages.warn(error, "so there are no masks, and training continues")
            return replace(probe, unread_masks=None, masks=None, masks_from="")

    def _build_explainer(self, probe: Probe, resumed: ResumedRun | None = None) -> Explainer:
        chosen, task = self._settings, None if resumed is None else resumed.task
        how = chosen.psi, chosen.target, chosen.forward, chosen.task, task
        explainer = Explainer(probe, *how, self._read_evidence, chosen.implicit, chosen.reading)
        if resumed is not None:
            explainer.labels = resumed.shown_labels
        return explainer

    def _read_evidence(self, model: nn.Module) -> Evidence:
        names = self._settings.class_names
        return Evidence.from_model(model, self._metadata.class_counts(), () if names is None else (len(names),))

    def _explain(self, model: nn.Module) -> Explanation:
        """Explains the probe and sets `numbers`, which are empty if that fails.

        Raises:
            NoProbe: if there are no images.
        """
        self.numbers = {}
        if self._explainer is None:
            raise NoProbe("there are no images to explain; pass them: probe=(images, labels)")
        if self._renderer is None:
            self._metadata = DatasetMetadata.from_model(model, *self._data)
        explanation = self._explainer.explain(model, device_of(model))
        explanation = replace(explanation, method_maps=self._draw_methods(self._explainer, model))
        self.numbers = self._measure(explanation)
        return explanation

    def _draw_methods(self, explainer: Explainer, model: nn.Module) -> dict[str, Tensor]:
        """The maps of further methods, by key. A method that fails does not stop the others."""
        maps: dict[str, Tensor] = {}
        for key, method in self._settings.further_methods.items():
            with self._messages.errors_of(key):
                maps[key] = explainer.draw_maps(method, model, device_of(model))
        return maps

    def _measure(self, explanation: Explanation) -> dict[str, float]:
        """The numbers of an explanation, of all methods, against the snapshots before."""
        history = self.history
        starts_untrained = bool(history.snapshots) and history.snapshots[0].is_untrained
        masks = None if self.probe is None else self.probe.masks
        numbers = snapshot_numbers(explanation, history.last_maps, history.first_maps if starts_untrained else None, masks)
        for key, maps in explanation.method_maps.items():
            method = history.methods[key]
            untrained, is_one = method.first_maps if starts_untrained else None, explanation.num_inputs == 1
            numbers |= map_numbers(maps, method.last_maps, untrained, key, masks, has_border=is_one)
        return numbers

    def _keep(self, snapshot: Snapshot, explanation: Explanation, renderer: Renderer, *, is_last: bool) -> None:
        """Writes and logs a snapshot."""
        shown = [method for method in self._settings.method_keys if method == FULLGRAD or method in explanation.method_maps]
        of_methods = {method: renderer.pictures(snapshot, explanation, method) for method in shown}
        has_viewer = any(log.takes_pictures for log in self._logs)
        with self._messages.errors_as_warnings():
            self.history.add(snapshot, explanation, renderer.labels)
            for method, pictures in of_methods.items() if not has_viewer else ():
                self.history.add_sheet(snapshot, pil_to_rgb(pictures.sheet), method)
        of_run: dict[str, Image.Image | Path] = {}
        with self._messages.errors_as_warnings():
            if is_last:
                of_run = self._draw_run(renderer)
            elif has_viewer and self._is_strip_due():
                of_run = dict(renderer.draw_strips(self.history, self._settings.method_keys))
        shown_pictures = list(of_methods.values())  # none if all methods failed that are shown
        logged = replace(shown_pictures[0], more=shown_pictures[1:], of_run=of_run) if shown_pictures else None
        numbers = {"epoch": max(snapshot.epoch - 1, 0), **snapshot.numbers}  # loggers count epochs from 0
        for log in self._logs:
            with self._messages.errors_as_warnings():
                log.log(numbers, logged, snapshot.step)
                if logged is None and of_run:
                    log.conclude(of_run, snapshot.step)

    def _is_strip_due(self) -> bool:
        """Whether the film strip is logged during training: with snapshots 2, 4, 8, 16 and so on."""
        num_snapshots = len(self.history.snapshots)
        return num_snapshots > 1 and num_snapshots.bit_count() == 1

    def _draw_run(self, renderer: Renderer) -> dict[str, Image.Image | Path]:
        """The pictures of the whole run, by the keys under which they are logged."""
        pictures = renderer.draw_run(self.history, self._settings.method_keys, with_animation=self._settings.animation)
        self._num_drawn = len(self.history.snapshots)
        return pictures

    def _begin(self, model: nn.Module, explanation: Explanation) -> Renderer:
        """After the first explanation: decides how to draw, writes the start of the history, and informs the user."""
        explainer = self._explainer
        assert explainer is not None
        if explainer.misfit is not None:
            self._messages.warn(TargetError(explainer.misfit), "so the predicted classes of the first snapshot are explained")
        if explainer.assumed is not None:
            self._messages.inform(explainer.assumed)
        probe, normalization = explainer.probe, self._settings.normalization
        with self._messages.errors_as_warnings():
            normalization = normalization or self._metadata.normalization(probe.images)
        assert normalization is None or isinstance(normalization, Normalization)
        pictures = [to_rgb(image, normalization) for image in planar(probe.images)]
        classes = name_classes(explanation.num_classes, self._settings, self._metadata, self._messages)
        if self._folder not in (None, self.history.folder) and not self.history.snapshots:
            self._messages.inform(f"{self._folder} exists, so the run is in {self.history.folder}; load_state_dict continues a run")
        explained = describe_explained(explainer.task, self._settings.target, explainer.labels, classes)
        renderer = Renderer(probe.images, pictures, explainer.labels, normalization, classes, probe.masks, explained)
        with self._messages.errors_as_warnings():
            task = type(explainer.task).__name__
            about = describe_run(type(model).__qualname__, task, self._fingerprint, self._settings, probe, renderer)
            self.history.begin(about, probe.images, probe.labels, pictures, probe.masks)
            if probe.masks is not None and not probe.is_given:
                self._messages.inform(f"masks of where the network should look are {probe.masks_from}")
            blind = ", ".join(type(log.logger).__name__ for log in self._logs if not log.takes_pictures)
            if blind and self.history.folder is not None:
                sees_none = not any(log.takes_pictures for log in self._logs)
                where = f"; the overlays go to {self.history.folder / 'saliency'}" if sees_none else ""
                self._messages.inform(f"{blind} takes no images and gets only the numbers{where}")
        return renderer
