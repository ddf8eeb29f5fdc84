"""Reads and replaces pixels of PIL images, tensors and arrays, and finds the image in a sample of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from fg_lightning.errors import CannotRun, UnfitData
from fg_lightning.removal import FillFunction
from fg_lightning.roar.dataset_transforms import Joint, Transform, Whole

Picture = Union[Image.Image, Tensor, npt.NDArray[Any]]
"""A PIL image in a mode of MODES, a tensor [C, *S], or an array [H, W] or [H, W, C]."""

Mask = npt.NDArray[np.bool_]

Limits = Union[torch.iinfo, "np.iinfo[Any]"]
"""Limits of an integer type."""

MODES = ("L", "RGB", "F", "I")
"""The modes of PIL images whose pixels are numbers."""

PACKED: dict[str, tuple[str, type[np.unsignedinteger[Any]]]] = {"L": ("L", np.uint8), "RGB": ("RGBX", np.uint32)}
"""For modes whose channels are bytes: PIL's name for pixels of one integer each, and the type of that integer."""

SMALL = 64 * 64
"""Number of pixels from which PIL images are painted bit by bit."""


def is_picture(value: Any) -> bool:
    """Whether a part of a sample is an image."""
    return isinstance(value, Image.Image) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim >= 2)


def holds_bytes(image: Picture) -> bool:
    """Whether every channel of a pixel is a number in 0..255."""
    if isinstance(image, Image.Image):
        return image.mode in PACKED
    return image.dtype == (torch.uint8 if isinstance(image, Tensor) else np.uint8)


def spatial_shape(image: Picture) -> tuple[int, ...]:
    """The image's size without its channels, such as (H, W).

    Raises:
        UnfitData: if its pixels cannot be replaced.
    """
    if isinstance(image, Image.Image):
        if image.mode not in MODES:
            wider = "I" if image.mode.startswith("I;") else "RGB"  # RGB cannot hold 16 bits
            raise UnfitData(
                f"images must be of the modes {', '.join(MODES)}, but are of mode {image.mode!r}; let the data set give "
                f"image.convert({wider!r})"
            )
        return image.size[::-1]
    if isinstance(image, Tensor) and image.ndim >= 2:
        return tuple(image.shape[1:])
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return image.shape[:2]
    raise UnfitData(f"images must be PIL images, tensors [C, *S] or arrays [H, W] or [H, W, C], not {_type_and_shape(image)}")


def planes(image: Picture) -> Shaped[Tensor, "c *s"]:
    """The image's channels, in its own type."""
    if isinstance(image, Tensor):
        return image
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def channel_sums(image: Picture) -> npt.NDArray[np.float64]:
    """The sum of every channel over the image's pixels, [C]."""
    if isinstance(image, Tensor):
        return image.cpu().flatten(1).double().sum(1).numpy()
    values = np.asarray(image)
    return values.reshape(-1, 1 if values.ndim == 2 else values.shape[2]).sum(0, dtype=np.float64)


def fill_with_values(image: Picture, mask: Mask, values: npt.NDArray[np.float64]) -> Picture:
    """A new image of the same kind whose masked pixels have these values.

    Args:
        image: the image. PIL images stay PIL images, integers stay integers.
        mask: [*S], True for pixels that are removed.
        values: one for each channel, or one for all, in the image's own units. Integers get the nearest possible value.

    Raises:
        CannotRun: if there is neither one value nor one for each channel.
    """
    if isinstance(image, Tensor):
        _check_values(values, len(image))
        own = values if image.is_floating_point() else _nearest(values, torch.iinfo(image.dtype))
        fill = torch.as_tensor(own).to(image).reshape(-1, *(1,) * (image.ndim - 1))
        return torch.where(torch.from_numpy(mask).to(image.device), fill, image)
    if isinstance(image, Image.Image) and image.mode in PACKED:
        channels = len(image.mode)
        _check_values(values, channels)
        colour = [min(max(round(value), 0), 255) for value in values.tolist()] * (channels // len(values))
        return _paste(image, mask, colour) if mask.size < SMALL else _paint_bits(image, mask, bytes(colour))
    pixels = np.array(image)
    own = values if np.issubdtype(pixels.dtype, np.floating) else _nearest(values, np.iinfo(pixels.dtype))
    _check_values(values, 1 if pixels.ndim == 2 else pixels.shape[2])
    if pixels.ndim == 2:
        np.putmask(pixels, mask, own.astype(pixels.dtype))
    else:
        np.copyto(pixels, own.astype(pixels.dtype), where=mask[..., None])
    return Image.fromarray(pixels) if isinstance(image, Image.Image) else pixels


def fill_with_function(image: Picture, mask: Mask, fill: FillFunction) -> Picture:
    """A new image of the same kind whose masked pixels come from a function. All other pixels stay.

    Args:
        image: the image. PIL images stay PIL images, bytes stay bytes.
        mask: [*S], True for pixels that are removed.
        fill: function (images [1, C, *S], mask [1, 1, *S]) -> images. It gets bytes as numbers in 0..1.

    Raises:
        UnfitData: if the image holds integers other than bytes, since their largest value is unknown.
    """
    before = planes(image)
    where = torch.from_numpy(mask).to(before.device)
    if before.is_floating_point():
        after = fill(before[None], where[None, None])[0]
    elif before.dtype is torch.uint8:
        after = (fill(before[None].float() / 255, where[None, None])[0].clamp(0, 1) * 255).round()
    else:
        raise UnfitData(
            f"a fill function needs images of bytes or floating-point numbers, but these hold {before.dtype}, whose largest value "
            "is unknown; let the data set give them as float32 in 0..1, or fill pixels with 'dataset_mean' or a number"
        )
    changed = torch.where(where, after.to(before.dtype), before)
    if isinstance(image, Tensor):
        return changed
    array = changed.permute(1, 2, 0).contiguous().numpy() if np.asarray(image).ndim == 3 else changed[0].numpy()
    return Image.fromarray(array) if isinstance(image, Image.Image) else array


def image_bytes(image: Picture) -> bytes:
    """The content of an image, to be hashed or compared."""
    if isinstance(image, Tensor):
        return image.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(np.asarray(image)).tobytes()


def _paste(image: Image.Image, mask: Mask, colour: list[int]) -> Image.Image:
    copy = image.copy()
    opaque = np.multiply(mask, np.uint8(255), order="C")
    copy.paste(tuple(colour) if len(colour) > 1 else colour[0], mask=Image.frombuffer("L", image.size, opaque, "raw", "L", 0, 1))
    return copy


def _paint_bits(image: Image.Image, mask: Mask, colour: bytes) -> Image.Image:
    """Like `_paste`, but bit by bit and mostly in place: several times as fast for large images, slower for small ones."""
    raw, kind = PACKED[image.mode]
    old = np.frombuffer(image.tobytes("raw", raw), kind)
    new = np.frombuffer(colour.ljust(old.itemsize, b"\xff"), kind)
    all_bits = mask.reshape(-1).astype(kind)
    np.negative(all_bits, out=all_bits)
    painted = old ^ new
    painted &= all_bits
    painted ^= old
    return Image.frombytes(image.mode, image.size, painted.view(np.uint8).data, "raw", raw)


def _nearest(values: npt.NDArray[np.float64], limits: Limits) -> npt.NDArray[np.float64]:
    return values.round().clip(limits.min, limits.max)


def _check_values(values: npt.NDArray[np.float64], channels: int) -> None:
    if len(values) not in (1, channels):
        raise CannotRun(
            f"the fill has {len(values)} numbers, but the images have {channels} channels: give one number, or one for each channel"
        )


def _type_and_shape(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"


def place_of_image(sample: Any) -> Any:
    """The index or key of the image in a sample.

    Raises:
        UnfitData: if there is no image.
    """
    items = sample.items() if isinstance(sample, Mapping) else enumerate(sample) if isinstance(sample, (tuple, list)) else ()
    for place, value in items:
        if is_picture(value):
            return place
    raise UnfitData(
        f"no image was found in a sample of type {type(sample).__name__}; expected a tuple, list or dict with a PIL image, "
        "a tensor [C, *S] or an array [H, W, C], such as (image, label)"
    )


def replace_image(sample: Any, place: Any, image: Any) -> Any:
    """A sample of the same kind with another image."""
    if isinstance(sample, Mapping):
        return {**sample, place: image}
    parts = [image if i == place else part for i, part in enumerate(sample)]
    if hasattr(sample, "_fields"):
        return type(sample)(*parts)
    return tuple(parts) if isinstance(sample, tuple) else parts


def apply_transform(sample: Any, place: Any, transform: Transform | None) -> Any:
    """Transforms the image of a sample, with its target or the whole sample if the transform takes them too."""
    if transform is None:
        return sample
    if isinstance(transform, Joint):
        return transform(*sample)
    if isinstance(transform, Whole):
        return transform(sample)
    return replace_image(sample, place, transform(sample[place]))


def images_and_labels(batch: Any, place: Any) -> tuple[Tensor, Tensor | None]:
    """The images [N, C, *S] of a batch, and the first integers [N] behind them.

    Args:
        batch: a batch, as the network's steps get it.
        place: the index or key of the images. In a batch of another form, the first tensor that could be images is used.

    Raises:
        UnfitData: if there are no images.
    """
    parts = list(batch.items() if isinstance(batch, Mapping) else enumerate(batch))
    fit = [i for i, (_, part) in enumerate(parts) if isinstance(part, Tensor) and part.ndim >= 3 and part.is_floating_point()]
    if not fit:
        raise UnfitData(
            "no images were found in a batch: expected a floating-point tensor [N, C, *S], such as torchvision's ToTensor gives"
        )
    first = next((i for i in fit if parts[i][0] == place), fit[0])
    images: Tensor = parts[first][1]
    behind = (part for _, part in parts[first + 1 :] if isinstance(part, Tensor) and part.shape == images.shape[:1])
    return images, next((part for part in behind if not part.is_floating_point()), None)
