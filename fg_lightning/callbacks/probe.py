"""The probe: the held-out images that the monitor looks at, the same ones all through training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
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
        entry for each of them.

        Raises:
            NoProbe: if there is no image in it.
        """
        leaves = list(_leaves(batch))
        images = next((t for t in leaves if t.is_floating_point() and 3 <= t.ndim <= 5), None)
        if images is None or not len(images):
            found = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in leaves) or "no tensor"
            raise NoProbe(
                f"found no images in a batch of type {type(batch).__name__} ({found}); images are floating-point tensors "
                "[N, C, H, W]. Pass them yourself: FullGradMonitor(probe=(images, labels))"
            )
        labels = next((t for t in leaves if _are_labels(t, len(images))), None)
        return cls(images[:size].detach().clone(), None if labels is None else labels[:size].detach().clone())


def _leaves(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _leaves(value)
    elif is_dataclass(batch):
        for field in fields(batch):
            yield from _leaves(getattr(batch, field.name))


def _are_labels(tensor: Tensor, n: int) -> bool:
    integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
    return integer and tensor.shape == (n,)


def reads_by_index(loader: Any) -> bool:
    """Whether samples can be fetched from the loader's data set without reading from the loader itself."""
    dataset = getattr(loader, "dataset", None)
    return isinstance(loader, DataLoader) and isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)


def probe_of_loader(loader: DataLoader[Any], size: int, trainer: Trainer, module: LightningModule) -> Probe:
    """A probe from the data set of a loader that `reads_by_index`, so that neither its sampler nor its workers notice.

    Samples evenly spread over the data set are collated as the loader would, then moved and transformed as a validation batch.

    Raises:
        NoProbe: if the data set is empty or its batches hold no images.
    """
    dataset: Any = loader.dataset
    if not len(dataset):
        raise NoProbe("the data set to look at is empty; pass images yourself: FullGradMonitor(probe=(images, labels))")
    if loader.batch_sampler is None:  # the data set gives whole batches
        batch = loader.collate_fn(dataset[0])
    else:
        count = min(size, len(dataset))
        batch = loader.collate_fn([dataset[i * (len(dataset) - 1) // max(count - 1, 1)] for i in range(count)])
    with _validating(trainer):
        batch = trainer.strategy.batch_to_device(batch, module.device, dataloader_idx=0)
    return Probe.of_batch(batch, size)


def validation_loader(trainer: Trainer) -> Any:
    """The first validation loader of a fit, None if there is none; asked of its source where Lightning has not loaded it yet."""
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
