"""The numbers of a transform that normalizes, as the libraries that are in use keep them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fg_lightning.callbacks.code import attribute
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
