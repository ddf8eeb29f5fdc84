"""What a datamodule says of its data: the number of classes and the shape of an image."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

LOADERS = {"fit": "train_dataloader", "validate": "val_dataloader", "test": "test_dataloader", "predict": "predict_dataloader"}


def classes_of(data: LightningDataModule) -> int | None:
    """How many classes a datamodule that is set up has; None if it does not say.

    Its attribute `num_classes`, the names in an attribute `classes` of it or its data sets, or the labels of a TensorDataset.
    """
    for found in _within(data):
        count, names = getattr(found, "num_classes", None), getattr(found, "classes", None)
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
        if isinstance(names, (list, tuple)) and names:  # an empty list names none
            return len(names)
        if isinstance(found, TensorDataset) and not found.tensors[-1].is_floating_point():
            return int(found.tensors[-1].max()) + 1
    return None


def image_shape(data: LightningDataModule, stage: str) -> tuple[int, ...] | None:
    """The shape [C, H, W] of the first image of a stage's data, None if it cannot be read by its index.

    Neither the global random state nor a loader that is read later notices.
    """
    dataset = _dataset(data, LOADERS[stage])
    if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset) or not len(dataset):
        return None
    with isolate_rng():
        sample = dataset[0]  # type: ignore[index]
    image = sample[0] if isinstance(sample, (tuple, list)) else sample
    return tuple(image.shape) if isinstance(image, Tensor) and image.ndim == 3 else None


def _dataset(data: LightningDataModule, hook: str) -> Any:
    if getattr(data, hook).__qualname__.startswith("DataHooks."):
        return None
    loader = getattr(data, hook)()
    return getattr(loader, "dataset", None)


def _within(data: LightningDataModule) -> Iterator[Any]:
    """A datamodule, the one that it changes, the data sets of both, and those that these are parts of."""
    for found in (data, getattr(data, "base", None)):
        if found is not None:
            yield found
            for value in vars(found).values():
                while isinstance(value, Sized) and hasattr(value, "__getitem__"):
                    yield value
                    value = getattr(value, "dataset", None)
