"""Reads the probe from the loaders of a fit, without side effects on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, IterableDataset, Subset

from fg_lightning.recording.balanced_samples import choose_balanced, choose_evenly, known_labels
from fg_lightning.recording.hardest_samples import SampleLosses
from fg_lightning.recording.probe import NoProbe, Probe, lacks_images

POOL = 512
"""Largest number of validation images among which the hardest are searched."""


def validation_loader(trainer: Trainer) -> Any:
    """The first validation loader of a fit; None if there is none, or it is not available yet.

    When training starts, Lightning has loaded it, unless Lightning skips both the sanity check and the first epoch's validation.
    Then a single process loads it here. Several processes do not, because the user's code may synchronize them.
    """
    if not trainer.enable_validation:
        return None
    loaders = trainer.val_dataloaders
    if loaders is None and trainer.world_size == 1:
        owner = _hook_owner("val_dataloader", getattr(trainer, "datamodule", None), trainer.lightning_module)
        if owner is not None:
            loaders = owner.val_dataloader()
        else:  # the loaders were passed to fit, so none of the user's code runs when Lightning loads them now
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
    loader: DataLoader[Any],
    num_samples: int,
    trainer: Trainer,
    module: LightningModule,
    *,
    indices: Sequence[int] | None = None,
    with_batch: bool = False,
) -> Probe:
    """Makes a probe of samples from a loader's data set. The loader's sampler and workers are not used.

    It chooses equally many samples of each class if the labels are known without reading samples; otherwise they are evenly spread.
    It chooses from the part of the data set that the loader's sampler reads. The samples are collated as in the loader, then moved
    and transformed as a validation batch.

    Args:
        loader: loader of the validation data, for which `reads_by_index` is True.
        num_samples: number of samples to choose.
        trainer: its plugins move the batch.
        module: its hooks transform the batch.
        indices: indices of the samples in the data set. Default: None, to choose them.
        with_batch: whether to keep the rest of the batch, too. Default: False.

    Raises:
        NoProbe: if the data set is empty, has no such index, or its batches hold no images.
    """
    chosen, words = _choose(loader, num_samples) if indices is None else (_check_indices(indices, loader), "by their numbers")
    batch = next(iter(_reader(loader, chosen, len(chosen))))
    if lacks_images(batch):
        return Probe.from_batch(batch, num_samples)  # raises, before the user's hooks run in vain
    batch = _transfer(batch, trainer, module)
    probe = Probe.from_batch(batch, ALL, with_batch=with_batch)
    if len(probe) != len(chosen):  # the loader makes more or fewer images of the samples
        return replace(Probe.from_batch(batch, len(chosen), with_batch=with_batch), batch_size=loader.batch_size, chosen=words)
    return replace(probe, batch_size=loader.batch_size, indices=tuple(chosen), chosen=words)


def find_hardest(
    loader: DataLoader[Any], num_samples: int, trainer: Trainer, module: LightningModule, losses: SampleLosses
) -> tuple[list[int], str]:
    """The indices of the samples with the largest losses of the current network, and a description of the choice.

    It measures at most `POOL` samples, evenly spread over the data, batch by batch. The sample with the largest loss comes first.

    Raises:
        NoProbe: if there are no samples, or their losses cannot be measured.
    """
    everything = _indices(loader)
    pool = [everything[i] for i in choose_evenly(len(everything), POOL)]
    if not pool:
        raise NoProbe(EMPTY)
    found: list[float] = []
    for batch in _reader(loader, pool, loader.batch_size or 1):
        found += losses.measure(module, _transfer(batch, trainer, module)).tolist()
    if len(found) != len(pool):
        raise NoProbe(f"the loader makes {len(found)} images of {len(pool)} samples, so the loss of a sample is unknown")
    hardest = sorted(range(len(pool)), key=lambda i: -found[i])[:num_samples]
    over = f", evenly spread over {len(everything)}" if len(pool) < len(everything) else ""
    span = f"{losses.words} {found[hardest[-1]]:.3g} to {found[hardest[0]]:.3g}"
    return [pool[i] for i in hardest], f"the hardest {len(hardest)} of {len(pool)} images{over} ({span})"


ALL = 2**31
"""More images than a batch has."""

EMPTY = "the data set is empty; pass images yourself: FullGradMonitor(probe=(images, labels))"


def _choose(loader: DataLoader[Any], num_samples: int) -> tuple[list[int], str]:
    """Indices of samples, balanced over the classes if possible, and a description of the choice."""
    indices = _indices(loader)
    if not indices:
        raise NoProbe(EMPTY)
    try:
        labels = known_labels(loader.dataset)
        places = None if labels is None else choose_balanced(labels[np.asarray(indices)], num_samples)
    except Exception:  # the attributes of a user's data set may hold anything
        places = None
    words = "evenly spread" if places is None else "balanced over the classes"
    return [indices[i] for i in (choose_evenly(len(indices), num_samples) if places is None else places)], words


def _check_indices(indices: Sequence[int], loader: DataLoader[Any]) -> Sequence[int]:
    """
    Raises:
        NoProbe: if the data set has no such index.
    """
    count = len(loader.dataset)  # type: ignore[arg-type]
    beyond = [i for i in indices if i >= count]
    if beyond:
        raise NoProbe(
            f"probe={list(indices)}: there is no image {beyond[0]}, because the data set has {count} images; "
            f"give indices from 0 to {count - 1}"
        )
    return indices


def _reader(loader: DataLoader[Any], indices: Sequence[int], batch_size: int) -> DataLoader[Any]:
    """A loader that reads some samples of a loader's data set in the same way.

    If the given loader has workers, a separate worker reads the samples. So this process does not open files that later workers
    would share.
    """
    workers = {"num_workers": 1, "multiprocessing_context": loader.multiprocessing_context} if loader.num_workers else {}
    return DataLoader(
        Subset(loader.dataset, indices),
        batch_size=batch_size,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
        **workers,
    )


def _transfer(batch: Any, trainer: Trainer, module: LightningModule) -> Any:
    """Moves and transforms a batch as Lightning does with a validation batch."""
    with _validation_stage(trainer):
        batch = trainer.precision_plugin.convert_input(batch)
        hooks = _hook_owner("on_before_batch_transfer", getattr(trainer, "datamodule", None), module) or module
        batch = hooks.on_before_batch_transfer(batch, 0)  # by position, as Lightning does: the parameter may have any name
        return trainer.strategy.batch_to_device(batch, module.device, dataloader_idx=0)


def _hook_owner(hook: str, *candidates: Any) -> Any:
    """The first object whose data hook the user overrode."""
    return next((c for c in candidates if c is not None and not _is_lightnings(getattr(c, hook))), None)


def _is_lightnings(hook: Any) -> bool:
    """Whether a hook is Lightning's own method; a partial or a mock has no such name."""
    return str(getattr(hook, "__qualname__", "")).startswith("DataHooks.")


def _indices(loader: DataLoader[Any]) -> Any:
    """The indices of its data set that a loader reads: all, or those of a sampler of a part."""
    indices = getattr(loader.sampler, "indices", None)
    return range(len(loader.dataset)) if indices is None else [int(i) for i in indices]  # type: ignore[arg-type]


@contextmanager
def _validation_stage(trainer: Trainer) -> Iterator[None]:
    """Sets Lightning's stage, so that batch transforms that depend on it treat the probe as validation data."""
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
