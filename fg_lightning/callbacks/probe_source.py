"""Where the probe comes from: the loaders of a fit, read without their noticing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, IterableDataset, Subset

from fg_lightning.recording.probe import NoProbe, Probe, lacks_images


def validation_loader(trainer: Trainer) -> Any:
    """The first validation loader of a fit; None if there is none, or none that can be had before Lightning has loaded it.

    Lightning has, when training starts, unless it neither checks validation nor validates in the first epoch. One process alone
    may then ask for a loader, several may not: whoever wrote it may have them meet in it.
    """
    if not trainer.enable_validation:
        return None
    loaders = trainer.val_dataloaders
    if loaders is None and trainer.world_size == 1:
        owner = _owner("val_dataloader", getattr(trainer, "datamodule", None), trainer.lightning_module)
        if owner is not None:
            loaders = owner.val_dataloader()
        else:  # they were handed to fit: nobody's code runs when they are loaded now
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            loaders = trainer.val_dataloaders
    return _first(loaders)


def training_loader(trainer: Trainer) -> Any:
    """The first training loader of a fit."""
    return _first(trainer.train_dataloader)


def reads_by_index(loader: Any) -> bool:
    """Whether samples can be fetched from the loader's data set without reading from the loader itself."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:  # without one, the data set gives whole batches
        return False
    return isinstance(loader.dataset, Sized) and not isinstance(loader.dataset, IterableDataset)


def probe_of_loader(
    loader: DataLoader[Any], size: int, trainer: Trainer, module: LightningModule, *, with_batch: bool = False
) -> Probe:
    """A probe from the data set of a loader that `reads_by_index`, so that neither its sampler nor its workers notice.

    Samples evenly spread over the data set, or over the part of it that the loader's sampler is bound to, are collated as the
    loader would, then moved and transformed as a validation batch. Where the loader has workers, one more reads them, so that this
    process opens no file that the next workers would share.

    Raises:
        NoProbe: if the data set is empty or its batches hold no images.
    """
    indices = _indices(loader)
    if not indices:
        raise NoProbe("the data set to look at is empty; pass images yourself: FullGradMonitor(probe=(images, labels))")
    count = min(size, len(indices))
    chosen = [indices[i * (len(indices) - 1) // max(count - 1, 1)] for i in range(count)]
    workers = {"num_workers": 1, "multiprocessing_context": loader.multiprocessing_context} if loader.num_workers else {}
    reader = DataLoader(
        Subset(loader.dataset, chosen),
        batch_size=count,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
        **workers,
    )
    batch = next(iter(reader))
    if lacks_images(batch):
        return Probe.of_batch(batch, size)  # says so, and the user's hooks do not run for nothing
    with _validating(trainer):
        batch = trainer.precision_plugin.convert_input(batch)
        hooks = _owner("on_before_batch_transfer", getattr(trainer, "datamodule", None), module) or module
        batch = hooks.on_before_batch_transfer(batch, 0)  # by place, as Lightning does: the user may call it anything
        batch = trainer.strategy.batch_to_device(batch, module.device, dataloader_idx=0)
    return replace(Probe.of_batch(batch, size, with_batch=with_batch), at_once=loader.batch_size)


def _owner(hook: str, *candidates: Any) -> Any:
    """The first of the user's objects that has a data hook of its own."""
    return next((c for c in candidates if c is not None and not _is_lightnings(getattr(c, hook))), None)


def _is_lightnings(hook: Any) -> bool:
    """Whether it is the method that Lightning gives to every module; a partial, a mock and the like have no such name."""
    return str(getattr(hook, "__qualname__", "")).startswith("DataHooks.")


def _indices(loader: DataLoader[Any]) -> Any:
    """What a loader reads of its data set: all, or what a sampler over a part of it is bound to."""
    indices = getattr(loader.sampler, "indices", None)
    return range(len(loader.dataset)) if indices is None else [int(i) for i in indices]  # type: ignore[arg-type]


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
    while isinstance(loaders, (list, tuple, Mapping)):
        loaders = next(iter(loaders.values() if isinstance(loaders, Mapping) else loaders), None)
    return loaders
