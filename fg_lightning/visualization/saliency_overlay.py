"""Saliency over the image it belongs to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import matplotlib
import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from PIL import Image
from torch import Tensor

COLORMAP = "inferno"
"""Perceptually uniform, and lighter throughout: it reads the same to the colour-blind and in print."""

SIGNED_COLORMAP = "RdBu_r"
"""For maps with negative values: red speaks for the output, blue against it, white is zero. The colour-blind see the difference."""

SMALLEST_SIDE = 112
"""Smaller images are enlarged by a whole factor, because viewers blur them or show them as stamps."""

STRENGTH = 0.7
"""Opacity of the colours where saliency is highest."""

BAND = 32
"""Pixels of height of a signal, which has none."""

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Normalization:
    """What a transform subtracted from each channel and then divided it by. Pictures undo it.

    Args:
        mean: for each channel, or one for all.
        std: for each channel, or one for all.

    Raises:
        ValueError: if there is not one std for each mean, one of them is zero, or a number is not finite.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if not len(self.mean) or len(self.mean) != len(self.std):
            raise ValueError(f"a normalization has a mean and a std for each channel, not {len(self.mean)} and {len(self.std)}")
        if not all(math.isfinite(number) for number in (*self.mean, *self.std)):
            raise ValueError(f"the numbers of a normalization must be finite, but are {tuple(self.mean)} and {tuple(self.std)}")
        if not all(self.std):
            raise ValueError(f"the std of a normalization must not be zero, but is {tuple(self.std)}")

    def undo(self, image: Float[Tensor, "c *s"]) -> Float[Tensor, "c *s"] | None:
        """The image before, in 0..1; None if these numbers cannot be its own: more channels, or pixels far outside 0..1."""
        if len(self.mean) not in (1, len(image)):
            return None
        per_channel = (-1,) + (1,) * (image.ndim - 1)
        std, mean = (image.new_tensor(tuple(numbers)).reshape(per_channel) for numbers in (self.std, self.mean))
        pixels = image * std + mean
        if pixels.max() > 2:  # it was normalised in 0..255
            pixels = pixels / 255
        return pixels.clamp(0, 1) if pixels.min() >= -0.1 and pixels.max() <= 1.1 else None

    def fits(self, images: Float[Tensor, "n c *s"]) -> bool:
        """Whether it can have made the images: each was in 0..1 or 0..255 before, and something was subtracted from them."""
        images = images.detach().float().cpu()
        is_subtracted = not any(mean > 0 for mean in self.mean) or bool((images < 0).any())
        return is_subtracted and all(self.undo(image) is not None for image in images)


def to_rgb(image: Float[Tensor, "c h w"], normalization: Normalization | None = None) -> RGB:
    """An image [C, H, W] in the model's units as [H, W, 3] in 0..255; the mean channel, in grey, if C is not 3.

    A normalization is undone if it fits. Otherwise the image is scaled by its own minimum and maximum.
    """
    values = image.detach().float().cpu()
    pixels = None if normalization is None else normalization.undo(values)
    if pixels is None:
        values = values if len(values) == 3 else values.mean(0, keepdim=True)
        pixels = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    if len(pixels) != 3:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    rgb: RGB = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    return rgb


def overlay(
    image: Tensor,
    saliency: Tensor,
    *,
    strength: float = STRENGTH,
    normalization: Normalization | None = None,
    is_signed: bool | None = None,
) -> RGB:
    """A saliency map in colour over its image in grey, enlarged if it is small.

    Args:
        image: [C, H, W], in the model's units.
        saliency: [1, H, W] or [H, W], see `heat_levels`.
        strength: opacity of the colours where saliency is highest; it falls to half of that where it is lowest.
        normalization: of the image, see `to_rgb`.
        is_signed: whether to use the colours of maps with negative values, for a map beside one that has some. None: if this map
            has some.

    Returns:
        [H', W', 3] in 0..255, H' and W' whole multiples of H and W.
    """
    return overlay_rgb(to_rgb(image, normalization), saliency, strength=strength, is_signed=is_signed)


def overlay_rgb(picture: RGB, saliency: Tensor, *, strength: float = STRENGTH, is_signed: bool | None = None) -> RGB:
    """`overlay`, of an image that `to_rgb` made."""
    values = saliency.reshape(saliency.shape[-2:]).detach().float().cpu().numpy()
    level, is_signed = heat_levels(values, is_signed=is_signed)
    return enlarge(_blend(picture, level, strength, is_signed))


def overlays_rgb(pictures: Sequence[RGB], maps: Float[Tensor, "n 1 h w"], *, is_signed: bool) -> list[RGB]:
    """`overlay_rgb` of several images and their maps, at their own size."""
    levels, _ = heat_levels(maps[:, 0].detach().float().cpu().numpy(), is_signed=is_signed)
    return [_blend(picture, level, STRENGTH, is_signed) for picture, level in zip(pictures, levels, strict=True)]


def _blend(picture: RGB, level: npt.NDArray[np.float32], strength: float, is_signed: bool) -> RGB:
    """The colours of levels over a picture in grey. In place, since fresh memory costs more than the arithmetic."""
    colours = colour_table(SIGNED_COLORMAP if is_signed else COLORMAP).take((level * 255).astype(np.uint8), axis=0)
    weight = np.abs(2 * level - 1) if is_signed else level
    opacity = (strength * (0.5 + 0.5 * weight))[..., None]
    red, green, blue = np.moveaxis(picture, -1, 0)
    grey = ((red.astype(np.float32) + green + blue) / 3)[..., None]
    colours -= grey
    colours *= opacity
    colours += grey
    return colours.round(out=colours).astype(np.uint8)


def heat_levels(values: npt.NDArray[np.float32], *, is_signed: bool | None = None) -> tuple[npt.NDArray[np.float32], bool]:
    """Maps [..., H, W] as levels in 0..1 of a colour map, and whether that is the signed one, which has zero in its middle.

    Each is scaled by its minimum and its 99.5th percentile, so that a single pixel does not take all the contrast. A signed map is
    scaled by the percentile of its magnitude.
    """
    if float(values.min()) < 0 if is_signed is None else is_signed:
        return scale_to_unit(np.abs(values), low=0) * np.sign(values) * np.float32(0.5) + np.float32(0.5), True
    return scale_to_unit(values), False


def any_negative(maps: Iterable[Tensor]) -> bool:
    """Whether any of the maps that are shown together has negative values. Then all take the signed colours."""
    return any(bool((saliency < 0).any()) for saliency in maps)


def scale_to_unit(values: npt.NDArray[np.float32], low: float | None = None) -> npt.NDArray[np.float32]:
    """Maps [..., H, W], each scaled to 0..1 by its minimum, or `low`, and its 99.5th percentile."""
    plane = (-2, -1)
    least = values.min(plane, keepdims=True) if low is None else values.dtype.type(low)
    high = np.percentile(values, 99.5, plane, keepdims=True)
    high = np.where(high <= least, values.max(plane, keepdims=True), high).astype(np.float64)
    scaled = values - least
    scaled /= np.maximum(high - least, 1e-12).astype(values.dtype)
    return np.clip(scaled, 0, 1, out=scaled)


@cache
def colour_table(name: str) -> npt.NDArray[np.float32]:
    """A colour map as [256, 3] in 0..255."""
    table: npt.NDArray[np.float32] = (255 * matplotlib.colormaps[name](np.arange(256))[:, :3]).astype(np.float32)
    return table


def colour_bar(height: int, width: int = 8, *, is_signed: bool = False) -> RGB:
    """The colours from highest, at the top, to lowest, [height, width, 3]."""
    levels = np.linspace(255, 0, height).round().astype(np.uint8)
    column = colour_table(SIGNED_COLORMAP if is_signed else COLORMAP)[levels].round().astype(np.uint8)
    return column[:, None].repeat(width, axis=1)


def add_colour_bar(picture: RGB, *, is_signed: bool = False) -> RGB:
    """An overlay with its colour bar beside it, [H, W + 14, 3]."""
    gap = np.full((len(picture), 6, 3), 255, dtype=np.uint8)
    return np.concatenate([picture, gap, colour_bar(len(picture), is_signed=is_signed)], axis=1)


def enlarge(picture: RGB, side: int = SMALLEST_SIDE) -> RGB:
    """Repeats every pixel by the same whole factor, until the shorter side has so many pixels or more."""
    factor = max(1, -(-side // min(picture.shape[:2])))
    return picture if factor == 1 else picture.repeat(factor, axis=1).repeat(factor, axis=0)


def shrink(picture: RGB, side: int) -> RGB:
    """A smaller picture whose longer side has `side` pixels. A picture that is small enough is returned as it is."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smaller: RGB = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    return smaller


def planar(images: Tensor) -> Tensor:
    """[N, C, *S] as [N, C, H, W]: the middle slice of a volume's or clip's first axis, a signal as a band."""
    if images.ndim == 5:
        return images[:, :, images.shape[2] // 2]
    return images.unsqueeze(2).expand(-1, -1, BAND, -1) if images.ndim == 3 else images
