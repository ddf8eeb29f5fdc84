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
"""Perceptually uniform, rising in lightness throughout, so that it reads the same to the colour-blind and in print."""

SIGNED_COLORMAP = "RdBu_r"
"""For maps with negative values: red speaks for the output, blue against it, white is zero; the colour-blind tell them apart."""

SMALLEST_SIDE = 112
"""Smaller images are enlarged by a whole factor: viewers blur them or show them as stamps."""

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Normalization:
    """What a transform subtracted from every channel and then divided it by, to be undone for the eye.

    Args:
        mean: for each channel, or one for all.
        std: likewise.

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

    def undone(self, image: Float[Tensor, "c *s"]) -> Float[Tensor, "c *s"] | None:
        """The image as it was, in 0..1; None where these numbers cannot be its own: more channels, or pixels far outside."""
        if len(self.mean) not in (1, len(image)):
            return None
        per_channel = (-1,) + (1,) * (image.ndim - 1)
        std, mean = (image.new_tensor(tuple(numbers)).reshape(per_channel) for numbers in (self.std, self.mean))
        pixels = image * std + mean
        if pixels.max() > 2:  # it was normalised in 0..255
            pixels = pixels / 255
        return pixels.clamp(0, 1) if pixels.min() >= -0.1 and pixels.max() <= 1.1 else None

    def fits(self, images: Float[Tensor, "n c *s"]) -> bool:
        """Whether it can have made some images: each was in 0..1 or 0..255 before, and something was subtracted from them."""
        images = images.detach().float().cpu()
        is_subtracted = not any(mean > 0 for mean in self.mean) or bool((images < 0).any())
        return is_subtracted and all(self.undone(image) is not None for image in images)


def displayed(image: Float[Tensor, "c h w"], normalization: Normalization | None = None) -> RGB:
    """An image [C, H, W] in whatever units the model takes as [H, W, 3] in 0..255; the mean channel, in grey, if C is not 3.

    Its normalization is undone where one is given that fits, otherwise it is scaled by its own minimum and maximum.
    """
    values = image.detach().float().cpu()
    pixels = None if normalization is None else normalization.undone(values)
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
    strength: float = 0.7,
    normalization: Normalization | None = None,
    is_signed: bool | None = None,
) -> RGB:
    """A saliency map in colour over its image in grey, enlarged where it is small.

    Args:
        image: [C, H, W], in whatever units the model takes.
        saliency: [1, H, W] or [H, W]; see `heat`.
        strength: opacity of the colours where saliency is highest; it falls to half of that where it is lowest.
        normalization: of the image; see `displayed`.
        is_signed: whether the colours are those of maps with negative values, as for a map that stands beside such; by default
            whether it has any itself.

    Returns:
        [H', W', 3] in 0..255, H' and W' whole multiples of H and W.
    """
    return overlaid(displayed(image, normalization), saliency, strength=strength, is_signed=is_signed)


def overlaid(picture: RGB, saliency: Tensor, *, strength: float = 0.7, is_signed: bool | None = None) -> RGB:
    """`overlay`, of an image that is ready to be displayed."""
    values = saliency.reshape(saliency.shape[-2:]).detach().float().cpu().numpy()
    level, is_signed = heat(values, is_signed=is_signed)
    colours = colour_table(SIGNED_COLORMAP if is_signed else COLORMAP)[(level * 255).astype(np.uint8)]
    weight = np.abs(2 * level - 1) if is_signed else level
    opacity = (strength * (0.5 + 0.5 * weight))[..., None]
    grey = picture.mean(-1, keepdims=True, dtype=np.float32)
    return enlarged((grey + opacity * (colours - grey)).round().astype(np.uint8))


def heat(values: npt.NDArray[np.float32], *, is_signed: bool | None = None) -> tuple[npt.NDArray[np.float32], bool]:
    """A map as levels in 0..1 of a colour map, and whether that is the signed one, which has zero in its middle.

    Scaled by the map's own minimum and its 99.5th percentile, or that of its magnitude where it has negative values (or
    `is_signed` says that its neighbours do), so that a single pixel does not take all the contrast.
    """
    if float(values.min()) < 0 if is_signed is None else is_signed:
        return relative(np.abs(values), low=0) * np.sign(values) * np.float32(0.5) + np.float32(0.5), True
    return relative(values), False


def any_negative(maps: Iterable[Tensor]) -> bool:
    """Whether some of the maps that are shown together have negative values, and so all of them take the signed colours."""
    return any(bool((saliency < 0).any()) for saliency in maps)


def relative(values: npt.NDArray[np.float32], low: float | None = None) -> npt.NDArray[np.float32]:
    """Values scaled to 0..1 by their minimum, or `low`, and their 99.5th percentile."""
    low = float(values.min()) if low is None else low
    high = float(np.percentile(values, 99.5))
    if high <= low:
        high = float(values.max())
    scaled: npt.NDArray[np.float32] = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return scaled


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


def with_colour_bar(picture: RGB, *, is_signed: bool = False) -> RGB:
    """An overlay with its colours beside it, [H, W + 14, 3]: all of one picture where there is room for no more than a picture."""
    gap = np.full((len(picture), 6, 3), 255, dtype=np.uint8)
    return np.concatenate([picture, gap, colour_bar(len(picture), is_signed=is_signed)], axis=1)


def enlarged(picture: RGB) -> RGB:
    """Every pixel repeated by a whole factor, until the shorter side has `SMALLEST_SIDE` pixels."""
    factor = max(1, -(-SMALLEST_SIDE // min(picture.shape[:2])))
    return picture if factor == 1 else picture.repeat(factor, axis=0).repeat(factor, axis=1)


def reduced(picture: RGB, side: int) -> RGB:
    """The same, or a smaller picture whose longer side has `side` pixels."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smaller: RGB = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    return smaller
