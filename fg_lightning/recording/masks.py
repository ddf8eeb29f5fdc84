"""Masks of where a network should look: read from masks or boxes, from the fields of a batch, or from label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Masks = Bool[Tensor, "n 1 *s"]

MaskFunction = Callable[[Any], Any]
"""batch -> masks or boxes, as `read_masks` takes them."""

MASK_NAMES = ("mask", "masks", "segmentation", "segmentations", "segmentation_mask", "object_mask", "foreground")
BOX_NAMES = ("box", "boxes", "bbox", "bboxes", "bounding_box", "bounding_boxes")
"""Names of fields of a batch that hold masks, or boxes, of the images beside it."""

FIELD = "the field"
"""Start of the description of masks that come from a batch."""

EXPECTED = (
    "masks [N, *S] or [N, 1, *S] of the images' size, boxes [N, 4] of pixels (x0, y0, x1, y1), "
    "or a list with the masks [k, *S] or the boxes [k, 4] of each image"
)


class WrongMasks(ValueError):
    """Masks or boxes do not fit the images. The message gives the reason and what is expected."""


def read_masks(masks: Any, images: Float[Tensor, "n c *s"]) -> Masks:
    """Converts masks or boxes to boolean masks of the images.

    Args:
        masks: tensors or NumPy arrays, in one of these forms:

            - [N, *S] or [N, 1, *S], of any type; every value except 0 and NaN is inside;
            - boxes [N, 4] or [N, k, 4], or a list of [k, 4], for two-dimensional images. They are (x0, y0, x1, y1) in pixels, as in
              torchvision, unless a `BoundingBoxes` of torchvision states another format;
            - a list of [*S] or [k, *S]. The mask of an image is the union of its k masks.

            None in a list stands for an image without a mask.
        images: [N, C, *S], the images that the masks belong to.

    Returns:
        [N, 1, *S], on the CPU, True inside. It is False everywhere for an image without a mask.

    Raises:
        WrongMasks: if they do not fit.

    Examples:
        >>> read_masks(torch.tensor([[0, 0, 2, 1]]), torch.zeros(1, 3, 2, 3)).int()
        tensor([[[[1, 1, 0],
                  [0, 0, 0]]]], dtype=torch.int32)
    """
    count, size = len(images), tuple(images.shape[2:])
    if isinstance(masks, np.ndarray) and masks.dtype != object:
        masks = torch.as_tensor(masks)
    if isinstance(masks, Tensor):
        if masks.is_complex() or not masks.ndim:
            raise WrongMasks(f"masks are a tensor of {masks.dtype} {list(masks.shape)}, but must be {EXPECTED}")
        if len(masks) != count:
            raise WrongMasks(f"there are {len(masks)} masks or boxes for {count} images; give one for each")
    elif not isinstance(masks, Sequence) or isinstance(masks, (str, bytes)):
        raise WrongMasks(f"masks are of type {type(masks).__name__}, but must be {EXPECTED}")
    elif len(masks) != count:
        raise WrongMasks(f"there are masks or boxes of {len(masks)} images for {count} images; give them for each image, or None")
    if isinstance(masks, Tensor) and tuple(masks.shape) == (count, 1, *size):
        return _inside(masks)
    box_format = getattr(masks, "format", "XYXY")  # slices of a BoundingBoxes are plain tensors
    return torch.stack([_mask_of_image(mask, size, i, box_format) for i, mask in enumerate(masks)])[:, None]


def _mask_of_image(mask: Any, size: tuple[int, ...], index: int, box_format: Any) -> Tensor:
    """The mask [*S] of one image."""
    if mask is None:
        return torch.zeros(size, dtype=torch.bool)
    try:
        tensor = torch.as_tensor(mask).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise WrongMasks(f"the mask of image {index} is of type {type(mask).__name__}, but must be {EXPECTED}") from None
    if tuple(tensor.shape) == size:
        return _inside(tensor)
    if tensor.ndim == len(size) + 1 and tuple(tensor.shape[1:]) == size:
        return _inside(tensor).any(0)
    if len(size) == 2 and tensor.shape[-1:] == (4,) and tensor.ndim <= 2:
        return _fill_boxes(tensor.reshape(-1, 4), size, index, getattr(mask, "format", box_format))
    if not tensor.numel():  # an image without objects
        return torch.zeros(size, dtype=torch.bool)
    raise WrongMasks(
        f"the mask of image {index} has shape {list(tensor.shape)}, and the image {list(size)} pixels; give {EXPECTED}"
    )


def _inside(mask: Tensor) -> Tensor:
    return (mask.detach().cpu().as_subclass(Tensor) != 0) & ~mask.detach().cpu().as_subclass(Tensor).isnan()


def _fill_boxes(boxes: Tensor, size: tuple[int, ...], index: int, box_format: Any) -> Tensor:
    """True in every pixel that a box touches, [H, W]."""
    boxes = _corners(boxes.as_subclass(Tensor).double(), getattr(box_format, "value", box_format))
    mask = torch.zeros(size, dtype=torch.bool)
    if not bool(boxes.isfinite().all()):
        raise WrongMasks(f"a box of image {index} holds NaN or an infinite number")
    if len(boxes) and bool((boxes <= 1).all()) and bool((boxes != boxes.round()).any()):
        raise WrongMasks(
            f"the boxes of image {index} lie in 0..1, but must be in pixels; multiply them by (width, height, width, height)"
        )
    for x0, y0, x1, y1 in boxes.tolist():
        if x1 <= x0 or y1 <= y0:
            raise WrongMasks(
                f"the box {[x0, y0, x1, y1]} of image {index} is empty: boxes are (x0, y0, x1, y1) with x0 < x1 and y0 < y1; "
                "convert other formats with torchvision.ops.box_convert"
            )
        rows = slice(max(int(np.floor(y0)), 0), max(int(np.ceil(y1)), 0))
        columns = slice(max(int(np.floor(x0)), 0), max(int(np.ceil(x1)), 0))
        mask[rows, columns] = True
    return mask


def _corners(boxes: Tensor, box_format: str) -> Tensor:
    """Boxes as (x0, y0, x1, y1)."""
    a, b, c, d = boxes.unbind(1)
    if box_format == "XYXY":
        return boxes
    if box_format == "XYWH":
        return torch.stack([a, b, a + c, b + d], 1)
    if box_format == "CXCYWH":
        return torch.stack([a - c / 2, b - d / 2, a + c / 2, b + d / 2], 1)
    raise WrongMasks(f"boxes of format {box_format} cannot be read; convert them to XYXY with torchvision")


def find_masks(
    fields: Sequence[tuple[str, Tensor]], labels: Tensor | None, images: Float[Tensor, "n c *s"]
) -> tuple[Masks, str] | None:
    """The masks in a batch beside its labels, and a description of where they come from; None if there are none.

    A field counts if its name is one of `MASK_NAMES` or `BOX_NAMES` and it fits the images. For boxes, the name is not enough: all
    of them must lie within the images if they are read as (x0, y0, x1, y1), but not all of them if they are read as
    (x, y, width, height). Masks that are full for every image, or empty for every image, do not count.

    Args:
        fields: the tensors of the batch with the names of their fields.
        labels: the tensor that is used as labels. It is not used as masks, too.
        images: [N, C, *S], the images of the batch.
    """
    count, size = len(images), tuple(images.shape[2:])
    by_name: dict[str, list[Tensor]] = {}
    for name, tensor in fields:
        by_name.setdefault(name, []).append(tensor)
    for name, tensors in by_name.items():
        is_mask = name.lower() in MASK_NAMES and tuple(tensors[0].shape) in ((count, *size), (count, 1, *size))
        found: Any = tensors[0] if is_mask or len(tensors) == 1 else tensors
        is_box = name.lower() in BOX_NAMES and len(size) == 2 and len(found) == count and _are_corners(tensors, size)
        if found is labels or not (is_mask or is_box):
            continue
        masks = read_masks(found, images)
        if bool(masks.any()) and not bool(masks.all()):
            return masks, f"{FIELD} {name!r} of the batch" + ("" if is_mask else " as boxes (x0, y0, x1, y1)")
    return None


def _are_corners(tensors: Sequence[Tensor], size: tuple[int, ...]) -> bool:
    """Whether tensors [..., 4] can be boxes (x0, y0, x1, y1) in pixels and cannot be (x, y, width, height)."""
    if not all(1 <= tensor.ndim <= 3 and tensor.shape[-1] == 4 and not tensor.is_complex() for tensor in tensors):
        return False
    boxes, (height, width) = torch.cat([tensor.detach().cpu().reshape(-1, 4).double() for tensor in tensors]), size
    a, b, c, d = boxes.unbind(1)
    are_corners = (boxes >= 0).all(1) & (a < c) & (b < d) & (c <= width) & (d <= height)
    are_sizes = (a + c <= width) & (b + d <= height)
    return bool(are_corners.all()) and not bool(are_sizes.all()) and not bool((boxes <= 1).all())


def region_masks(label_maps: Tensor, classes: Tensor, images: Float[Tensor, "n c *s"]) -> Masks:
    """The region of each image's explained class in its label map, at the size of the images; empty for class 0, the background.

    Args:
        label_maps: a class for every place, [N, *S'].
        classes: the explained class of each image, [N].
        images: [N, C, *S], the images that the masks belong to.
    """
    explained = classes.reshape(-1, *(1,) * (label_maps.ndim - 1))
    regions = ((label_maps == explained) & (explained != 0))[:, None]
    if regions.shape[2:] != images.shape[2:]:
        regions = F.interpolate(regions.float(), images.shape[2:], mode="nearest-exact") > 0
    return regions
