"""Overlays: saliency maps in colour over their images."""

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
"""Perceptually uniform, with increasing lightness, so that it also works for colour-blind people and in grey print."""

SIGNED_COLORMAP = "RdBu_r"
"""For maps with negative values: red is for the output, blue is against it, white is zero. Colour-blind people can see it, too."""

SMALLEST_SIDE = 112
"""In pixels. Images with a smaller side are enlarged by a whole factor, because viewers blur them or show them very small."""

STRENGTH = 0.7
"""Opacity of the colours where saliency is highest, 0 to 1."""

BAND = 32
"""Height in pixels of the band that shows a signal."""

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Normalization:
    """The normalization of images, (image - mean) / std. Pictures undo it.

    Args:
        mean: mean of each channel, or one for all channels.
        std: standard deviation of each channel, or one for all channels.

    Raises:
        ValueError: if there is not one std for each mean, a std is zero, or a number is not finite.
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
        """The image before the normalization, in 0..1.

        It is None if the normalization does not fit: the number of channels differs, or pixels would be far outside 0..1.
        """
        if len(self.mean) not in (1, len(image)):
            return None
        per_channel = (-1,) + (1,) * (image.ndim - 1)
        std, mean = (image.new_tensor(tuple(numbers)).reshape(per_channel) for numbers in (self.std, self.mean))
        pixels = image * std + mean
        if pixels.max() > 2:  # it was normalised in 0..255
            pixels = pixels / 255
        return pixels.clamp(0, 1) if pixels.min() >= -0.1 and pixels.max() <= 1.1 else None

    def fits(self, images: Float[Tensor, "n c *s"]) -> bool:
        """Whether images can be results of the normalization: without it they are in 0..1 or 0..255, and a mean was subtracted."""
        images = images.detach().float().cpu()
        is_subtracted = not any(mean > 0 for mean in self.mean) or bool((images < 0).any())
        return is_subtracted and all(self.undo(image) is not None for image in images)


def to_rgb(image: Float[Tensor, "c h w"], normalization: Normalization | None = None) -> RGB:
    """Converts an image for display. If C is not 3, the mean channel is shown in grey.

    Args:
        image: [C, H, W], in the model's units.
        normalization: is undone if it fits. Otherwise the image is scaled by its minimum and maximum. Default: None, unknown.

    Returns:
        uint8 [H, W, 3], in 0..255.
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
        saliency: [1, H, W] or [H, W]. The colours go from its minimum to its 99.5th percentile. If it has negative values, they are
            symmetric around 0.
        strength: opacity of the colours where saliency is highest, 0 to 1. It is half of that where saliency is lowest. Default:
            0.7.
        normalization: normalization of the image, see `to_rgb`. Default: None, unknown.
        is_signed: whether to use the colours for maps with negative values. Default: None, if this map has negative values.

    Returns:
        uint8 [H', W', 3] in 0..255. H' and W' are whole multiples of H and W.
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
    """The colours of levels over a picture in grey. It works in place, because new memory costs more than the arithmetic."""
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
    """Maps [..., H, W] as levels in 0..1 of a colour map, and whether that is the signed colour map, with zero in its middle.

    Each map is scaled by its minimum and its 99.5th percentile, so that a single pixel does not take all the contrast. A signed map
    is scaled by the percentile of its magnitude.
    """
    if float(values.min()) < 0 if is_signed is None else is_signed:
        return scale_to_unit(np.abs(values), low=0) * np.sign(values) * np.float32(0.5) + np.float32(0.5), True
    return scale_to_unit(values), False


def any_negative(maps: Iterable[Tensor]) -> bool:
    """Whether any of the maps that are shown together has negative values. Then all have the signed colours."""
    return any(bool((saliency < 0).any()) for saliency in maps)


def describe_flat(saliency: Tensor) -> str:
    """Describes a map that has the same value everywhere, and therefore one colour: "all zero" or "constant". Else empty."""
    lowest, highest = float(saliency.detach().min()), float(saliency.detach().max())
    if lowest != highest:
        return ""
    return "constant" if highest else "all zero"


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
    """Repeats every pixel by the smallest whole factor for which the shorter side has at least `side` pixels."""
    factor = max(1, -(-side // min(picture.shape[:2])))
    return picture if factor == 1 else picture.repeat(factor, axis=1).repeat(factor, axis=0)


def shrink(picture: RGB, side: int) -> RGB:
    """A smaller picture whose longer side has `side` pixels. A picture that is small enough is returned unchanged."""
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
