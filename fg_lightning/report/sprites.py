"""Pictures as a run or an experiment left them.

Maps and pictures in few bytes: one WebP file a look, all its maps side by side.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fg_lightning.visualization.film_strip import evenly_spaced
from fg_lightning.visualization.overlay import COLORMAP, SIGNED_COLORMAP, colour_table, heat


def picture_in(path: Path) -> Image.Image | None:
    """A picture; None if it is missing, damaged, or so large that Pillow takes it for an attack."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(path).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
            return None


BUDGET = 12_000_000
"""Bytes that the maps of a run may take, before base64 adds a third."""

TRIED = 5
"""Looks that are encoded to foresee how many bytes all will take."""

LARGEST_PICTURE = 448
"""Pixels of a picture's longer side; larger ones are reduced."""

Planes = npt.NDArray[np.float32]
Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoding:
    """How maps become sprites.

    Attributes:
        side: pixels of the longer side that maps are reduced to; None to leave them.
        quality: of WebP, 0 to 100; None for no loss.
    """

    side: int | None = None
    quality: int | None = None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Of a map, once it is reduced."""
        scale = min(1.0, (self.side or math.inf) / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def said(self, height: int, width: int) -> str:
        """What it does to maps, for a person."""
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
"""The best first."""


def fitting(looks: Sequence[Any], sprite_of: Callable[[Any, Encoding], bytes | None], budget: int = BUDGET) -> Encoding:
    """The best encoding in which the sprites of all looks take no more bytes than there are, as a few of them tell."""
    tried = [looks[i] for i in evenly_spaced(len(looks), TRIED)] if looks else []
    for encoding in ENCODINGS:
        sizes = [len(sprite_of(look, encoding) or b"") for look in tried]
        if sum(sizes) * len(looks) <= budget * max(len(tried), 1):
            return encoding
    return ENCODINGS[-1]


def sprite(maps: Planes, encoding: Encoding, *, is_signed: bool) -> bytes:
    """Maps [N, H, W] side by side in rows of `columns_of(N)`, as levels of a colour map in 8 bits."""
    height, width = encoding.size(*maps.shape[1:])
    tiles = [levels(_reduced(values, height, width), is_signed=is_signed) for values in maps]
    return webp(Image.fromarray(tiled(tiles)), encoding.quality)


def levels(values: Planes, *, is_signed: bool) -> Levels:
    """A map [H, W] as levels 0..255 of its colour map, the same as `fg_lightning.visualization.overlay.overlaid` draws."""
    return (heat(values, is_signed=is_signed)[0] * 255).astype(np.uint8)


def columns_of(count: int) -> int:
    return math.ceil(math.sqrt(count))


def tiled(tiles: Sequence[Levels]) -> Levels:
    """Tiles of one size in rows of `columns_of`, what is left over being 0."""
    height, width = tiles[0].shape
    columns = columns_of(len(tiles))
    canvas = np.zeros((math.ceil(len(tiles) / columns) * height, columns * width), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        canvas[top : top + height, left : left + width] = tile
    return canvas


def palette(*, is_signed: bool) -> list[list[int]]:
    """[256, 4]: the colours of the levels, and their opacity at full strength, half of it where saliency is lowest."""
    level = np.arange(256) / 255
    weight = np.abs(2 * level - 1) if is_signed else level
    colours = colour_table(SIGNED_COLORMAP if is_signed else COLORMAP)
    table = np.concatenate([colours, 255 * (0.5 + 0.5 * weight[:, None])], axis=1)
    return table.round().astype(int).tolist()


def picture_webp(picture: Image.Image) -> bytes:
    """A picture as a page shows it: small ones as they are, others reduced and with little loss."""
    if max(picture.size) <= 64:
        return webp(picture, None)
    smaller = picture.copy()
    smaller.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    return webp(smaller, 85)


def webp(picture: Image.Image, quality: int | None) -> bytes:
    buffer = io.BytesIO()
    if quality is None:
        picture.save(buffer, "WEBP", lossless=True, exact=True, quality=60, method=3)
    else:
        picture.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _reduced(values: Planes, height: int, width: int) -> Planes:
    if values.shape == (height, width):
        return values
    smaller: Planes = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BOX))
    return smaller
