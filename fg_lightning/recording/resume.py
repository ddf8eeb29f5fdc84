"""What a checkpoint keeps of a monitor, and how a later process goes on from it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fg_lightning.history.history import History
from fg_lightning.history.other_run import OtherRun, examine
from fg_lightning.history.run_folder import unused
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.snapshot import Look
from fg_lightning.recording.task import TASKS, Task

MOST_BYTES = 2**20
"""Images and labels go into a checkpoint if they take no more; they also lie in the run's folder."""


def kept(
    history: History, probe: Probe, task: Task, fingerprint: str, settings: dict[str, str], shown: Tensor | None = None
) -> dict[str, Any]:
    """The state of a monitor, of tensors and plain values.

    The folder, the numbers of every look, the probe's fingerprint, what is explained of it, the labels that are shown beside
    it, and the images themselves where they are small. Maps are not in it: they lie in the folder.
    """
    labels = None if probe.labels is None else _narrow(probe.labels)
    size = sum(t.numel() * t.element_size() for t in (probe.images, labels) if t is not None)
    return {
        "folder": None if history.lies_in is None else str(history.lies_in.resolve()),
        "looks": [{"epoch": look.epoch, "step": look.step, **look.numbers} for look in history.looks],
        "fingerprint": fingerprint,
        "settings": settings,
        "task": type(task).__name__,
        "images": probe.images if size <= MOST_BYTES else None,
        "labels": labels if size <= MOST_BYTES else None,
        "shown": shown if shown is None or shown.ndim == 1 else None,
    }


class Damage(ValueError):
    """The findings of an earlier run are not as it left them; the message says which and where."""


class ProbeChanged(ValueError):
    """What a run looks at is not what the run looked at whose checkpoint it goes on from; the message says in what."""


@dataclass(frozen=True)
class Resumed:
    """What an earlier process left for this one.

    Attributes:
        looks: the numbers of its looks up to the checkpoint.
        folder: where its findings lie; None where they are gone or cannot be read.
        lost: the looks whose findings do not lie there.
        probe: what it looked at, with the labels that it explained; None where that is gone.
        task: as it understood the network; None where the user's function says what is explained.
        fingerprint: of its probe as it came.
        settings: what must be the same for maps to be comparable.
        shown: its labels as they are shown beside what it explained; None where none are.
        damage: what is wrong with the findings, None if nothing is.
        unreadable: why nothing is known; empty if it is.
    """

    looks: Sequence[Look]
    folder: Path | None
    lost: Set[int]
    probe: Probe | None
    task: Task | None
    fingerprint: str
    settings: dict[str, str]
    shown: Tensor | None = None
    damage: Exception | None = None
    unreadable: str = ""

    @classmethod
    def of(cls, state: dict[str, Any]) -> Resumed:
        """From what `kept` gave, in this version or another."""
        try:
            return cls._of(state)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"its state of the monitor became unreadable ({type(error).__name__}: {error})"
            return cls((), None, frozenset(), None, None, "", {}, unreadable=reason)

    @classmethod
    def _of(cls, state: dict[str, Any]) -> Resumed:
        looks = [
            Look(row["epoch"], row["step"], {key: value for key, value in row.items() if key not in ("epoch", "step")})
            for row in state["looks"]
        ]
        folder = None if state["folder"] is None else Path(state["folder"])
        lost: Set[int] = frozenset()
        probe: Probe | None = None
        damages: list[str] = []
        if state["images"] is not None:
            labels = state["labels"]
            probe = Probe(state["images"], labels if labels is None or labels.is_floating_point() else labels.long())
        if folder is not None and folder.is_dir():
            try:
                lost, damages = examine(folder, looks, state["fingerprint"])
            except OtherRun:
                folder = None
            except (OSError, ValueError) as error:
                folder, damages = None, [str(error)]
            try:
                if folder is not None and probe is None:
                    probe = History(folder).probe()
            except (OSError, ValueError) as error:
                damages.append(str(error))
        else:
            folder = None
        task = TASKS[state["task"]]() if state["task"] in TASKS else None
        damage = Damage("; ".join(damages)) if damages else None
        shown = state.get("shown", state["labels"])  # which earlier versions did not keep
        return cls(looks, folder, lost, probe, task, state["fingerprint"], state["settings"], shown, damage)

    def probe_for(self, fresh: Probe | None, settings: dict[str, str], *, needs_fresh: bool) -> tuple[Probe | None, str | None]:
        """What to look at on, None to begin anew, and what is not as it was.

        Args:
            fresh: the images that this run has; None where they are still to come by.
            settings: how it looks.
            needs_fresh: whether the kept images will not do, because the user chose others or they are not all a batch holds.
        """
        if self.unreadable:
            return None, self.unreadable
        before = {name: self.settings.get(name, "None") for name in settings}
        changed = [f"{name} was {before[name]} and is {now}" for name, now in settings.items() if before[name] != now]
        if changed:
            return None, ", ".join(changed)
        if fresh is None:
            return (None if needs_fresh else self.probe), None
        if fresh.fingerprint() == self.fingerprint:
            return (fresh if self.probe is None else replace(fresh, labels=self.probe.labels, others=())), None
        begins_anew = needs_fresh or self.probe is None or len(fresh) != len(self.probe)
        return (None if begins_anew else self.probe), self._difference(fresh)

    def _difference(self, fresh: Probe) -> str:
        if self.probe is None:
            return "the images or labels are others"
        if fresh.images.shape != self.probe.images.shape:
            return f"the images were {list(self.probe.images.shape)} and are {list(fresh.images.shape)}"
        others = (fresh.images != self.probe.images.to(fresh.images.dtype)).flatten(1).any(1).nonzero().flatten().tolist()
        return f"images {', '.join(map(str, others))} are others" if others else "the labels are others"

    def folder_in(self, folder: Path, is_same_run: bool) -> Path:
        """Where to go on: where the findings lie, if that is where this run's go, too, else where none lie."""
        goes_on = is_same_run and self.folder is not None and self.folder.parent == folder.parent.resolve()
        return self.folder if goes_on and self.folder is not None else unused(folder)

    def history(self, folder: Path | None) -> History:
        """The history up to the checkpoint.

        Args:
            folder: where the findings of this run go; the earlier ones are copied there, unless that is where they lie.
        """
        return History(folder, self.looks, self.folder, self.lost)


def _narrow(labels: Tensor) -> Tensor:
    """Class labels in the narrowest type that holds them."""
    if labels.is_floating_point() or labels.numel() == 0:
        return labels
    for kind in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(kind).min <= int(labels.min()) and int(labels.max()) <= torch.iinfo(kind).max:
            return labels.to(kind)
    return labels
