"""Finds the checkpoints of a training run, in the order in which they were written, without duplicates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fg_lightning.checkpoints import read_checkpoint
from fg_lightning.errors import CannotRun, list_briefly

Counted = Literal["epochs", "steps"]
"""Unit of the number in a file's name."""

SUFFIXES = (".ckpt", ".pt", ".pth", ".tar", ".bin", ".safetensors")

WEIGHTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
"""Keys under which training loops store weights, in order of preference."""

EPOCHS, STEPS = ("epoch", "epochs"), ("global_step", "step", "iteration", "iter")
"""Keys under which a checkpoint records when it was written."""

OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim")
"""Keys of an optimizer's state. The state is empty before the first step."""

AVERAGED = re.compile(r"(^|[\W_])(ema|swa|averaged?)([\W_]|$)", re.IGNORECASE)
"""Names of files with averaged weights."""

HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
"""The weights in a folder `checkpoint-500` of Hugging Face's Trainer."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint file, and how far training was when it was written.

    Attributes:
        path: the file.
        epoch: number of epochs that the network was trained for.
        step: step at which its numbers are logged, counted as the monitor does.
        num_steps: number of steps that the network was trained for. Default: None, for unknown.
        is_within: whether it was written within an epoch.
        is_averaged: whether its weights are averages of Lightning's `WeightAveraging`.
        is_index: whether `epoch` is the number of an epoch in the user's own loop, which may count from 0 or 1.
        is_assumed: whether the file does not record that its last epoch was complete, so that this is assumed.
        has_steps: whether the file shows that the optimizer had taken steps.
    """

    path: Path
    epoch: int
    step: int
    num_steps: int | None = None
    is_within: bool = False
    is_averaged: bool = False
    is_index: bool = False
    is_assumed: bool = False
    has_steps: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return self.step if self.num_steps is None else self.num_steps, self.epoch


@dataclass(frozen=True)
class CheckpointSeries:
    """
    Attributes:
        checkpoints: in the order in which they were written.
        skipped: path of each file that is left out -> the reason.
        notes: the assumptions that were made, a sentence each.
    """

    checkpoints: Sequence[Checkpoint]
    skipped: Mapping[Path, str]
    notes: Sequence[str] = ()


def find_checkpoints(
    folder: Path,
    counted: Counted | None = None,
    epoch_0: Literal["untrained", "trained"] | None = None,
    track: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> CheckpointSeries:
    """Finds the checkpoints of one training run: of Lightning, of Hugging Face, or a `state_dict` that `torch.save` wrote.

    Of several checkpoints of the same step, it keeps the first by name. It keeps `last` and averaged weights only if there is no
    other.

    Args:
        folder: the folder with the files, or one with a single subfolder that has them.
        counted: unit of the numbers in the names of files, "epochs" or "steps". Default: None; then files that do not record their
            epoch or step cannot be used.
        epoch_0: the network in a file of epoch 0 that Lightning did not write: "untrained", or "trained" for the network after its
            first epoch. Default: None; then the files must show it.
        track: wraps the list of files while they are read, to show the progress. Default: `iter`, which shows nothing.

    Raises:
        CannotRun: if there is no such folder, no checkpoint in it, or if it is unknown when they were written.
    """
    skipped: dict[Path, str] = {}
    found: list[Checkpoint] = []
    for path in track(_find_files(folder)):
        dated = _try_to_date(path, counted)
        if isinstance(dated, Checkpoint):
            found.append(dated)
        else:
            skipped[path] = dated
    if not found:
        raise CannotRun(f"no file in {folder} can be read as a checkpoint. The first error: {next(iter(skipped.values()))}")
    found = _count_from_1(found, epoch_0)
    kept: dict[tuple[int, int], Checkpoint] = {}
    for checkpoint in sorted(found, key=_preference):
        key = checkpoint.order if checkpoint.num_steps is None else (checkpoint.num_steps, -1)
        if key not in kept:
            kept[key] = checkpoint
        elif not _have_equal_weights(kept[key].path, checkpoint.path):
            skipped[checkpoint.path] = (
                f"{checkpoint.path.name} is of the same step as {kept[key].path.name}, but has other weights, such as averages; "
                "to use it instead, put the files of one kind into a separate folder"
            )
    checkpoints = sorted(kept.values(), key=lambda checkpoint: checkpoint.order)
    return CheckpointSeries(_count_steps_or_epochs(checkpoints), skipped, list(_notes(checkpoints)))


def read_weights_file(path: Path, is_mapped: bool = False) -> Mapping[str, Any]:
    """Reads a checkpoint. No code in it runs. Weights of a safetensors file are under the key `state_dict`.

    Raises:
        CannotRun: if it cannot be read.
    """
    if path.suffix != ".safetensors":
        return read_checkpoint(path, is_mapped)
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise CannotRun(f"{path} needs the package safetensors, which is not installed: pip install safetensors") from error
    try:
        return {"state_dict": load_file(path)}
    except Exception as error:  # safetensors has an error of its own for damaged files
        raise CannotRun(f"{path} is damaged or not a safetensors file ({error}); copy it again") from error


def find_weights(content: Mapping[str, Any], names: Iterable[str], prefix: str | None = None) -> dict[str, Tensor]:
    """The weights of a network in a checkpoint, under the network's own names.

    A wrapper's prefix, such as `module.` of DistributedDataParallel or `model.` of a LightningModule, is removed.

    Args:
        content: content of a checkpoint.
        names: the keys of the network's `state_dict`.
        prefix: prefix of the names in the checkpoint. Default: None, to find it.

    Raises:
        CannotRun: if weights are missing, or the checkpoint has them under several prefixes.
    """
    weights, wanted = _weights_of(content), list(names)
    if prefix is None:
        ends = wanted[:1]
        prefixes = [key.removesuffix(end) for end in ends for key in weights if key == end or key.endswith(f".{end}")]
        complete = [prefix for prefix in prefixes if all(prefix + name in weights for name in wanted)]
        if "" in complete:
            complete = [""]
        if len(complete) > 1:
            listed = " and ".join(complete)
            raise CannotRun(f"it has the network's weights under {len(complete)} prefixes, {listed}; choose one with --prefix")
        prefix = complete[0] if complete else prefixes[0] if prefixes else ""
    missing = [name for name in wanted if prefix + name not in weights]
    if missing:
        raise CannotRun(
            f"it lacks {len(missing)} of the network's {len(wanted)} weights ({list_briefly(missing, 3)}), and has "
            f"{list_briefly([key for key in weights if key.removeprefix(prefix) not in wanted], 3) or 'no others'}; "
            "it may belong to another network"
        )
    return {name: weights[prefix + name] for name in wanted}


def _find_files(folder: Path) -> list[Path]:
    """The files that may be checkpoints, in the folder or in its only subfolder that has some."""
    if not folder.is_dir():
        raise CannotRun(f"there is no folder {folder.absolute()}; give the folder that holds the checkpoints")
    of_hugging_face = [found[0] for sub in sorted(folder.glob("checkpoint-*")) if (found := _existing(sub, HUGGING_FACE))]
    if of_hugging_face:
        return of_hugging_face
    files = _files_in(folder)
    if files:
        return files
    below = sorted({path.parent for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file()})
    if not below:
        endings = ", ".join(SUFFIXES)
        raise CannotRun(f"there is no checkpoint in {folder.absolute()}: no file ends in {endings}; give the folder that has them")
    if len(below) > 1:
        names = list_briefly([path.relative_to(folder) for path in below], 4)
        raise CannotRun(f"{len(below)} folders in {folder} hold checkpoints ({names}); give the folder of one training run")
    return _files_in(below[0])


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file() and path.name[0] != ".")


def _existing(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _weights_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of a checkpoint that holds its weights.

    Raises:
        CannotRun: if there is none.
    """
    for key in WEIGHTS:
        if isinstance(content.get(key), Mapping):
            return content[key]
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    raise CannotRun(f"it holds no weights: its keys are {list_briefly(list(content), 5)}")


def _try_to_date(path: Path, counted: Counted | None) -> Checkpoint | str:
    """A checkpoint, or the reason why the file cannot be used as one."""
    try:
        return _date(path, read_weights_file(path, is_mapped=True), counted)
    except CannotRun as error:
        return str(error)


def _date(path: Path, content: Mapping[str, Any], counted: Counted | None) -> Checkpoint:
    """Finds out how far training was when a checkpoint was written.

    Raises:
        CannotRun: if it holds no weights, or does not record an epoch or a step.
    """
    _weights_of(content)
    if "pytorch-lightning_version" in content:
        return _date_lightning(path, content)
    state = path.with_name("trainer_state.json")
    if path.name in HUGGING_FACE and state.is_file():
        try:
            written = json.loads(state.read_text())
            epoch, num_steps = float(written["epoch"] or 0), int(written["global_step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CannotRun(f"{state} does not record when the checkpoint was written ({error})") from error
        is_within = abs(epoch - round(epoch)) > 1e-6
        return Checkpoint(path, int(epoch) if is_within else round(epoch), num_steps, num_steps, is_within)
    stem = path.parent.name if path.name in HUGGING_FACE else path.name.removesuffix(".tar")
    epoch_in, step_in = _number(content, EPOCHS), _number(content, STEPS)
    epoch_in = _number_in_name(stem, "epoch|ep") if epoch_in is None else epoch_in
    step_in = _number_in_name(stem, "step|iter|iteration") if step_in is None else step_in
    if epoch_in is None and step_in is None:
        numbers = re.findall(r"\d+", stem)
        if not numbers:
            raise CannotRun(f"{path} records no epoch or step, neither in its content nor in its name; add the number to its name")
        if counted is None:
            raise CannotRun(f"the number in the name of {path} may count epochs or steps; add --counted epochs or --counted steps")
        epoch_in, step_in = (int(numbers[-1]), None) if counted == "epochs" else (None, int(numbers[-1]))
    states = [kept["state"] for key in OPTIMIZERS if isinstance(kept := content.get(key), Mapping) and kept.get("state")]
    step_in = _steps_taken(states) if step_in is None else step_in
    step = epoch_in if step_in is None else step_in
    assert step is not None
    is_index, has_steps = epoch_in is not None, bool(step_in or states)
    return Checkpoint(path, epoch_in or 0, step, step_in, is_within=not is_index, is_index=is_index, has_steps=has_steps)


def _date_lightning(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    """Reads the counters of Lightning's loops. Epochs and steps are counted as `Moment` in callbacks/training_progress.py does."""
    num_steps, epoch = int(content.get("global_step", 0)), int(content.get("epoch", 0))
    is_averaged, is_within, is_assumed = "current_model_state" in content, False, False
    try:
        loop = content["loops"]["fit_loop"]
        current, is_end = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["is_last_batch"]
        epoch = int(current["ready"] if is_end else current["processed"])
        is_within = not is_end and int(current["ready"]) > epoch
        stepped = int(loop["epoch_loop.state_dict"]["_batches_that_stepped"])
        if len(content.get("optimizer_states", ())) == 1:
            stepped = max(stepped, num_steps)
    except (KeyError, TypeError, ValueError):  # a checkpoint with only weights, which ModelCheckpoint writes after an epoch
        epoch, stepped, is_assumed = epoch + (num_steps > 0), num_steps, True
    step = stepped - 1 if stepped > 1 or (stepped and epoch) else stepped
    return Checkpoint(path, epoch, step, num_steps, is_within, is_averaged, is_assumed=is_assumed)


def _steps_taken(states: Sequence[Any]) -> int | None:
    """The largest step count that optimizers such as Adam keep for a parameter; None if there is none."""
    kept = [of_parameter for state in states if isinstance(state, Mapping) for of_parameter in state.values()]
    steps = [int(values["step"]) for values in kept if isinstance(values, Mapping) and "step" in values]
    return max(steps, default=None)


def _number(content: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    found = [content[key] for key in keys if type(content.get(key)) is int]
    return found[0] if found else None


def _number_in_name(stem: str, words: str) -> int | None:
    found = re.search(rf"(?:{words})s?[-_=.]?0*(\d+)", stem, re.IGNORECASE)
    return None if found is None else int(found[1])


def _count_from_1(found: list[Checkpoint], epoch_0: str | None) -> list[Checkpoint]:
    """Converts numbers of epochs that count from 0 to the number of epochs that the network was trained for.

    Raises:
        CannotRun: if it is unknown whether epoch 0 is the untrained network.
    """
    zeros = [c for c in found if c.is_index and c.epoch == 0]
    is_trained = any(c.has_steps for c in zeros) or epoch_0 == "trained"
    if zeros and not is_trained and epoch_0 is None and any(c.num_steps is None for c in zeros):
        raise CannotRun(
            f"{zeros[0].path.name} is of epoch 0: if it holds the untrained network, add --epoch_0 untrained; if it was written "
            "after the first epoch, add --epoch_0 trained"
        )
    shift = bool(zeros) and is_trained
    counted = [replace(c, epoch=c.epoch + shift, step=c.step + (shift and c.num_steps is None)) if c.is_index else c for c in found]
    if len({c.num_steps is None for c in counted}) > 1:  # only all of them have epochs, not steps
        return [replace(c, step=c.epoch, num_steps=None) for c in counted]
    return counted


def _preference(checkpoint: Checkpoint) -> tuple[bool, bool, bool, str]:
    """Sort key of checkpoints of one step: averages and `last` come after others, and the ends of epochs come first."""
    name = checkpoint.path.stem
    return bool(AVERAGED.search(name)), name.startswith("last"), checkpoint.is_within, checkpoint.path.name


def _have_equal_weights(first: Path, second: Path) -> bool:
    one, other = (_weights_of(read_weights_file(path, is_mapped=True)) for path in (first, second))
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one if isinstance(one[name], Tensor) and isinstance(other[name], Tensor)
    )


def _count_steps_or_epochs(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Counts snapshots by steps if a checkpoint was written within an epoch, or two in one epoch; otherwise by epochs."""
    epochs = [checkpoint.epoch for checkpoint in checkpoints]
    by_steps = any(checkpoint.is_within for checkpoint in checkpoints) or len(set(epochs)) < len(epochs)
    return [checkpoint if by_steps else replace(checkpoint, num_steps=None) for checkpoint in checkpoints]


def _notes(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    if any(checkpoint.num_steps is None for checkpoint in checkpoints):
        yield "not all checkpoints record their number of steps, so the column step holds the number of epochs"
    if any(checkpoint.is_assumed for checkpoint in checkpoints):
        yield "checkpoints with only weights do not record whether their last epoch was complete; it is assumed to be complete"
    if any(checkpoint.is_averaged for checkpoint in checkpoints):
        yield "the checkpoints hold averaged weights of Lightning's WeightAveraging; a monitor explains averages only at the end"
    if checkpoints[0].order > (0, 0):
        yield "there is no checkpoint of the untrained network, so there is no drift_from_untrained"
