"""The probe: the held-out images that are explained all through training, as a batch or the user gives them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from fg_lightning.recording.balanced_samples import choose_rows
from fg_lightning.recording.masks import MaskFunction, Masks, WrongMasks, find_masks, read_masks
from fg_lightning.recording.side_by_side import join_side_by_side

HOW_TO_EXPLAIN_A_DETECTOR = (
    "pass images of one size, how the module is called and what is explained: probe=images, "
    "forward=lambda module, batch: module(list(batch)), target=function from the output to a tensor [N]; "
    "see examples/watch_a_detector.py"
)

CHANNELS = (1, 3, 4)
"""Of an image: a tensor of three dimensions that begins with another number is a batch of signals."""

SMALLEST = 16
"""Number of pixels on a side from which a tensor counts as an image, if nothing else tells it from a batch of signals."""

LISTS = ("NestedTensor", "ImageList")
"""Classes that hold images of different sizes, padded: DETR's, torchvision's and detectron2's."""


def describe_image_list(batch: Any) -> str | None:
    """Describes the list of images that a batch is or holds, as detectors take it; None if there is none.

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
    """The image [C, H, W] of an item that is one, alone or with its target; None for other items."""
    if isinstance(item, (tuple, list)):
        item = item[0] if len(item) == 2 and not isinstance(item[0], (tuple, list)) else None
    is_image = isinstance(item, Tensor) and not item.is_nested and item.ndim == 3 and item.shape[0] in CHANNELS
    return item if is_image else None


def are_detections(output: Any) -> bool:
    """Whether an output is a list of mappings, one for each image, as detectors give it."""
    return isinstance(output, (list, tuple)) and bool(output) and all(isinstance(item, Mapping) for item in output)


def tensor_parts(output: Any) -> dict[str, Tensor]:
    """The tensors of an output of several parts, by name or place, without those of no dimension; empty for a tensor."""
    if isinstance(output, Mapping):
        parts = dict(output)
    elif isinstance(output, (list, tuple)):
        parts = dict(zip(getattr(output, "_fields", map(str, range(len(output)))), output, strict=True))
    else:
        parts = {}
    return {str(name): value for name, value in parts.items() if isinstance(value, Tensor) and value.ndim > 0}


def describe_parts(output: Any) -> str | None:
    """A note about an output of several tensors, of which the first is explained; None if there is one, or a name decides."""
    parts = tensor_parts(output)
    if len(parts) < 2 or not parts.keys().isdisjoint(("logits", "out")):
        return None
    names = ", ".join(parts)
    return f"the output has {len(parts)} tensors ({names}), and the first is explained; pass target=function for another"


class NoProbe(ValueError):
    """There are no images to explain; the message says why and what to do."""


@runtime_checkable
class Movable(Protocol):
    """Anything that its method `to` moves to a device, such as a tensor."""

    def to(self, device: torch.device | str) -> Any: ...


def _move(data: Any, device: torch.device | str) -> Any:
    moved = data.to(device)
    return data if moved is None else moved  # a `to` that works in place


@dataclass(frozen=True, eq=False)
class Probe:
    """Images and what else their batch holds.

    Attributes:
        images: [N, C, *S], as the model takes them; several image inputs side by side, see `join_side_by_side`.
        inputs: the image inputs if there are several, each [N, C, *S], as the model takes them one after the other; else None.
        labels: a class or a number for each, [N], several of them, [N, K], or a label map, [N, *S]; None if there are none.
        others: further tensors of the batch that may be the labels. The model's output decides which one is.
        batch: the batch that the images are part of, if a `forward` takes it.
        place: index of the images among the tensors of the batch.
        batch_size: how many images to explain in one pass; None for all.
        is_given: whether the user chose the images.
        masks: where the network should look, True inside; None if that is not known.
        masks_from: where they come from, in words; empty without masks.
        unread_masks: what the user gave for masks, before `with_masks` reads it.
        indices: of the images in their data set; None if they are not known.
        chosen: how the images were chosen, in words.
    """

    images: Float[Tensor, "n c *s"]
    labels: Tensor | None = None
    others: tuple[Tensor, ...] = ()
    batch: Any = None
    place: int = 0
    batch_size: int | None = None
    is_given: bool = False
    masks: Masks | None = None
    masks_from: str = ""
    unread_masks: Any = None
    indices: tuple[int, ...] | None = None
    chosen: str = ""
    inputs: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Probe:
        """The same probe on another device."""
        names = ("images", "inputs", "labels", "others", "batch")
        moved = {name: apply_to_collection(getattr(self, name), Movable, lambda data: _move(data, device)) for name in names}
        return replace(self, **moved)

    @property
    def candidates(self) -> tuple[Tensor, ...]:
        """What may be the labels, the likeliest first."""
        return () if self.labels is None else (self.labels, *self.others)

    @property
    def model_inputs(self) -> Tensor | tuple[Tensor, ...]:
        """The images, or a tuple of several image inputs."""
        return self.images if self.inputs is None else self.inputs

    def parts(self) -> list[Probe]:
        """The probe in parts of at most `batch_size` images, without their batch."""
        step = self.batch_size or len(self)
        rows = [slice(start, start + step) for start in range(0, len(self), step)]
        return [
            Probe(
                self.images[row],
                None if self.labels is None else self.labels[row],
                tuple(other[row] for other in self.others),
                inputs=None if self.inputs is None else tuple(of_input[row] for of_input in self.inputs),
            )
            for row in rows
        ]

    def with_masks(self, function: MaskFunction | None = None) -> Probe:
        """The same probe with the masks that the user gave beside the images, or that a function makes of their batch.

        Raises:
            WrongMasks: if they do not fit the images, or both are given.
        """
        if self.unread_masks is None and function is None:
            return self
        if self.unread_masks is not None and function is not None:
            raise WrongMasks("masks are given twice, in probe=(images, labels, masks) and by masks=function; leave one out")
        given = self.unread_masks if function is None else function(self.images if self.batch is None else self.batch)
        if given is None:  # by the function: there are none
            return replace(self, masks=None, masks_from="")
        origin = "given with the probe" if function is None else f"made by {getattr(function, '__name__', 'a function')}"
        if self.inputs is None:
            masks = read_masks(given, self.images)
        elif isinstance(given, (tuple, list)) and len(given) == len(self.inputs):
            masks = join_side_by_side([read_masks(*pair) for pair in zip(given, self.inputs, strict=True)])
        else:
            raise WrongMasks(f"masks of {len(self.inputs)} image inputs must be a tuple of the masks of each")
        return replace(self, masks=masks, masks_from=origin, unread_masks=None)

    def fingerprint(self) -> str:
        """A digest of the images and labels."""
        digest = hashlib.sha256()
        for tensor in (self.images, *(self.inputs or ()), self.labels):
            if tensor is not None:
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_batch(cls, batch: Any, num_samples: int, *, with_batch: bool = False) -> Probe:
        """`num_samples` images of a batch, which may be a tensor, tuple, list, mapping or dataclass, nested or not.

        The images are its first floating-point tensor of 3 to 5 dimensions. The labels are a tensor with as many rows; integers
        [N] go first. If fields have names, those in `IMAGE_NAMES` and `LABEL_NAMES` go before any other. Of more images than
        `num_samples`, as many of each class are taken if the labels are classes, else the first. `find_masks` tells which masks
        are taken along.

        Args:
            batch: what a loader gives.
            num_samples: how many images to take at most.
            with_batch: keep the rest of the batch, too, cut to as many rows.

        Raises:
            NoProbe: if the batch holds no image.
        """
        listed = describe_image_list(batch)
        if listed is not None:
            raise NoProbe(
                f"the batch holds {listed}, as detectors take them, and no tensor [N, C, H, W]; {HOW_TO_EXPLAIN_A_DETECTOR}"
            )
        leaves = list(_leaves(batch))
        images = next(iter(_rank(leaves, IMAGE_NAMES, lambda t: t.is_floating_point() and 3 <= t.ndim <= 5)), None)
        if images is None or not len(images):
            found = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for _, t in leaves) or "no tensor"
            raise NoProbe(
                f"found no images in a batch of type {type(batch).__name__} ({found}); images are floating-point tensors "
                "[N, C, H, W], as the module's forward takes them. Pass them yourself: probe=(images, labels)"
            )
        n = len(images)
        rest = [(name, tensor) for name, tensor in leaves if tensor is not images]
        ranked = _rank(rest, LABEL_NAMES, lambda t: _has_rows(t, n))
        rows = choose_rows(ranked[0] if ranked else None, n, num_samples)

        def cut(tensor: Tensor) -> Tensor:
            return (tensor[rows] if tensor.ndim and len(tensor) == n else tensor).detach().clone()

        def plain(tensor: Tensor) -> Tensor:
            """Without a subclass that changes slices and sums, such as MONAI's MetaTensor."""
            return cut(tensor).as_subclass(Tensor)

        fitting = [_as_numbers(plain(tensor)) for tensor in ranked]
        labels = [tensor.flatten() if tensor.shape[1:] == (1,) else tensor for tensor in fitting]
        masks = find_masks(rest, ranked[0] if ranked else None, images)
        probe = cls(plain(images), labels[0] if labels else None, tuple(labels[1:]))
        if masks is not None:
            probe = replace(probe, masks=masks[0][rows], masks_from=masks[1])
        if not with_batch:
            return probe
        tensors: list[Tensor] = []
        apply_to_collection(batch, Tensor, tensors.append)
        place = next(i for i, tensor in enumerate(tensors) if tensor is images)
        return replace(probe, batch=apply_to_collection(batch, Tensor, cut), place=place)

    @classmethod
    def from_user(cls, probe: Tensor | Sequence[Any]) -> Probe:
        """The images, (images, labels) or (images, labels, masks) that the user passed; `with_masks` reads the masks.

        For a model of several image inputs, `images` is a tuple of them, and `masks` a tuple of the masks of each.

        Raises:
            NoProbe: if the argument is anything else.
        """
        parts = (probe, None) if isinstance(probe, Tensor) else tuple(probe) if isinstance(probe, (list, tuple)) else ()
        listed = describe_image_list(parts[:2])
        if listed is not None:
            raise NoProbe(f"probe is {listed}; {HOW_TO_EXPLAIN_A_DETECTOR}")
        images, labels, masks = (*parts, None)[:3] if len(parts) in (2, 3) else (None, None, None)
        inputs = None
        if _are_inputs(images):
            inputs = tuple(of_input.detach().clone() for of_input in images)
            images = join_side_by_side(inputs)
        if not isinstance(images, Tensor) or not images.is_floating_point() or not 3 <= images.ndim <= 5 or not len(images):
            raise NoProbe(
                "probe must be images, a floating-point tensor [N, C, *S] with at least one of them, (images, labels) or "
                "(images, labels, masks); images may be a tuple for several image inputs with as many images each. "
                'A FullGradMonitor takes numbers of images, too, such as [3, 17], or "hardest"'
            )
        if labels is not None and not (isinstance(labels, Tensor) and labels.ndim and len(labels) == len(images)):
            raise NoProbe(f"the probe's labels must be a tensor with a row for each of {len(images)} images")
        images, labels = images.detach().clone(), None if labels is None else _as_numbers(labels.detach().clone())
        of_model = images if inputs is None else inputs
        batch = of_model if labels is None else (of_model, labels)
        return cls(images, labels, batch=batch, is_given=True, unread_masks=masks, chosen="given", inputs=inputs)


def _are_inputs(images: Any) -> bool:
    """Whether the images of a probe are those of several inputs, with an image for each sample."""
    if not isinstance(images, (tuple, list)) or len(images) < 2:
        return False
    are_images = all(isinstance(t, Tensor) and t.is_floating_point() and 3 <= t.ndim <= 5 for t in images)
    return are_images and len({len(of_input) for of_input in images}) == 1


IMAGE_NAMES = ("image", "images", "img", "pixel_values", "input", "inputs", "x")
LABEL_NAMES = ("label", "labels", "target", "targets", "class", "mask", "masks", "y")
"""Field names that go before any other field that fits."""


def lacks_images(batch: Any) -> bool:
    """Whether no transform can turn a batch into images: it has tensors, and all of them have less than 3 dimensions."""
    leaves = list(_leaves(batch))
    return bool(leaves) and all(tensor.ndim < 3 for _, tensor in leaves)


def _leaves(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch with the names of their fields."""
    if isinstance(batch, Tensor):
        if not batch.is_nested:
            yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _leaves(value, str(key))
    elif isinstance(batch, (tuple, list)) and batch and all(type(value) in (bool, int, float) for value in batch):
        yield name, torch.tensor(batch)
    elif isinstance(batch, (tuple, list)):
        names = getattr(batch, "_fields", [name] * len(batch))
        for field, value in zip(names, batch, strict=True):
            yield from _leaves(value, field)
    elif is_dataclass(batch):
        for field in fields(batch):
            yield from _leaves(getattr(batch, field.name), field.name)


def _rank(leaves: list[tuple[str, Tensor]], names: Sequence[str], fits: Callable[[Tensor], bool]) -> list[Tensor]:
    """The tensors that fit: those with one of the names first; within both groups, classes [N] first."""
    fitting = [(name.lower() in names, tensor) for name, tensor in leaves if fits(tensor)]
    return [tensor for _, tensor in sorted(fitting, key=lambda leaf: (not leaf[0], not _is_classes(leaf[1])))]


def _as_numbers(labels: Tensor) -> Tensor:
    """Booleans as 0 and 1."""
    return labels.to(torch.uint8) if labels.dtype is torch.bool else labels


def _has_rows(tensor: Tensor, n: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == n and not tensor.is_complex()


def _is_classes(tensor: Tensor) -> bool:
    """Whether it is [N] or [N, 1] integers."""
    is_integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
    return is_integer and (tensor.ndim == 1 or (tensor.ndim == 2 and tensor.shape[1] == 1))
