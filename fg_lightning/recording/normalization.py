"""The numbers of a transform that normalizes, as the libraries that are in use keep them.

What the data says of its images that a batch does not: how they were normalized, and what their classes are called.
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

from fg_lightning.recording.evidence import attribute, names_in
from fg_lightning.visualization.overlay import Normalization

TRANSFORMS = ("Normalize", "Normalization", "PrefetchLoader")
"""Classes with a `mean` and a `std`: of torchvision, kornia, albumentations; and timm's loader, which counts pixels in 0..255."""

PRESETS = ("ImageClassification", "SemanticSegmentation", "VideoClassification")
"""What torchvision's weights call their transforms, which have a `mean` and a `std`, too."""


def normalization_of(found: Any) -> Normalization | None:
    """What a transform subtracts and divides by; None if it does not normalize, or its numbers cannot be read.

    Read are torchvision's `Normalize` (both generations), its `normalize` in a `partial` and the presets of its weights; kornia's
    as a module with buffers and as an augmentation with flags; albumentations', if it is the standard one; MONAI's
    `NormalizeIntensity` with given numbers; timm's loader; and image processors of Hugging Face.
    """
    kind = type(found).__name__
    if isinstance(found, partial):
        is_normalize = getattr(found.func, "__name__", None) == "normalize"
        return _made(found.keywords.get("mean"), found.keywords.get("std")) if is_normalize else None
    if kind in TRANSFORMS:
        if attribute(found, "normalization") not in (None, "standard"):
            return None
        flags = attribute(found, "flags")
        values = [attribute(found, name) for name in ("mean", "std")]
        if isinstance(flags, dict) and any(value is None for value in values):
            values = [flags.get("mean"), flags.get("std")]
        return _made(*values)
    if kind in PRESETS:
        return _made(attribute(found, "mean"), attribute(found, "std"))
    if kind == "NormalizeIntensity":
        is_of_all_pixels = not attribute(found, "nonzero")
        return _made(attribute(found, "subtrahend"), attribute(found, "divisor")) if is_of_all_pixels else None
    if kind.endswith(("ImageProcessor", "ImageProcessorFast", "FeatureExtractor")) and attribute(found, "do_normalize") is True:
        return _made(attribute(found, "image_mean"), attribute(found, "image_std"))
    return None


def _made(mean: Any, std: Any) -> Normalization | None:
    try:
        means, stds = _numbers(mean), _numbers(std)
        longest = max(len(means), len(stds))
        if len(means) == 1 or len(stds) == 1:  # one number for all channels
            means, stds = means * (longest // len(means)), stds * (longest // len(stds))
        return Normalization(means, stds)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError):
        return None


def _numbers(value: Any) -> tuple[float, ...]:
    """A number, sequence, array or tensor as a tuple of numbers.

    Raises:
        TypeError, ValueError, RuntimeError: if it is none.
    """
    if value is None:
        raise TypeError("None is no number")
    if hasattr(value, "detach"):
        value = value.detach().cpu().double()
    array = np.asarray(value, dtype=float)
    if array.size != max(array.shape, default=1):  # statistics of every sample, or of every pixel
        raise ValueError(f"{array.shape} are not numbers of channels")
    return tuple(float(number) for number in array.flatten())


MOST_OBJECTS = 2000
"""Objects looked at in search of a transform: a data set may lead to anything."""

MOST_ITEMS = 64
"""Of a longer sequence only so many are looked at: it holds samples, not transforms."""

LABELS = ("targets", "labels", "_labels", "_targets", "y")
"""What data sets call the labels of their samples."""

CLASS_NAMES = ("classes", "class_names", "categories", "label_names", "names")
"""What data sets call the names of their classes."""

ELSEWHERE = ("trainer", "_trainer", "_iterator")
"""Attributes that lead away from the data: of datamodules, and of loaders that are being read."""

READERS = ("__getitem__", "__iter__", "__call__")
"""Methods of data sets and transforms whose functions may lead to further transforms."""

FRAMEWORKS = ("builtins", "abc", "collections", "typing", "torch", "torchvision", "lightning", "pytorch_lightning", "numpy", "PIL")
"""Packages whose classes keep no transform for all their objects."""

DESCRIPTORS = (FunctionType, property, classmethod, staticmethod, MemberDescriptorType, GetSetDescriptorType)

LEAVES = (str, bytes, int, float, complex, bool, type(None), Tensor, np.ndarray, nn.Parameter, type)


HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""In which modules and datamodules transform whole batches."""


class Facts:
    """
    Args:
        roots: loaders, data sets, datamodules, or anything that leads to their transforms; those that say most first.
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots

    @classmethod
    def of(cls, module: nn.Module, *roots: Any) -> Facts:
        """Also from what a module's hooks apply to whole batches; what its forward applies was not applied to the batches."""
        used = [attribute(module, name) for name in sorted(names_in(module, HOOKS))]
        return cls(*roots, [value for value in used if value is not None])

    def normalization(self, images: Tensor | None = None) -> Normalization | None:
        """The first normalization that a transform makes and whose numbers can be read; None if there is none.

        Args:
            images: [N, C, *S], what came out of the transforms; a normalization that cannot have made them is passed over.
        """
        for root in self._roots:
            for found in _reached([root]):
                normalization = normalization_of(found)
                if normalization is not None and (images is None or normalization.fits(images)):
                    return normalization
        return None

    def class_names(self, count: int) -> list[str] | None:
        """The names of so many classes, as torchvision's and Hugging Face's data sets have them; None if there are none."""
        return next((names for names in self._lists_of_names() if len(names) == count), None)

    def class_counts(self) -> set[int]:
        """How many classes the data speak of: as many as have names, or one more than the highest label of a data set."""
        counts = {len(names) for names in self._lists_of_names()}
        for found in _reached(self._roots):
            values = [attribute(found, name) for name in LABELS]
            tensors = attribute(found, "tensors")
            counts |= {_highest(value) + 1 for value in [*values, *(tensors if isinstance(tensors, tuple) else ())]}
        return {count for count in counts if count > 1}

    def _lists_of_names(self) -> Iterator[list[str]]:
        for found in _reached(self._roots):
            for name in CLASS_NAMES:
                names = attribute(found, name)
                if name == "names" and attribute(found, "__getitem__") is not None:  # of samples, not of classes
                    continue
                if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                    yield list(names)


def _reached(roots: Sequence[Any]) -> Iterator[Any]:
    """The objects that some objects lead to through attributes, items and closures, nearest first."""
    waiting: deque[Any] = deque(roots)
    seen: set[int] = set()
    while waiting and len(seen) < MOST_OBJECTS:
        found = waiting.popleft()
        try:
            if id(found) in seen or isinstance(found, LEAVES):
                continue
            led_to = _led_to(found)
        except Exception:  # a dead proxy, an empty closure: what one object fails at says nothing of the others
            continue
        seen.add(id(found))
        yield found
        waiting.extend(led_to)


def _led_to(found: Any) -> list[Any]:
    if isinstance(found, Mapping):
        return list(found.values())[:MOST_ITEMS] if len(found) <= MOST_ITEMS else []
    if isinstance(found, (list, tuple)):
        return list(found) if len(found) <= MOST_ITEMS else []
    if isinstance(found, MethodType):
        return [found.__self__]
    if isinstance(found, FunctionType):
        variables = getclosurevars(found)
        return [*variables.nonlocals.values(), *(v for v in variables.globals.values() if not isinstance(v, ModuleType))]
    if isinstance(found, partial):
        return [found.func, *found.args, *found.keywords.values()]
    own = [value for name, value in getattr(found, "__dict__", {}).items() if name not in ELSEWHERE]
    return own + _of_classes(type(found))


def _of_classes(kind: type) -> list[Any]:
    """What the classes of a user keep for all their objects, and the functions with which these read a sample."""
    kinds = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in FRAMEWORKS]
    attributes = [item for base in kinds for item in vars(base).items() if item[0] not in ELSEWHERE]
    return [value for name, value in attributes if name in READERS or not (name.startswith("__") or isinstance(value, DESCRIPTORS))]


def _highest(labels: Any) -> int:
    """The highest of the integer labels of a data set, one for each sample; -1 if there are none."""
    if isinstance(labels, list) and labels and type(labels[0]) is int:
        labels = np.asarray(labels) if all(type(label) is int for label in labels) else None
    if isinstance(labels, Tensor) and labels.ndim == 1 and labels.device.type == "cpu":
        labels = labels.detach().numpy() if labels.numel() and labels.dtype not in (torch.bfloat16, torch.bool) else None
    is_integers = isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.size and labels.dtype.kind in "iu"
    return int(labels.max()) if is_integers else -1
