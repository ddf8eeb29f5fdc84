"""The probe: the held-out images that the monitor looks at, the same ones all through training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset


class NoProbe(ValueError):
    """There are no images to look at; the message says why and what to do."""


@dataclass(frozen=True)
class Probe:
    """Images [N, C, *S] as the model takes them, and their class labels [N] where there are any."""

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Probe:
        return Probe(self.images.to(device), None if self.labels is None else self.labels.to(device))

    @classmethod
    def of_batch(cls, batch: Any, size: int) -> Probe:
        """The first `size` images of a batch, which may be a tensor, tuple, list, mapping or dataclass, nested or not.

        The images are its first floating-point tensor of 3 to 5 dimensions, the labels its first integer tensor with one
        entry for each of them; where fields have names, one that is called so goes first.

        Raises:
            NoProbe: if there is no image in it.
        """
        leaves = list(_leaves(batch))
        images = _best(leaves, IMAGE_NAMES, lambda t: t.is_floating_point() and 3 <= t.ndim <= 5)
        if images is None or not len(images):
            found = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for _, t in leaves) or "no tensor"
            raise NoProbe(
                f"found no images in a batch of type {type(batch).__name__} ({found}); images are floating-point tensors "
                "[N, C, H, W], as the module's forward takes them. Pass them yourself: FullGradMonitor(probe=(images, labels))"
            )
        n = len(images)
        labels = _best(leaves, LABEL_NAMES, lambda t: _is_integer(t) and t.shape in ((n,), (n, 1)))
        return cls(images[:size].detach().clone(), None if labels is None else labels[:size].detach().flatten().clone())

    @classmethod
    def given(cls, probe: Tensor | Sequence[Tensor]) -> Probe:
        """What a person passed: images, or (images, labels).

        Raises:
            NoProbe: if it is anything else.
        """
        images, labels = (probe, None) if isinstance(probe, Tensor) else probe if len(probe) == 2 else (None, None)
        if not isinstance(images, Tensor) or not images.is_floating_point() or not 3 <= images.ndim <= 5 or not len(images):
            raise NoProbe("probe must be images, a floating-point tensor [N, C, *S] with at least one of them, or (images, labels)")
        if labels is not None and not (isinstance(labels, Tensor) and _is_integer(labels) and labels.shape == images.shape[:1]):
            raise NoProbe(f"the probe's labels must be a tensor of {len(images)} integers, one for each image")
        return cls(images.detach().clone(), None if labels is None else labels.detach().clone())


IMAGE_NAMES = ("image", "images", "img", "pixel_values", "input", "inputs", "x")
LABEL_NAMES = ("label", "labels", "target", "targets", "class", "y")
"""What the fields of a batch that has names are called, before any other field that fits."""


def _leaves(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch with the names of their fields."""
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _leaves(value, str(key))
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _leaves(value, name)
    elif is_dataclass(batch):
        for field in fields(batch):
            yield from _leaves(getattr(batch, field.name), field.name)


def _best(leaves: list[tuple[str, Tensor]], names: Sequence[str], fits: Callable[[Tensor], bool]) -> Tensor | None:
    """The first tensor that fits and has one of the names, else the first that fits."""
    fitting = [(name.lower(), tensor) for name, tensor in leaves if fits(tensor)]
    named = [tensor for name, tensor in fitting if name in names]
    return next(iter([*named, *(tensor for _, tensor in fitting)]), None)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def reads_by_index(loader: Any) -> bool:
    """Whether samples can be fetched from the loader's data set without reading from the loader itself."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:  # without one, the data set gives whole batches
        return False
    return isinstance(loader.dataset, Sized) and not isinstance(loader.dataset, IterableDataset)


def probe_of_loader(loader: DataLoader[Any], size: int, trainer: Trainer, module: LightningModule) -> Probe:
    """A probe from the data set of a loader that `reads_by_index`, so that neither its sampler nor its workers notice.

    Samples evenly spread over the data set are collated as the loader would, then moved and transformed as a validation batch.

    Raises:
        NoProbe: if the data set is empty or its batches hold no images.
    """
    dataset: Any = loader.dataset
    if not len(dataset):
        raise NoProbe("the data set to look at is empty; pass images yourself: FullGradMonitor(probe=(images, labels))")
    count = min(size, len(dataset))
    batch = loader.collate_fn([dataset[i * (len(dataset) - 1) // max(count - 1, 1)] for i in range(count)])
    with _validating(trainer):
        batch = trainer.strategy.batch_to_device(batch, module.device, dataloader_idx=0)
    return Probe.of_batch(batch, size)


def validation_loader(trainer: Trainer) -> Any:
    """The first validation loader of a fit, None if there is none.

    Where Lightning has not loaded it yet (no sanity check), its source is asked for another: nothing public leads there.
    """
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if not trainer.limit_val_batches or not source.is_defined():
        return None
    loaded = trainer.val_dataloaders
    return _first(source.dataloader() if loaded is None else loaded)


def training_loader(trainer: Trainer) -> Any:
    """The first training loader of a fit."""
    return _first(trainer.train_dataloader)


@contextmanager
def _validating(trainer: Trainer) -> Iterator[None]:
    """Batch transforms that ask which stage it is apply what they apply to validation data."""
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage


def _first(loaders: Any) -> Any:
    """The first of one or several loaders, however they are nested."""
    while isinstance(loaders, (list, tuple, dict)):
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders), None)
    return loaders
