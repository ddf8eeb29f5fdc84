"""Batches that hold a list of images instead of one tensor, as detectors take them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

HOW_TO_WATCH_A_DETECTOR = (
    "pass images of one size, how the module is called and what is explained: FullGradMonitor(probe=images, "
    "forward=lambda module, batch: module(list(batch)), target=function from the output to a tensor [N]); "
    "see examples/watch_a_detector.py"
)

CHANNELS = (1, 3, 4)
"""Of an image: a tensor of three dimensions that begins with another number is a batch of signals."""

SMALLEST = 16
"""Pixels of an image that nothing else tells from a batch of signals."""

LISTS = ("NestedTensor", "ImageList")
"""Classes that hold images of different sizes, padded: DETR's, torchvision's and detectron2's."""


def list_of_images(batch: Any) -> str | None:
    """What is found, in words, if a batch is or holds a list of images; None if it does not.

    Args:
        batch: what a loader gives.
    """
    for value, together in _values(batch):
        if type(value).__name__ in LISTS or (isinstance(value, Tensor) and value.is_nested):
            return f"a list of images of different sizes ({type(value).__name__})"
        if isinstance(value, (list, tuple)) and _is_list(value, together):
            images = [image for item in value if (image := _image_of(item)) is not None]
            shapes = ", ".join(str(list(image.shape)) for image in images[:3])
            return f"a list of images ({shapes}{', ...' if len(images) > 3 else ''})"
    return None


def _values(batch: Any) -> Iterator[tuple[Any, Sequence[Any]]]:
    """The batch, and all that stands in its sequences and mappings, with all that stands there together."""
    waiting: deque[tuple[Any, Sequence[Any]]] = deque([(batch, ())])
    while waiting:
        value, together = waiting.popleft()
        yield value, together
        inside = list(value.values()) if isinstance(value, Mapping) else value
        if isinstance(inside, (list, tuple)):
            waiting.extend((item, inside) for item in inside)


def _is_list(items: Sequence[Any], together: Sequence[Any]) -> bool:
    images = [_image_of(item) for item in items]
    if not images or any(image is None for image in images):
        return False
    shapes = {tuple(image.shape) for image in images if image is not None}
    if len({shape[0] for shape in shapes}) > 1:
        return False
    has_targets = any(isinstance(item, (list, tuple)) and any(isinstance(v, Mapping) for v in item) for item in items)
    beside = any(isinstance(other, (list, tuple)) and len(other) == len(items) for other in together if other is not items)
    are_large = len(items) > 1 and all(min(shape[1:]) >= SMALLEST for shape in shapes)
    return len(shapes) > 1 or has_targets or beside or are_large


def _image_of(item: Any) -> Tensor | None:
    """An image [C, H, W], alone or with its target; None if it is none."""
    if isinstance(item, (tuple, list)):
        item = item[0] if len(item) == 2 and not isinstance(item[0], (tuple, list)) else None
    is_image = isinstance(item, Tensor) and not item.is_nested and item.ndim == 3 and item.shape[0] in CHANNELS
    return item if is_image else None


def are_detections(output: Any) -> bool:
    """Whether an output is a list of mappings, one for each image, as detectors give it."""
    return isinstance(output, (list, tuple)) and bool(output) and all(isinstance(found, Mapping) for found in output)


def parts_of(output: Any) -> dict[str, Tensor]:
    """The tensors of an output of several parts, by name or place, without those of no dimension; empty for a tensor."""
    if isinstance(output, Mapping):
        parts = dict(output)
    elif isinstance(output, (list, tuple)):
        parts = dict(zip(getattr(output, "_fields", map(str, range(len(output)))), output, strict=True))
    else:
        parts = {}
    return {str(name): value for name, value in parts.items() if isinstance(value, Tensor) and value.ndim > 0}


def other_parts(output: Any) -> str | None:
    """What else an output holds of which one tensor is explained, in words; None if nothing, or if a name makes that one clear."""
    parts = parts_of(output)
    if len(parts) < 2 or not parts.keys().isdisjoint(("logits", "out")):
        return None
    names = ", ".join(parts)
    return f"the output has {len(parts)} tensors ({names}), and the first is explained; pass target=function for another"
