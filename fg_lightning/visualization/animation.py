"""The film strip in motion: a sheet of all images for every look, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from fg_lightning.atomic import replacing
from fg_lightning.visualization.film_strip import check_looks, evenly_spaced
from fg_lightning.visualization.overlay import Normalization, any_negative, displayed, overlaid, reduced
from fg_lightning.visualization.sheet import contact_sheet

LARGEST_SIDE = 160
"""Larger overlays are reduced: a GIF of many frames is heavy."""

SECONDS, LAST = 8.0, 2.0
"""How long all frames take together, and the last one besides."""

FASTEST, SLOWEST = 0.08, 0.8
"""Seconds of a frame."""

FORMATS = {".gif": "GIF", ".png": "PNG"}


def animation(
    images: Tensor,
    looks: Sequence[tuple[str, Tensor]],
    *,
    captions: Sequence[Sequence[str]] = (),
    normalization: Normalization | None = None,
    max_frames: int = 60,
) -> list[Image.Image]:
    """Draws a frame for every moment: the maps over their images, side by side.

    Args:
        images: [N, C, H, W], in whatever units the model takes.
        looks: a title and the maps [N, 1, H, W] for every moment, in order.
        captions: for every moment what stands below each of its N overlays, such as the prediction.
        normalization: of the images, undone where it fits.
        max_frames: of more moments than this, as many evenly spaced ones are shown, the first and the last among them.

    Returns:
        Pictures of one size; see `save_animation`.

    Raises:
        ValueError: if there is nothing to show, or a moment has not one map for every image.
    """
    check_looks("an animation", images, looks)
    pictures = [displayed(image, normalization) for image in images]
    is_signed = any_negative(maps for _, maps in looks)
    frames = []
    for k in evenly_spaced(len(looks), max_frames):
        title, maps = looks[k]
        overlays = [
            reduced(overlaid(picture, saliency, is_signed=is_signed), LARGEST_SIDE)
            for picture, saliency in zip(pictures, maps, strict=True)
        ]
        frames.append(contact_sheet(overlays, captions[k] if captions else [""] * len(images), title=title, is_signed=is_signed))
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    return [_padded(frame, size) for frame in frames]


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes frames that repeat for ever, the last one staying longer.

    Args:
        frames: of one size.
        path: .gif (256 colours a frame, shown by everything), or .png (APNG: all colours, larger).

    Raises:
        ValueError: if there are no frames, or the path ends otherwise.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    if path.suffix not in FORMATS:
        raise ValueError(f"an animation is written to {' or '.join(FORMATS)}, not {path.name}")
    seconds = min(SLOWEST, max(FASTEST, SECONDS / len(frames)))
    durations = [round(1000 * seconds)] * len(frames)
    durations[-1] += round(1000 * LAST)
    written = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames] if path.suffix == ".gif" else list(frames)
    with replacing(path) as file:
        written[0].save(
            file,
            FORMATS[path.suffix],
            save_all=True,
            append_images=written[1:],
            duration=durations,
            loop=0,
            optimize=path.suffix == ".gif",
        )


def _padded(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    if frame.size == size:
        return frame
    canvas = Image.new("RGB", size, "white")
    canvas.paste(frame)
    return canvas
