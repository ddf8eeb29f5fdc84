"""The state of a recorder in a checkpoint, and how a later process continues from it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from fg_lightning.history.lost_snapshots import OtherRun, find_lost_snapshots
from fg_lightning.history.records import Snapshot
from fg_lightning.history.run_history import History
from fg_lightning.history.run_reader import unused_folder
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.settings import Settings
from fg_lightning.recording.task import TASKS, Task

MOST_BYTES = 2**20
"""Images, labels and masks of more bytes are not stored in a checkpoint. They are also in the run's folder."""


def pack_state(
    history: History, probe: Probe, task: Task, fingerprint: str, settings: dict[str, str], shown_labels: Tensor | None = None
) -> dict[str, Any]:
    """The state of a recorder as tensors and plain values.

    It has the folder, the numbers of all snapshots, the probe's fingerprint and the labels that are shown. It also has the images,
    the explained labels and the masks if they are small. The maps stay in the folder.
    """
    labels = None if probe.labels is None else _narrow(probe.labels)
    tensors = (probe.images, *(probe.inputs or ()), labels, probe.masks)
    size = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    return {
        "folder": None if history.source is None else str(history.source.resolve()),
        "snapshots": [
            {"epoch": s.epoch, "step": s.step, **({} if s.num_steps is None else {"num_steps": s.num_steps}), **s.numbers}
            for s in history.snapshots
        ],
        "fingerprint": fingerprint,
        "settings": settings,
        "task": type(task).__name__,
        "images": probe.images if size <= MOST_BYTES else None,
        "inputs": probe.inputs if size <= MOST_BYTES else None,
        "num_inputs": len(probe.inputs or (probe.images,)),
        "labels": labels if size <= MOST_BYTES else None,
        "masks": probe.masks if size <= MOST_BYTES else None,
        "masks_from": probe.masks_from,
        "indices": None if probe.indices is None else list(probe.indices),
        "chosen": probe.chosen,
        "shown_labels": shown_labels if shown_labels is None or shown_labels.ndim == 1 else None,
    }


class Damage(ValueError):
    """The files of an earlier run have changed since it wrote them. The message names them."""


class ProbeChanged(ValueError):
    """A resumed run would not explain the same as the run before. The message tells what changed."""


@dataclass(frozen=True, eq=False)
class ResumedRun:
    """An earlier run that is continued.

    Attributes:
        snapshots: the numbers of its snapshots up to the checkpoint.
        folder: the folder of the run; None if it is gone or cannot be read.
        lost: indices of the snapshots that are not in the folder.
        probe: its images, with the explained labels; None if they are gone.
        task: what the output means; None if the user's function decides what is explained.
        fingerprint: digest of its original probe.
        settings: the settings that must be the same for maps to be comparable.
        shown_labels: the labels that are shown, also if others are explained. Default: None, no labels.
        damage: an error about damaged files. Default: None, no damage.
        unreadable: the reason why the state cannot be read. Default: "", it can be read.
    """

    snapshots: Sequence[Snapshot]
    folder: Path | None
    lost: Set[int]
    probe: Probe | None
    task: Task | None
    fingerprint: str
    settings: dict[str, str]
    shown_labels: Tensor | None = None
    damage: Exception | None = None
    unreadable: str = ""

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ResumedRun:
        """Reads the result of `pack_state`, of this version or another one."""
        try:
            return cls._from_state(apply_to_collection(state, Tensor, lambda tensor: tensor.cpu()))  # it may be on a GPU
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"its state of the monitor became unreadable ({type(error).__name__}: {error})"
            return cls((), None, frozenset(), None, None, "", {}, unreadable=reason)

    @classmethod
    def _from_state(cls, state: dict[str, Any]) -> ResumedRun:
        places = ("epoch", "step", "num_steps")
        snapshots = [
            Snapshot(row["epoch"], row["step"], {k: v for k, v in row.items() if k not in places}, row.get("num_steps"))
            for row in state["snapshots"]
        ]
        folder = None if state["folder"] is None else Path(state["folder"])
        lost: Set[int] = frozenset()
        probe: Probe | None = None
        damages: list[str] = []
        if state["images"] is not None:
            labels = state["labels"]
            labels = labels if labels is None or labels.is_floating_point() else labels.long()
            probe = Probe(state["images"], labels, masks=state.get("masks"), inputs=state.get("inputs"))
        if folder is not None and folder.is_dir():
            try:
                lost, damages = find_lost_snapshots(folder, snapshots, state["fingerprint"], _methods(state["settings"]))
            except OtherRun:
                folder = None
            except (OSError, ValueError) as error:
                folder, damages = None, [str(error)]
            try:
                if folder is not None and probe is None and state.get("num_inputs", 1) == 1:  # the folder has them side by side
                    probe = Probe(*History(folder).probe(), masks=History(folder).probe_masks())
            except (OSError, ValueError) as error:
                damages.append(str(error))
        else:
            folder = None
        if probe is not None:
            indices = state.get("indices")
            known = None if indices is None else tuple(indices)
            origin = state.get("masks_from", "") if probe.masks is not None else ""
            probe = replace(probe, indices=known, chosen=state.get("chosen", ""), masks_from=origin)
        task = TASKS[state["task"]]() if state["task"] in TASKS else None
        damage = Damage("; ".join(damages)) if damages else None
        return cls(snapshots, folder, lost, probe, task, state["fingerprint"], state["settings"], state["shown_labels"], damage)

    def choose_probe(self, fresh: Probe | None, settings: dict[str, str], *, needs_fresh: bool) -> tuple[Probe | None, str | None]:
        """The probe to continue with, or None to begin a new history; and a description of what changed, or None.

        Args:
            fresh: the images of this run; None if they are not known yet.
            settings: the settings of this run.
            needs_fresh: whether the images of the checkpoint are not enough, because the user chose images or `forward` takes
                the whole batch.
        """
        if self.unreadable:
            return None, self.unreadable
        before = Settings().identity() | self.settings  # an earlier version had fewer settings
        changed = [
            f"{name} was {before[name] or 'none'} and is {now or 'none'}" for name, now in settings.items() if before[name] != now
        ]
        if changed:
            return None, ", ".join(changed)
        if fresh is None:
            return (None if needs_fresh else self.probe), None
        if fresh.fingerprint() == self.fingerprint:
            return self._continue(fresh)
        begins_anew = needs_fresh or self.probe is None or len(fresh) != len(self.probe)
        return (None if begins_anew else self.probe), self._difference(fresh)

    def _continue(self, fresh: Probe) -> tuple[Probe | None, str | None]:
        """Like `choose_probe`, for equal images and labels. If they have no masks now, those of the checkpoint are used."""
        if self.probe is None:
            return fresh, None
        before = self.probe
        if fresh.masks is None:
            fresh = replace(fresh, masks=before.masks, masks_from=before.masks_from)
        elif before.masks is not None and not torch.equal(fresh.masks, before.masks):
            return None, "the masks differ"
        return replace(fresh, labels=before.labels, others=(), indices=before.indices, chosen=before.chosen), None

    def _difference(self, fresh: Probe) -> str:
        if self.probe is None:
            return "the images or labels differ"
        if fresh.images.shape != self.probe.images.shape:
            return f"the images were {list(self.probe.images.shape)} and are {list(fresh.images.shape)}"
        others = (fresh.images != self.probe.images.to(fresh.images.dtype)).flatten(1).any(1).nonzero().flatten().tolist()
        return f"images {', '.join(map(str, others))} differ" if others else "the labels differ"

    def history(self, folder: Path | None, *, is_same_run: bool) -> History:
        """The history up to the checkpoint.

        It continues in the earlier folder if this run's folder is beside it. Otherwise it is copied to an unused folder.

        Args:
            folder: of this run; None to keep the history in memory.
            is_same_run: whether the two runs may use the same folder.
        """
        if folder is not None:
            is_beside = self.folder is not None and self.folder.parent == folder.parent.resolve()
            folder = self.folder if is_same_run and is_beside else unused_folder(folder)
        return History(folder, self.snapshots, self.folder, self.lost, _methods(self.settings))


def _methods(settings: dict[str, str]) -> list[str]:
    """The further methods of a run."""
    return [method for method in settings.get("methods", "").split(", ") if method]


def _narrow(labels: Tensor) -> Tensor:
    """Class labels in the narrowest type that holds them."""
    if labels.is_floating_point() or labels.numel() == 0:
        return labels
    for kind in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(kind).min <= int(labels.min()) and int(labels.max()) <= torch.iinfo(kind).max:
            return labels.to(kind)
    return labels
