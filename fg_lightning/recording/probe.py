"""The probe: the held-out images that are explained all through training. They come from a batch or from the user."""

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
    "pass images of one size, a function that calls the module, and a function to explain: probe=images, "
    "forward=lambda module, batch: module(list(batch)), target=function from the output to a tensor [N]; "
    "see examples/watch_a_detector.py"
)

CHANNELS = (1, 3, 4)
"""Numbers of channels of an image. A tensor of three dimensions whose first size is another number is a batch of signals."""

SMALLEST = 16
"""Least side, in pixels, of a tensor that counts as an image, if nothing else distinguishes it from a batch of signals."""

LISTS = ("NestedTensor", "ImageList")
"""Classes that hold images of different sizes, padded: DETR's, torchvision's and detectron2's."""


def describe_image_list(batch: Any) -> str | None:
    """Describes a list of images, as detectors take it, that is a batch or a part of it; None if there is none.

    Args:
        batch: a batch of a loader.
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
    """The batch, and all items of its sequences and mappings, nested or not. Each comes with the sequence that it is in."""
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
    """The image [C, H, W] of an item that is an image or (image, target); None for other items."""
    if isinstance(item, (tuple, list)):
        item = item[0] if len(item) == 2 and not isinstance(item[0], (tuple, list)) else None
    is_image = isinstance(item, Tensor) and not item.is_nested and item.ndim == 3 and item.shape[0] in CHANNELS
    return item if is_image else None


def are_detections(output: Any) -> bool:
    """Whether an output is a list of mappings, one for each image, as detectors return it."""
    return isinstance(output, (list, tuple)) and bool(output) and all(isinstance(item, Mapping) for item in output)


def tensor_parts(output: Any) -> dict[str, Tensor]:
    """The tensors of an output of several parts, by name or index, without scalars. Empty if the output is one tensor."""
    if isinstance(output, Mapping):
        parts = dict(output)
    elif isinstance(output, (list, tuple)):
        parts = dict(zip(getattr(output, "_fields", map(str, range(len(output)))), output, strict=True))
    else:
        parts = {}
    return {str(name): value for name, value in parts.items() if isinstance(value, Tensor) and value.ndim > 0}


def describe_parts(output: Any) -> str | None:
    """A note that only the first of several tensors in an output is explained; None if there is one, or a name decides."""
    parts = tensor_parts(output)
    if len(parts) < 2 or not parts.keys().isdisjoint(("logits", "out")):
        return None
    names = ", ".join(parts)
    return f"the output has {len(parts)} tensors ({names}), and the first is explained; to explain another, pass target=function"


class NoProbe(ValueError):
    """There are no images to explain. The message gives the reason and what to do."""


@runtime_checkable
class Movable(Protocol):
    """An object with a method `to` that moves it to a device, such as a tensor."""

    def to(self, device: torch.device | str) -> Any: ...


def _move(data: Any, device: torch.device | str) -> Any:
    moved = data.to(device)
    return data if moved is None else moved  # a `to` that works in place


@dataclass(frozen=True, eq=False)
class Probe:
    """The images that are explained, with their labels and masks and the rest of their batch.

    Attributes:
        images: [N, C, *S], floating-point, as the model takes them; several image inputs side by side, see `join_side_by_side`.
        labels: a class or a number for each image, [N]; several of them, [N, K]; or a label map, [N, *S]. Default: None, no labels.
        others: further tensors of the batch that may be the labels. The model's output decides which one is. Default: none.
        batch: the batch that the images belong to, if a `forward` takes it. Default: None.
        place: index of the images among the tensors of the batch. Default: 0.
        batch_size: number of images that are explained in one pass. Default: None, all of them.
        is_given: whether the user chose the images. Default: False.
        masks: where the network should look, bool [N, 1, *S], True inside. Default: None, for unknown.
        masks_from: a description of where the masks come from. Default: "", no masks.
        unread_masks: the masks as the user gave them, before `with_masks` reads them. Default: None.
        indices: indices of the images in their data set. Default: None, for unknown.
        chosen: a description of how the images were chosen. Default: "".
        inputs: the image inputs if there are several, [N, C, *S] each, in the order in which the model takes them. Default: None,
            one input.
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
        """The tensors that may be the labels, the likeliest first."""
        return () if self.labels is None else (self.labels, *self.others)

    @property
    def model_inputs(self) -> Tensor | tuple[Tensor, ...]:
        """The images, or a tuple of several image inputs."""
        return self.images if self.inputs is None else self.inputs

    def parts(self) -> list[Probe]:
        """The probe in parts of at most `batch_size` images, with labels but without masks and batch."""
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
        """The same probe with masks: those that the user gave with the images, or those that a function returns.

        Args:
            function: from the batch, or from the images if there is no batch, to masks or boxes; see `read_masks`. It may return
                None, for no masks. Default: None.

        Raises:
            WrongMasks: if the masks do not fit the images, or are given twice.
        """
        if self.unread_masks is None and function is None:
            return self
        if self.unread_masks is not None and function is not None:
            raise WrongMasks("masks are given twice, in probe=(images, labels, masks) and by masks=function; leave one out")
        given = self.unread_masks if function is None else function(self.images if self.batch is None else self.batch)
        if given is None:  # the function returned no masks
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
        """A SHA-256 digest of the images and labels, in hexadecimal digits."""
        digest = hashlib.sha256()
        for tensor in (self.images, *(self.inputs or ()), self.labels):
            if tensor is not None:
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_batch(cls, batch: Any, num_samples: int, *, with_batch: bool = False) -> Probe:
        """Makes a probe of a batch, which may be a tensor, tuple, list, mapping or dataclass, nested or not.

        The images are its first floating-point tensor of 3 to 5 dimensions. The labels are a tensor with as many rows, preferably
        integers [N]. Fields named in `IMAGE_NAMES` and `LABEL_NAMES` are preferred to others. If there are more images than
        `num_samples`, the probe has equally many of each class if the labels are classes, and otherwise the first images. The masks
        are those that `find_masks` finds.

        Args:
            batch: a batch of a loader.
            num_samples: largest number of images.
            with_batch: whether to keep the rest of the batch, too, with the same rows. Default: False.

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
                "[N, C, *S], as the module's forward takes them. Pass them yourself: probe=(images, labels)"
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
        """Makes a probe of the images, (images, labels) or (images, labels, masks) that the user passed.

        `with_masks` reads the masks. For a model with several image inputs, `images` is a tuple of them, and `masks` is a tuple of
        the masks of each input.

        Args:
            probe: images [N, C, *S], floating-point; labels with a row for each image, or None; masks as in `read_masks`.

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
                "probe must be images, (images, labels) or (images, labels, masks), where images is a floating-point tensor "
                "[N, C, *S] with at least one image, or for several image inputs a tuple of such tensors with equally many images. "
                'A FullGradMonitor also takes indices of images, such as [3, 17], or "hardest"'
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
"""Names of fields that are preferred to other fields that fit."""


def lacks_images(batch: Any) -> bool:
    """Whether no transform can turn a batch into images: it has tensors, and all of them have fewer than 3 dimensions."""
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
    """The tensors that fit: first those with one of the names, then the others; in both groups, classes [N] come first."""
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
