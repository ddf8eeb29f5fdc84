"""Where the probe comes from: the loaders of a fit, read without side effects on them."""

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
    """The first validation loader of a fit; None if there is none, or Lightning has not loaded it yet and it cannot be asked for.

    When training starts Lightning has loaded it, unless it skips both the sanity check and the first epoch's validation. A single
    process may then ask for the loader. Several may not, because the user's code may synchronize them in it.
    """
    if not trainer.enable_validation:
        return None
    loaders = trainer.val_dataloaders
    if loaders is None and trainer.world_size == 1:
        owner = _hook_owner("val_dataloader", getattr(trainer, "datamodule", None), trainer.lightning_module)
        if owner is not None:
            loaders = owner.val_dataloader()
        else:  # they were passed to fit: none of the user's code runs when they are loaded now
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            loaders = trainer.val_dataloaders
    return _first(loaders)


def training_loader(trainer: Trainer) -> Any:
    """The first training loader of a fit."""
    return _first(trainer.train_dataloader)


def reads_by_index(loader: Any) -> bool:
    """Whether samples can be read from the loader's data set without reading from the loader itself."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:  # without one, the data set gives whole batches
        return False
    return isinstance(loader.dataset, Sized) and not isinstance(loader.dataset, IterableDataset)


def load_probe(
    loader: DataLoader[Any], num_samples: int, trainer: Trainer, module: LightningModule, *, with_batch: bool = False
) -> Probe:
    """A probe from the data set of a loader that `reads_by_index`. The loader's sampler and workers are not used.

    The samples are evenly spread over the data set, or over the part of it that the loader's sampler reads. They are collated as
    the loader does it, then moved and transformed as a validation batch. If the loader has workers, a separate worker reads the
    samples, so that this process opens no file that the next workers would share.

    Raises:
        NoProbe: if the data set is empty or its batches hold no images.
    """
    indices = _indices(loader)
    if not indices:
        raise NoProbe("the data set is empty; pass images yourself: FullGradMonitor(probe=(images, labels))")
    count = min(num_samples, len(indices))
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
        return Probe.from_batch(batch, num_samples)  # raises, before the user's hooks run in vain
    with _validation_stage(trainer):
        batch = trainer.precision_plugin.convert_input(batch)
        hooks = _hook_owner("on_before_batch_transfer", getattr(trainer, "datamodule", None), module) or module
        batch = hooks.on_before_batch_transfer(batch, 0)  # by position, as Lightning does: the parameter may have any name
        batch = trainer.strategy.batch_to_device(batch, module.device, dataloader_idx=0)
    return replace(Probe.from_batch(batch, num_samples, with_batch=with_batch), batch_size=loader.batch_size)


def _hook_owner(hook: str, *candidates: Any) -> Any:
    """The first object whose data hook the user overrode."""
    return next((c for c in candidates if c is not None and not _is_lightnings(getattr(c, hook))), None)


def _is_lightnings(hook: Any) -> bool:
    """Whether a hook is Lightning's own method; a partial or a mock has no such name."""
    return str(getattr(hook, "__qualname__", "")).startswith("DataHooks.")


def _indices(loader: DataLoader[Any]) -> Any:
    """The indices that a loader reads of its data set: all, or those of a sampler over a part of it."""
    indices = getattr(loader.sampler, "indices", None)
    return range(len(loader.dataset)) if indices is None else [int(i) for i in indices]  # type: ignore[arg-type]


@contextmanager
def _validation_stage(trainer: Trainer) -> Iterator[None]:
    """Batch transforms that depend on the stage treat the probe as validation data."""
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
