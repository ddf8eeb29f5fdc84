"""Chooses the samples of the probe: equally many of each class, if the labels are known without reading a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from inspect import getattr_static
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from fg_lightning.recording.dataset_metadata import LABELS
from fg_lightning.recording.output_evidence import read_attribute

Labels = npt.NDArray[np.int64]

PAIRS = ("samples", "_samples", "imgs", "_imgs")
"""Attributes of data sets that hold (file, label) of every sample."""

WITHIN = ("dataset", "subset", "base", "data", "ds")
"""Attributes in which a data set keeps another data set that it transforms."""

COLUMNS = ("label", "labels", "target", "class", "fine_label")
"""Label columns of Hugging Face data sets."""


def known_labels(dataset: Any) -> Labels | None:
    """The class of every sample of a data set, found without reading a sample; None if that is not possible.

    It reads the attributes in which data sets keep labels (`targets`, `labels`, ... or pairs of file and label), the tensors of a
    `TensorDataset`, and the label column of a Hugging Face data set. It also searches the parts of `Subset` and `ConcatDataset`,
    and a data set of the same length inside another one.

    Args:
        dataset: any data set with a length.

    Returns:
        [number of samples], int64. Negative for samples without a label.
    """
    if isinstance(dataset, Subset):
        labels = known_labels(dataset.dataset)
        return None if labels is None else labels[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [known_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else np.concatenate(parts)  # type: ignore[arg-type]
    count = len(dataset)
    found = (labels for labels in map(_as_classes, _label_attributes(dataset)) if labels is not None and len(labels) == count)
    inner = (_plain_attribute(dataset, name) for name in WITHIN)
    within = (known_labels(other) for other in inner if isinstance(other, Dataset) and _length(other) == count)
    return next(chain(found, (labels for labels in within if labels is not None)), None)


def _length(dataset: Any) -> int | None:
    return len(dataset) if isinstance(dataset, Sized) else None


def _label_attributes(dataset: Any) -> Iterator[Any]:
    """Candidates for the labels of a data set. Its properties are not called, because they could read all samples."""
    tensors = _plain_attribute(dataset, "tensors")
    yield from tensors[1:] if isinstance(tensors, tuple) else ()
    for name in LABELS:
        yield _plain_attribute(dataset, name)
    for name in PAIRS:
        pairs = _plain_attribute(dataset, name)
        if isinstance(pairs, list) and pairs and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            yield [label for _, label in pairs]
    yield _hugging_face_labels(dataset)


def _plain_attribute(dataset: Any, name: str) -> Any:
    return None if isinstance(getattr_static(dataset, name, None), property) else read_attribute(dataset, name)


def _as_classes(labels: Any) -> Labels | None:
    """Labels as integers, one for each sample; None for anything else, such as real numbers or several labels for each sample."""
    if type(labels).__module__.startswith("pandas.") and hasattr(labels, "to_numpy"):
        labels = labels.to_numpy()
    if isinstance(labels, (list, tuple)):
        if not labels or not all(isinstance(label, (int, np.integer)) for label in labels):
            return None
        labels = np.asarray(labels)
    if isinstance(labels, Tensor):
        if labels.device.type != "cpu" or labels.is_floating_point() or labels.is_complex():
            return None
        labels = labels.detach().numpy()
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iub":
        return None
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    return labels.astype(np.int64) if labels.ndim == 1 and labels.size else None


def _hugging_face_labels(dataset: Any) -> Any:
    """The label column, read without the user's transform."""
    if not type(dataset).__module__.startswith("datasets."):
        return None
    name = next((name for name in COLUMNS if name in dataset.column_names), None)
    return None if name is None else list(dataset.with_format(None)[name])


def choose_evenly(count: int, num_samples: int) -> list[int]:
    """At most `num_samples` of the indices 0 .. `count` - 1, evenly spread from the first to the last."""
    num_samples = min(num_samples, count)
    return [i * (count - 1) // max(num_samples - 1, 1) for i in range(num_samples)]


def choose_balanced(labels: Labels, num_samples: int) -> list[int]:
    """Indices of at most `num_samples` samples, equally many of each class if possible, in the order of their classes.

    If `num_samples` is smaller than the number of classes, each sample is of another class, evenly spread over the classes. Within
    a class, the choice is evenly spread over its samples. Samples without a label (below 0) are used only if no sample has one.

    Args:
        labels: the class of every sample, [number of samples].
        num_samples: number of samples to choose.

    Returns:
        Distinct indices.

    Examples:
        >>> choose_balanced(np.array([0, 0, 0, 1, 2, 2]), 2)
        [1, 5]
    """
    if (labels < 0).all():
        return choose_evenly(len(labels), num_samples)
    places = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
    if len(places) > num_samples:
        places = [places[i] for i in choose_evenly(len(places), num_samples)]
    shares = _divide([len(of_class) for of_class in places], num_samples)
    chosen = []
    for of_class, share in zip(places, shares, strict=True):
        chosen += [int(of_class[(2 * i + 1) * len(of_class) // (2 * share)]) for i in range(share)]
    return chosen


def _divide(sizes: Sequence[int], total: int) -> list[int]:
    """Number of samples to choose from each class: equal numbers; if a class has too few, the others give more."""
    shares = [0] * len(sizes)
    while sum(shares) < min(total, sum(sizes)):
        for i, size in enumerate(sizes):
            if shares[i] < size and sum(shares) < total:
                shares[i] += 1
    return shares


def choose_rows(labels: Tensor | None, count: int, num_samples: int) -> slice | list[int]:
    """The rows of a batch of `count` images that become the probe: balanced if the labels are classes, else the first rows."""
    classes = None if labels is None or count <= num_samples else _as_classes(labels.detach().cpu().as_subclass(Tensor))
    return slice(num_samples) if classes is None else choose_balanced(classes, num_samples)
