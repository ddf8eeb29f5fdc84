"""The pixels of an image of any kind that data sets give: PIL, torch tensor or numpy array."""

from __future__ import annotations

from typing import Any, Union

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fg_lightning.removal import Imputer

Picture = Union[Image.Image, Tensor, npt.NDArray[Any]]
"""PIL in a mode of MODES; a tensor [C, *S]; an array [H, W] or [H, W, C]. Integers are 0..255."""

Mask = npt.NDArray[np.bool_]

MODES = ("L", "RGB", "F", "I")
"""Of PIL images, those whose pixels are numbers."""


PACKED: dict[str, tuple[str, type[np.unsignedinteger[Any]]]] = {"L": ("L", np.uint8), "RGB": ("RGBX", np.uint32)}
"""Of modes whose channels are bytes, PIL's name for pixels of one integer each, and that integer."""


SMALL = 64 * 64
"""Pixels from which on PIL images are painted bit by bit."""


def is_picture(value: Any) -> bool:
    """Whether a part of a sample is an image."""
    return isinstance(value, Image.Image) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim >= 2)


def spatial_shape(image: Picture) -> tuple[int, ...]:
    """The image's size without its channels, such as (H, W).

    Raises:
        TypeError: if its pixels cannot be replaced.
    """
    if isinstance(image, Image.Image):
        if image.mode not in MODES:
            raise TypeError(
                f"images must be of the modes {', '.join(MODES)}, but are of mode {image.mode!r}, in which pixels have no mean; "
                "let the data set give image.convert('RGB')"
            )
        return image.size[::-1]
    if isinstance(image, Tensor) and image.ndim >= 2:
        return tuple(image.shape[1:])
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return image.shape[:2]
    raise TypeError(f"images must be PIL images, tensors [C, *S] or arrays [H, W] or [H, W, C], not {_described(image)}")


def channel_sums(image: Picture) -> npt.NDArray[np.float64]:
    """The sum of every channel over the image's pixels, [C]."""
    if isinstance(image, Tensor):
        return image.flatten(1).double().sum(1).numpy()
    values = np.asarray(image)
    return values.reshape(-1, 1 if values.ndim == 2 else values.shape[2]).sum(0, dtype=np.float64)


def with_values(image: Picture, mask: Mask, values: npt.NDArray[np.float64]) -> Picture:
    """A new image of the same kind whose masked pixels have these values.

    Args:
        image: PIL stays PIL, integers stay integers.
        mask: [*S], True where a pixel goes.
        values: one for every channel, or one for all, in the image's own units.

    Raises:
        ValueError: if there are not as many values as channels.
    """
    if isinstance(image, Tensor):
        _check_values(values, len(image))
        own = values if image.is_floating_point() else values.round()
        fill = torch.as_tensor(own).to(image.dtype).reshape(-1, *(1,) * (image.ndim - 1))
        return torch.where(torch.from_numpy(mask), fill, image)
    if isinstance(image, Image.Image) and image.mode in PACKED:
        channels = len(image.mode)
        _check_values(values, channels)
        colour = [min(max(round(value), 0), 255) for value in values.tolist()] * (channels // len(values))
        return _pasted(image, mask, colour) if mask.size < SMALL else _painted(image, mask, bytes(colour))
    pixels = np.array(image)
    own = values if np.issubdtype(pixels.dtype, np.floating) else values.round()
    _check_values(values, 1 if pixels.ndim == 2 else pixels.shape[2])
    if pixels.ndim == 2:
        np.putmask(pixels, mask, own.astype(pixels.dtype))
    else:
        np.copyto(pixels, own.astype(pixels.dtype), where=mask[..., None])
    return Image.fromarray(pixels) if isinstance(image, Image.Image) else pixels


def imputed(image: Picture, mask: Mask, imputer: Imputer) -> Picture:
    """A new image of the same kind, replaced by an imputer, which sees integers as 0..1.

    Args:
        image: PIL stays PIL, integers stay integers.
        mask: [*S], True where a pixel goes.
        imputer: (images [1, C, *S], mask [1, 1, *S]) -> images.
    """
    where = torch.from_numpy(mask)[None, None]
    if isinstance(image, Tensor):
        if image.is_floating_point():
            return imputer(image[None], where)[0]
        return _as_bytes(imputer(image[None].float() / 255, where)[0]).to(image.dtype)
    pixels = np.array(image)
    first = torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
    changed = imputed(first, mask, imputer)
    assert isinstance(changed, Tensor)
    array = changed[0].numpy() if pixels.ndim == 2 else changed.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array) if isinstance(image, Image.Image) else array


def content(image: Picture) -> bytes:
    """What an image holds, to be hashed or compared."""
    if isinstance(image, Tensor):
        return image.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(np.asarray(image)).tobytes()


def _pasted(image: Image.Image, mask: Mask, colour: list[int]) -> Image.Image:
    pasted = image.copy()
    pasted.paste(tuple(colour) if len(colour) > 1 else colour[0], mask=Image.fromarray(mask))
    return pasted


def _painted(image: Image.Image, mask: Mask, colour: bytes) -> Image.Image:
    """As `_pasted`, bit by bit: three times as fast for large images, and slower for small ones."""
    raw, kind = PACKED[image.mode]
    old = np.frombuffer(image.tobytes("raw", raw), kind)
    new = np.frombuffer(colour.ljust(old.itemsize, b"\xff"), kind)
    all_bits = np.negative(mask.reshape(-1).astype(kind))
    return Image.frombytes(image.mode, image.size, (old ^ (old ^ new) & all_bits).tobytes(), "raw", raw)


def _as_bytes(values: Float[Tensor, "c *s"]) -> Tensor:
    return (values.clamp(0, 1) * 255).round()


def _check_values(values: npt.NDArray[np.float64], channels: int) -> None:
    if len(values) not in (1, channels):
        raise ValueError(f"there are {len(values)} numbers to fill pixels with, but the images have {channels} channels")


def _described(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"
