"""Records the snapshots of a finished training from its checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fg_lightning.atomic_files import replace_file
from fg_lightning.callbacks.probe_finder import HARDEST
from fg_lightning.checkpoints import one_line, read_checkpoint
from fg_lightning.errors import CannotRun
from fg_lightning.explain.checkpoint_network import CheckpointNetwork
from fg_lightning.explain.load_network import advise_grey
from fg_lightning.history import History
from fg_lightning.recording.checkpoint_series import Checkpoint, CheckpointSeries
from fg_lightning.recording.dataset_metadata import DatasetMetadata
from fg_lightning.recording.explainer import Explainer
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.output_evidence import Evidence
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.recorder import FullGradRecorder
from fg_lightning.recording.resume import ProbeChanged
from fg_lightning.recording.settings import Settings
from fg_lightning.recording.task import Classes, Task

STATE = "checkpoints.pt"
"""File with the names of the recorded checkpoints and the state of the recorder."""

Track = Callable[[Sequence[Checkpoint]], Iterable[Checkpoint]]


@dataclass
class Recorded:
    """The result of `record_checkpoints`.

    Attributes:
        history: history of all checkpoints so far.
        num_new: number of new snapshots.
        skipped: for each skipped checkpoint, by path, the reason.
    """

    history: History
    num_new: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)


class Notes(Messages):
    """Shows the errors and notes of a recorder as lines, each once.

    Args:
        show: function that shows a line.

    Attributes:
        last_error: the last error of the recorder. None if there was none.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__("FullGradRecorder")
        self.last_error: Exception | None = None
        self._show = show
        self._shown: set[str] = set()

    def warn(self, error: Exception, consequence: str = "", method: str = "") -> None:
        """Shows an error as a note.

        Raises:
            ProbeChanged: if the error is one: it ends the command.
        """
        if isinstance(error, ProbeChanged):
            raise error
        self.last_error = error
        self.inform(f"{type(error).__name__}: {one_line(error)}" + (f" ({consequence})" if consequence else ""))

    def inform(self, note: str) -> None:
        note = re.sub(r'(\w+)="(\w+)"(?: or "(\w+)")?', _as_option, note)
        if note not in self._shown:
            self._shown.add(note)
            self._show(note)


def _as_option(argument: re.Match[str]) -> str:
    """An argument in Python's notation, with one value or two, as an option of the command line."""
    name, *values = argument.groups()
    return " or ".join(f"--{name} {value}" for value in values if value is not None)


def check_options(options: Mapping[str, Any]) -> Settings:
    """The settings of the explanation, from options of `FullGradRecorder`.

    Raises:
        CannotRun: if an option is invalid.
    """
    try:
        return Settings(**options)
    except (TypeError, ValueError) as error:
        raise CannotRun(str(error)) from error


def load_last(network: CheckpointNetwork, checkpoints: Sequence[Checkpoint]) -> nn.Module:
    """The network of the last checkpoint that can be loaded.

    Raises:
        CannotRun: if none can be loaded.
    """
    failures: list[CannotRun] = []
    for checkpoint in reversed(checkpoints):
        try:
            return network.load(checkpoint.path)
        except CannotRun as error:  # noqa: PERF203
            failures.append(error)
    raise failures[0]


def record_checkpoints(
    series: CheckpointSeries,
    network: CheckpointNetwork,
    probe: Probe,
    output: Path,
    data: Sequence[Any] = (),
    loggers: Callable[[], Sequence[Any]] = tuple,
    added_to: str | None = None,
    device: torch.device | str = "cpu",
    track: Track = iter,
    notes: Notes | None = None,
    **options: Any,
) -> Recorded:
    """Takes a snapshot of each new checkpoint, in a folder like that of a monitored run.

    Without labels and target, the class is explained that the last network predicts.

    Args:
        series: the checkpoints.
        network: loads their networks.
        probe: the images.
        output: the folder.
        data: objects that hold the normalization and the classes.
        loggers: makes the loggers of the recorder. It is called after all other checks.
        added_to: the Weights & Biases run that they log to. The folder's snapshots can be logged to one run only.
        device: device of the networks.
        track: shows the progress.
        notes: shows errors and notes. Default: prints them.
        options: options of `FullGradRecorder`.

    Raises:
        CannotRun: if the folder holds anything else, no checkpoint can be explained, or an option is invalid.
    """
    state = _read_state(output, series)
    if state and added_to not in (None, state.get("added_to")):
        raise CannotRun(f"{output} already holds snapshots, and they cannot be logged again; give another --output")
    done: list[str] = list(state.get("done", ()))
    new, skipped = _split(series, done, state.get("last", -1))
    notes = notes or Notes(print)
    if probe.labels is None and options.get("target") is None and new:
        options["target"] = state["target"] if state else _last_prediction(new, network, probe, device, data, options, notes)
    fresh = None if state and probe.chosen.startswith(HARDEST) else probe  # an earlier network chose the hardest
    try:
        for makes in (tuple, loggers):  # the first pass checks everything before a run is started
            recorder = FullGradRecorder(output, fresh, data=list(data), loggers=makes(), messages=notes, **options)
            if state:
                recorder.load_state_dict({**state["recorder"], "folder": str(output.resolve())})
    except ProbeChanged as error:
        raise CannotRun(
            f"{output} cannot be continued: {error}; use the same options as before, or give another --output"
        ) from error
    except (TypeError, ValueError) as error:
        raise CannotRun(str(error)) from error
    recorded = Recorded(recorder.history, skipped={**series.skipped, **skipped})
    with recorder:
        for checkpoint in track(new):
            notes.last_error = None
            try:
                model = network.load(checkpoint.path).to(device)
            except CannotRun as error:
                recorded.skipped[checkpoint.path] = str(error)
                continue
            snapshot = recorder.snapshot(
                model, step=checkpoint.step, epoch=checkpoint.epoch, num_steps=checkpoint.num_steps, is_last=checkpoint is new[-1]
            )
            if snapshot is None:
                recorded.skipped[checkpoint.path] = (
                    f"{checkpoint.path.name} could not be explained: {advise_grey(one_line(str(notes.last_error)))}"
                )
                continue
            recorded.num_new += 1
            done.append(checkpoint.path.name)
            if output.is_dir():
                with replace_file(output / STATE) as file:
                    kept = {"done": done, "last": checkpoint.order[0], "target": options.get("target"), "added_to": added_to}
                    torch.save({**kept, "recorder": recorder.state_dict()}, file)
    if not recorder.history.snapshots:
        if not recorded.skipped:
            raise CannotRun(f"{output} cannot be written ({one_line(str(notes.last_error))}); give another --output")
        tried = {path: reason for path, reason in recorded.skipped.items() if path not in series.skipped} or recorded.skipped
        path, reason = next(iter(tried.items()))
        raise CannotRun(f"no checkpoint could be explained. The first, {path.name}: {reason.removeprefix(f'{path.name} ')}")
    return recorded


def _read_state(output: Path, series: CheckpointSeries) -> Mapping[str, Any]:
    """The state that an earlier command saved. Empty if there is none.

    Raises:
        CannotRun: if the folder holds anything else.
    """
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    if not output.exists():
        return {}
    if not (output / STATE).is_file():
        raise CannotRun(f"{output} exists already and was not made from checkpoints; give another --output")
    state = read_checkpoint(output / STATE)
    names = {checkpoint.path.name for checkpoint in series.checkpoints}
    if not {"done", "last", "recorder"} <= state.keys():
        raise CannotRun(f"{output / STATE} is damaged; give another --output")
    if names.isdisjoint(state["done"]):
        raise CannotRun(f"{output} was made from other checkpoints, such as {state['done'][0]}; give another --output")
    return state


def _split(series: CheckpointSeries, done: Sequence[str], last: int) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The checkpoints to record, and the reasons why others that are not recorded are skipped."""
    left = [checkpoint for checkpoint in series.checkpoints if checkpoint.path.name not in done]
    early = [checkpoint for checkpoint in left if checkpoint.order[0] <= last]
    reason = "was written before the last recorded one; to add it, record all with another --output"
    return [c for c in left if c not in early], {c.path: f"{c.path.name} {reason}" for c in early}


def _last_prediction(
    checkpoints: Sequence[Checkpoint],
    network: CheckpointNetwork,
    probe: Probe,
    device: torch.device | str,
    data: Sequence[Any],
    options: Mapping[str, Any],
    notes: Notes,
) -> list[int] | None:
    """The classes that the last network predicts. None if its output has no classes, or it cannot be explained.

    An output [N, K] of unknown meaning counts as scores of classes, as in `fg-lightning explain`.
    """
    names = options.get("class_names")

    def read_evidence(model: nn.Module) -> Evidence:
        counts = DatasetMetadata.from_model(model, *data).class_counts()
        return Evidence.from_model(model, counts, () if names is None else (len(names),))

    try:
        model = load_last(network, checkpoints).to(device)
        explainer = Explainer(probe, task=options.get("task"), evidence=read_evidence)
        explainer.explain(model, device)
        is_guess = explainer.is_guess and type(explainer.task) is Task
        if is_guess:
            explainer = Explainer(probe, task="classes", evidence=read_evidence)
            explainer.explain(model, device)
    except Exception:  # the snapshots will report the error
        return None
    if not isinstance(explainer.task, Classes) or explainer.probe.labels is None:
        return None
    if is_guess:
        notes.inform(
            "the meaning of the output is unknown. It is assumed to be scores of classes (--task classes), and the class that the "
            "last network predicts is explained; --task number explains the mean of the output"
        )
    return explainer.probe.labels.tolist()
