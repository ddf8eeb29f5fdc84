"""Finds in a data set what its batches do not contain: the normalization of the images and the names of the classes.

There is no common place for either. A transform may be an attribute of a data set, of a data set within a data set, an item of a
list in another transform, an attribute of a datamodule, a variable of a closure, or a call in a hook. A simpler rule, such as
`dataset.transform`, misses most of them. So the search follows the references of a loader to at most `MOST_OBJECTS` objects. It
runs none of their code except properties.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from inspect import getclosurevars
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fg_lightning.recording.output_evidence import collect_names, read_attribute
from fg_lightning.visualization.saliency_overlay import Normalization

TRANSFORMS = ("Normalize", "Normalization", "PrefetchLoader")
"""Classes with a `mean` and a `std`: of torchvision, kornia, albumentations; and timm's loader, whose pixels are in 0..255."""

PRESETS = ("ImageClassification", "SemanticSegmentation", "VideoClassification")
"""The transforms of torchvision's weights, which have a `mean` and a `std`, too."""


def read_normalization(transform: Any) -> Normalization | None:
    """The mean and standard deviation of a transform; None if it does not normalize, or its numbers cannot be read.

    It recognizes `Normalize` of torchvision (both generations), its `normalize` in a `partial` and its presets; kornia's
    as a module with buffers and as an augmentation with flags; albumentations', if it is the standard one; MONAI's
    `NormalizeIntensity` with given numbers; timm's loader; and image processors of Hugging Face.
    """
    kind, read = type(transform).__name__, partial(read_attribute, transform)
    if isinstance(transform, partial):
        is_normalize = getattr(transform.func, "__name__", None) == "normalize"
        return _normalization(transform.keywords.get("mean"), transform.keywords.get("std")) if is_normalize else None
    if kind in TRANSFORMS:
        if read("normalization") not in (None, "standard"):
            return None
        flags, values = read("flags"), [read("mean"), read("std")]
        if isinstance(flags, dict) and any(value is None for value in values):
            values = [flags.get("mean"), flags.get("std")]
        return _normalization(*values)
    if kind in PRESETS:
        return _normalization(read("mean"), read("std"))
    if kind == "NormalizeIntensity":
        is_of_all_pixels = not read("nonzero")
        return _normalization(read("subtrahend"), read("divisor")) if is_of_all_pixels else None
    if kind.endswith(("ImageProcessor", "ImageProcessorFast", "FeatureExtractor")) and read("do_normalize") is True:
        return _normalization(read("image_mean"), read("image_std"))
    return None


def _normalization(mean: Any, std: Any) -> Normalization | None:
    try:
        means, stds = _channel_numbers(mean), _channel_numbers(std)
        longest = max(len(means), len(stds))
        if len(means) == 1 or len(stds) == 1:  # one number for all channels
            means, stds = means * (longest // len(means)), stds * (longest // len(stds))
        return Normalization(means, stds)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError):
        return None


def _channel_numbers(value: Any) -> tuple[float, ...]:
    """A number, sequence, array or tensor as a tuple of numbers.

    Raises:
        TypeError, ValueError, RuntimeError: if the value is anything else.
    """
    if value is None:
        raise TypeError("None is not a number")
    if hasattr(value, "detach"):
        value = value.detach().cpu().double()
    array = np.asarray(value, dtype=float)
    if array.size != max(array.shape, default=1):  # statistics of every sample, or of every pixel
        raise ValueError(f"{array.shape} are not numbers of channels")
    return tuple(float(number) for number in array.flatten())


MOST_OBJECTS = 2000
"""Largest number of objects that are searched: a data set may refer to any number of them."""

MOST_ITEMS = 64
"""A longer sequence or mapping holds samples, not transforms."""

LABELS = ("targets", "labels", "_labels", "_targets", "y")
"""Attributes of data sets that hold the labels of their samples."""

CLASS_NAMES = ("classes", "class_names", "categories", "label_names", "names")
"""Attributes of data sets that hold the names of their classes."""

ELSEWHERE = ("trainer", "_trainer", "_iterator")
"""Attributes of datamodules and loaders that are not searched, because they lead away from the data."""

READERS = ("__getitem__", "__iter__", "__call__")
"""Methods of data sets and transforms whose functions may lead to further transforms."""

FRAMEWORKS = ("builtins", "abc", "collections", "typing", "torch", "torchvision", "lightning", "pytorch_lightning", "numpy", "PIL")
"""Packages whose classes have no transform as a class attribute."""

DESCRIPTORS = (FunctionType, property, classmethod, staticmethod, MemberDescriptorType, GetSetDescriptorType)

LEAVES = (str, bytes, int, float, complex, bool, type(None), Tensor, np.ndarray, nn.Parameter, type)

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Methods in which modules and datamodules transform whole batches."""


class DatasetMetadata:
    """
    Args:
        roots: loaders, data sets, datamodules, or anything that leads to their transforms; the most reliable first.
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots

    @classmethod
    def from_model(cls, module: nn.Module, *roots: Any) -> DatasetMetadata:
        """Searches the transforms in a module's batch hooks, too. Its forward is not searched: it does not change the batches."""
        used = [read_attribute(module, name) for name in sorted(collect_names(module, HOOKS))]
        return cls(*roots, [value for value in used if value is not None])

    def normalization(self, images: Tensor | None = None) -> Normalization | None:
        """The first normalization whose numbers can be read; None if there is none.

        Args:
            images: [N, C, *S], the result of the transforms. A normalization that cannot have produced them is ignored. Default:
                None, all count.
        """
        for root in self._roots:
            for item in _walk([root]):
                normalization = read_normalization(item)
                if normalization is not None and (images is None or normalization.fits(images)):
                    return normalization
        return None

    def class_names(self, count: int) -> list[str] | None:
        """The names of `count` classes, from attributes such as `classes` of a data set; None if no list has this length."""
        return next((names for names in self._name_lists() if len(names) == count), None)

    def class_counts(self) -> set[int]:
        """The numbers of classes that the data suggest: lengths of lists of class names, and one more than the highest label."""
        counts = {len(names) for names in self._name_lists()}
        for item in _walk(self._roots):
            values = [read_attribute(item, name) for name in LABELS]
            tensors = read_attribute(item, "tensors")
            counts |= {_highest_label(value) + 1 for value in [*values, *(tensors if isinstance(tensors, tuple) else ())]}
        return {count for count in counts if count > 1}

    def _name_lists(self) -> Iterator[list[str]]:
        for item in _walk(self._roots):
            for name in CLASS_NAMES:
                names = read_attribute(item, name)
                if name == "names" and read_attribute(item, "__getitem__") is not None:  # of samples, not of classes
                    continue
                if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                    yield list(names)


def _walk(roots: Sequence[Any]) -> Iterator[Any]:
    """The objects that can be reached through attributes, items and closures, nearest first."""
    waiting: deque[Any] = deque(roots)
    seen: set[int] = set()
    while waiting and len(seen) < MOST_OBJECTS:
        item = waiting.popleft()
        try:
            if id(item) in seen or isinstance(item, LEAVES):
                continue
            next_objects = _references(item)
        except Exception:  # a dead proxy, an empty closure: the other objects may still be read
            continue
        seen.add(id(item))
        yield item
        waiting.extend(next_objects)


def _references(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return list(item.values())[:MOST_ITEMS] if len(item) <= MOST_ITEMS else []
    if isinstance(item, (list, tuple)):
        return list(item) if len(item) <= MOST_ITEMS else []
    if isinstance(item, MethodType):
        return [item.__self__]
    if isinstance(item, FunctionType):
        variables = getclosurevars(item)
        return [*variables.nonlocals.values(), *(v for v in variables.globals.values() if not isinstance(v, ModuleType))]
    if isinstance(item, partial):
        return [item.func, *item.args, *item.keywords.values()]
    own = [value for name, value in getattr(item, "__dict__", {}).items() if name not in ELSEWHERE]
    return own + _class_attributes(type(item))


def _class_attributes(kind: type) -> list[Any]:
    """The class attributes of the user's classes, and the methods that read a sample."""
    kinds = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in FRAMEWORKS]
    attributes = [item for base in kinds for item in vars(base).items() if item[0] not in ELSEWHERE]
    return [value for name, value in attributes if name in READERS or not (name.startswith("__") or isinstance(value, DESCRIPTORS))]


def _highest_label(labels: Any) -> int:
    """The highest of a data set's integer labels, one for each sample; -1 if there are none."""
    if isinstance(labels, list) and labels and type(labels[0]) is int:
        labels = np.asarray(labels) if all(type(label) is int for label in labels) else None
    if isinstance(labels, Tensor) and labels.ndim == 1 and labels.device.type == "cpu":
        labels = labels.detach().numpy() if labels.numel() and labels.dtype not in (torch.bfloat16, torch.bool) else None
    is_integers = isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.size and labels.dtype.kind in "iu"
    return int(labels.max()) if is_integers else -1
