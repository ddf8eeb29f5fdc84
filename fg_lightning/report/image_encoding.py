"""Encodes maps and pictures in few bytes: one WebP picture for each snapshot, with all its maps side by side."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from fg_lightning.visualization.film_strips import spread_indices
from fg_lightning.visualization.outlines import draw_outlines
from fg_lightning.visualization.saliency_overlay import COLORMAP, SIGNED_COLORMAP, colour_table, heat_levels

BUDGET = 12_000_000
"""Largest size of a run's maps in bytes, before base64 adds a third."""

NUM_TRIALS = 5
"""Number of snapshots that are encoded to estimate the size of all."""

LARGEST_PICTURE = 448
"""Longer side of a picture in pixels. Larger pictures are reduced."""

OUTLINED_SIDE = 224
"""Longer side in pixels of the picture with a mask's outline."""

BLANK = 255
"""A colour that outlines do not have."""

Planes = npt.NDArray[np.float32]
Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoding:
    """The encoding of maps as sprites.

    Attributes:
        max_side: longer side in pixels to which maps are reduced. None: no reduction.
        quality: quality of WebP, 0 to 100. None: lossless.
    """

    max_side: int | None = None
    quality: int | None = None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a reduced map."""
        scale = min(1.0, (self.max_side or math.inf) / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def describe(self, height: int, width: int) -> str:
        """A sentence for the user on how it changes maps."""
        smaller = self.size(height, width)
        size = f"{height} by {width}"
        if smaller != (height, width):
            size = f"reduced from {size} to {smaller[0]} by {smaller[1]}"
        return f"Maps are {size}, in 8 bits, {'without further loss' if self.quality is None else f'WebP quality {self.quality}'}."


ENCODINGS = (
    Encoding(),
    Encoding(448, 80),
    Encoding(224, 80),
    Encoding(160, 75),
    Encoding(112, 70),
    Encoding(112, 40),
    Encoding(80, 40),
    Encoding(56, 40),
    Encoding(40, 30),
)
"""Encodings, the best first."""


def choose_encoding(snapshots: Sequence[Any], encode: Callable[[Any, Encoding], bytes | None], budget: int = BUDGET) -> Encoding:
    """The best encoding with which the sprites of all snapshots fit the budget, estimated from a few of them."""
    trials = [snapshots[i] for i in spread_indices(len(snapshots), NUM_TRIALS)] if snapshots else []
    for encoding in ENCODINGS:
        sizes = [len(encode(snapshot, encoding) or b"") for snapshot in trials]
        if sum(sizes) * len(snapshots) <= budget * max(len(trials), 1):
            return encoding
    return ENCODINGS[-1]


def encode_maps(maps: Planes, encoding: Encoding, *, is_signed: bool) -> bytes:
    """Maps [N, H, W] side by side in rows of `num_columns(N)`, as levels of a colour map in 8 bits."""
    height, width = encoding.size(*maps.shape[1:])
    tiles = [colour_levels(_shrink(values, height, width), is_signed=is_signed) for values in maps]
    return encode_webp(Image.fromarray(arrange_tiles(tiles)), encoding.quality)


def colour_levels(values: Planes, *, is_signed: bool) -> Levels:
    """A map [H, W] as levels 0..255 of its colour map, the same as in `saliency_overlay.overlay_rgb`."""
    return (heat_levels(values, is_signed=is_signed)[0] * 255).astype(np.uint8)


def num_columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def arrange_tiles(tiles: Sequence[Levels]) -> Levels:
    """Arranges tiles of one size in rows of `num_columns`, with 0 in the rest of the last row."""
    height, width = tiles[0].shape
    columns = num_columns(len(tiles))
    canvas = np.zeros((math.ceil(len(tiles) / columns) * height, columns * width), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        canvas[top : top + height, left : left + width] = tile
    return canvas


def palette(*, is_signed: bool) -> list[list[int]]:
    """The colour of each level and its opacity at full strength, [256, 4], 0..255. The lowest saliency has half the opacity."""
    level = np.arange(256) / 255
    weight = np.abs(2 * level - 1) if is_signed else level
    colours = colour_table(SIGNED_COLORMAP if is_signed else COLORMAP)
    table = np.concatenate([colours, 255 * (0.5 + 0.5 * weight[:, None])], axis=1)
    return table.round().astype(int).tolist()


def encode_picture(picture: Image.Image) -> bytes:
    """Encodes a picture for the page: lossless if it is small, else reduced and with a small loss."""
    if max(picture.size) <= 64:
        return encode_webp(picture, None)
    smaller = picture.copy()
    smaller.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    return encode_webp(smaller, 85)


def encode_outline(mask: Bool[Tensor, "1 *s"], height: int, width: int) -> bytes:
    """A transparent picture with a line around a mask.

    Args:
        mask: where the network should look.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    scale = OUTLINED_SIDE / max(height, width)
    blank = np.full((max(1, round(height * scale)), max(1, round(width * scale)), 3), BLANK, np.uint8)
    (outlined,) = draw_outlines([blank], mask[None])
    opacity = np.where((outlined == BLANK).all(-1, keepdims=True), 0, 255).astype(np.uint8)
    return encode_webp(Image.fromarray(np.concatenate([outlined, opacity], axis=-1)), None)


def encode_webp(picture: Image.Image, quality: int | None) -> bytes:
    buffer = io.BytesIO()
    if quality is None:
        picture.save(buffer, "WEBP", lossless=True, exact=True, quality=60, method=3)
    else:
        picture.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _shrink(values: Planes, height: int, width: int) -> Planes:
    if values.shape == (height, width):
        return values
    smaller: Planes = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BOX))
    return smaller
