"""Finds the images of the probe: those that the user asks for, as soon as they are available."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Union

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fg_lightning.callbacks.probe_source import find_hardest, load_probe, reads_by_index, training_loader, validation_loader
from fg_lightning.recording.hardest_samples import SampleLosses
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.probe import NoProbe, Probe
from fg_lightning.recording.resume import ProbeChanged
from fg_lightning.recording.settings import Settings

ProbeRequest = Union[Literal["balanced", "hardest"], Sequence[int], Tensor, tuple[Any, ...], None]
"""Values of `probe=`: how to choose, indices in the validation data, images, (images, labels) or (images, labels, masks)."""

HOOK = "fullgrad_probe"
"""Method of a LightningDataModule or LightningModule that returns a value for `probe=`."""


@dataclass(frozen=True, eq=False)
class ProbeChoice:
    """How the probe is chosen. By default it has equally many images of each class, if the labels are known.

    Attributes:
        given: the images that the user passed. Default: None.
        indices: the indices of the images in the data set. Default: None.
        is_hardest: whether to choose the images that the network gets most wrong after its first epoch. Default: False.
    """

    given: Probe | None = None
    indices: tuple[int, ...] | None = None
    is_hardest: bool = False

    @classmethod
    def from_user(cls, probe: Any) -> ProbeChoice:
        """
        Raises:
            ValueError: if it is not a `ProbeRequest`.
        """
        if probe is None or isinstance(probe, str):
            if probe not in (None, "balanced", "hardest"):
                raise ValueError(f'probe must be "balanced", "hardest", indices or images, not {probe!r}')
            return cls(is_hardest=probe == "hardest")
        if (indices := _as_indices(probe)) is None:
            return cls(Probe.from_user(probe))
        if not indices or min(indices) < 0:
            raise ValueError(f"probe must be one or more indices in the validation data, counted from 0, not {probe!r}")
        return cls(indices=indices)

    @classmethod
    def from_hook(cls, trainer: Trainer, module: LightningModule) -> ProbeChoice | None:
        """The result of the method `fullgrad_probe` of the datamodule, or else of the module. None without one.

        Raises:
            ValueError: if it does not return a `ProbeRequest`. Errors of the method are passed on.
        """
        for owner in (getattr(trainer, "datamodule", None), module):
            hook = getattr(owner, HOOK, None)
            if callable(hook) and (asked := hook()) is not None:
                return cls.from_user(asked)
        return None


def _as_indices(probe: Any) -> tuple[int, ...] | None:
    """Whole numbers in a list, tuple, range, array or tensor [n]; None for anything else."""
    if isinstance(probe, (Tensor, np.ndarray)):
        is_whole = probe.ndim == 1 and (not probe.is_floating_point() if isinstance(probe, Tensor) else probe.dtype.kind in "iu")
        probe = probe.tolist() if is_whole else None
    is_list = isinstance(probe, (list, tuple, range)) and all(type(i) is int for i in probe)
    return tuple(probe) if is_list else None


HARDEST = "the hardest"
"""Start of the description of such a probe, also in a checkpoint."""


class ProbeFinder:
    """Finds the probe of one fit.

    Args:
        asked: the user's choice.
        is_asked: whether the user made a choice. If not, the hook `fullgrad_probe` is called.
        num_samples: number of images to choose.
        settings: how the images are explained.
        messages: informs the user if another probe than the user's choice is explained.

    Attributes:
        awaits_loader: whether Lightning has not loaded the validation data yet.
    """

    def __init__(self, asked: ProbeChoice, *, is_asked: bool, num_samples: int, settings: Settings, messages: Messages) -> None:
        self.choice = asked
        self.awaits_loader = False
        self._is_decided = is_asked
        self._num_samples = num_samples
        self._settings = settings
        self._messages = messages
        self._chosen = ""  # how the images of the checkpoint were chosen

    @property
    def awaits_epoch(self) -> bool:
        """Whether the images are chosen after the first epoch."""
        return self.choice.is_hardest

    def check_checkpoint(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of a checkpoint to continue with; empty if the user asks for the hardest images, but it explained others."""
        self._chosen = str(state.get("chosen", ""))
        if not state or not self.choice.is_hardest or self._chosen.startswith(HARDEST):
            return state
        problem = 'since the checkpoint was written, the probe became "hardest"'
        self._messages.warn(ProbeChanged(problem), "a new history begins")
        return {}

    def find(
        self, trainer: Trainer, module: LightningModule, *, is_trained: bool, indices: Sequence[int] | None = None
    ) -> Probe | None:
        """The images to explain; None if the data can only be streamed, or the images are chosen later.

        Args:
            trainer: the Trainer, in a fit.
            module: the module that is trained.
            is_trained: whether the network was trained for an epoch.
            indices: the indices of the hardest images in a checkpoint. Default: None.

        Raises:
            NoProbe: if there are no images.
        """
        self._ask_hook(trainer, module)
        if self.choice.given is not None:
            return self.choice.given
        loader = validation_loader(trainer)
        if not trainer.enable_validation:
            loader = training_loader(trainer)
            rank_zero_info("FullGradMonitor: there is no validation data, so it explains images of the training data")
        self.awaits_loader = loader is None and trainer.enable_validation
        if not reads_by_index(loader):
            return None
        if self.choice.is_hardest and not indices:
            return self._find_hardest(loader, trainer, module) if is_trained else None
        if self.choice.is_hardest:
            return replace(self._load(loader, trainer, module, indices), chosen=self._chosen)
        return self._load(loader, trainer, module, self.choice.indices)

    def from_stream(self, batch: Any) -> Probe:
        """The images of the first batch of a stream.

        Raises:
            NoProbe: if it has none.
        """
        if self.choice.is_hardest or self.choice.indices is not None:
            asked = 'probe="hardest"' if self.choice.is_hardest else f"probe={list(self.choice.indices or ())}"
            self.choice = ProbeChoice()
            problem = f"{asked} needs a data set whose images can be read by their indices, but the data is streamed"
            self._messages.warn(NoProbe(problem), "so images of the first batch are explained")
        probe = Probe.from_batch(batch, self._num_samples, with_batch=self._needs_batch)
        return replace(probe, chosen="of the first batch")

    @property
    def _needs_batch(self) -> bool:
        return self._settings.forward is not None or self._settings.masks is not None

    def _ask_hook(self, trainer: Trainer, module: LightningModule) -> None:
        if self._is_decided:
            return
        self._is_decided = True
        try:
            self.choice = ProbeChoice.from_hook(trainer, module) or self.choice
        except Exception as error:  # in the user's code
            self._messages.warn(error, f"raised by {HOOK}, so images are chosen as without it")

    def _find_hardest(self, loader: Any, trainer: Trainer, module: LightningModule) -> Probe:
        data = trainer.val_dataloaders, trainer.train_dataloader, getattr(trainer, "datamodule", None)
        losses = SampleLosses.from_settings(self._settings, data)
        try:
            hardest, words = find_hardest(loader, self._num_samples, trainer, module, losses)
        except Exception as error:
            self._messages.warn(error, "so the hardest images are not known, and others are explained")
            self.choice = ProbeChoice()
            return self._load(loader, trainer, module, None)
        self._messages.inform(f"explains {words}, measured with the network as it is now")
        return replace(self._load(loader, trainer, module, hardest), chosen=words)

    def _load(self, loader: Any, trainer: Trainer, module: LightningModule, indices: Sequence[int] | None) -> Probe:
        return load_probe(loader, self._num_samples, trainer, module, indices=indices, with_batch=self._needs_batch)
