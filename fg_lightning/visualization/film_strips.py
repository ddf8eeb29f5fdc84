"""How maps change over time: the film strip (a row for each image, a column for each snapshot) and its animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from fg_lightning.atomic_files import replace_file
from fg_lightning.visualization.image_grids import GAP, contact_sheet, draw_grid
from fg_lightning.visualization.outlines import draw_outlines
from fg_lightning.visualization.saliency_overlay import RGB, Normalization, any_negative, enlarge, overlay_rgb, shrink, to_rgb

LARGEST_SIDE, SMALLER_SIDE = 192, 112
"""Larger frames are reduced to this, and of many columns to the second."""

MAX_WIDTH = 1500
"""Pixels of all frames of a row, which should fit on a screen."""

MAX_SNAPSHOTS = 12
"""Columns that can be told apart where the strip is shown: in a panel, on a page, on a screen."""


def film_strip(
    images: Tensor,
    snapshots: Sequence[tuple[str, Tensor]],
    *,
    row_names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    marked: Sequence[Sequence[bool]] = (),
    masks: Bool[Tensor, "n 1 h w"] | None = None,
    title: str = "",
    normalization: Normalization | None = None,
    max_columns: int = MAX_SNAPSHOTS,
) -> Image.Image:
    """Draws how the maps of some images changed.

    Args:
        images: [N, C, H, W], in the model's units.
        snapshots: the title and the maps [N, 1, H, W] of each, in order.
        row_names: text beside each row, such as the label.
        captions: for each snapshot the text below each of its N frames, such as the prediction.
        marked: for each snapshot which of its N frames are marked, such as those of wrong predictions.
        masks: where the network should look; they are outlined. Default: None.
        title: at the top; its first line is bold.
        normalization: of the images, undone if it fits.
        max_columns: if there are more snapshots, so many are shown, evenly spaced, with the first and the last. Default: 12.

    Returns:
        A picture: the image itself, then an overlay for each snapshot.

    Raises:
        ValueError: if there is nothing to show, or a snapshot has not one map for every image.
    """
    check_snapshots("a film strip", images, snapshots)
    chosen = spread_indices(len(snapshots), max_columns)
    is_signed = any_negative(maps for _, maps in snapshots)
    side = max(SMALLER_SIDE, min(LARGEST_SIDE, MAX_WIDTH // (1 + len(chosen)) - GAP))

    def row(i: int, picture: RGB) -> list[RGB]:
        overlays = (overlay_rgb(picture, snapshots[k][1][i], is_signed=is_signed) for k in chosen)
        frames = [shrink(frame, side) for frame in (enlarge(picture), *overlays)]
        return draw_outlines(frames, None if masks is None else masks[i : i + 1].expand(len(frames), -1, -1, -1))

    return draw_grid(
        [row(i, to_rgb(image, normalization)) for i, image in enumerate(images)],
        column_names=["image", *(snapshots[k][0] for k in chosen)],
        row_names=row_names,
        captions=[["", *(captions[k][i] for k in chosen)] for i in range(len(images))] if captions else (),
        marked=[[False, *(marked[k][i] for k in chosen)] for i in range(len(images))] if marked else (),
        title=title,
        is_signed=is_signed,
    )


def check_snapshots(what: str, images: Tensor, snapshots: Sequence[tuple[str, Tensor]]) -> None:
    """Raises ValueError if there is nothing to show, or a snapshot has not one map for every image."""
    if not snapshots or not len(images):
        raise ValueError(f"{what} needs at least one image and one snapshot")
    if any(len(maps) != len(images) for _, maps in snapshots):
        raise ValueError(f"every snapshot must have {len(images)} maps, one for each image")


def spread_indices(num_items: int, at_most: int) -> list[int]:
    """The indices of at most so many of `num_items` things, evenly spaced, with the first and the last."""
    if num_items <= at_most:
        return list(range(num_items))
    return np.linspace(0, num_items - 1, at_most).round().astype(int).tolist()


LARGEST_FRAME = 160
"""Larger overlays are reduced: a GIF of many frames is large."""

SECONDS, LAST = 8.0, 2.0
"""How long all frames take together, and how much longer the last one stays."""

FASTEST, SLOWEST = 0.08, 0.8
"""Seconds of a frame."""

FORMATS = {".gif": "GIF", ".png": "PNG"}


def animation(
    images: Tensor,
    snapshots: Sequence[tuple[str, Tensor]],
    *,
    captions: Sequence[Sequence[str]] = (),
    marked: Sequence[Sequence[bool]] = (),
    masks: Bool[Tensor, "n 1 h w"] | None = None,
    title: str = "",
    normalization: Normalization | None = None,
    max_frames: int = 60,
) -> list[Image.Image]:
    """Draws a frame for each snapshot: the maps over their images, side by side.

    Args:
        images: [N, C, H, W], in the model's units.
        snapshots: the title and the maps [N, 1, H, W] of each, in order.
        captions: for each snapshot the text below each of its N overlays, such as the prediction.
        marked: for each snapshot which of its N overlays are marked, such as those of wrong predictions.
        masks: where the network should look; they are outlined. Default: None.
        title: of all frames, below the title of the snapshot.
        normalization: of the images, undone if it fits.
        max_frames: if there are more snapshots, so many are shown, evenly spaced, with the first and the last.

    Returns:
        Pictures of one size; see `save_animation`.

    Raises:
        ValueError: if there is nothing to show, or a snapshot has not one map for every image.
    """
    check_snapshots("an animation", images, snapshots)
    pictures = [to_rgb(image, normalization) for image in images]
    is_signed = any_negative(maps for _, maps in snapshots)
    frames = []
    for k in spread_indices(len(snapshots), max_frames):
        name, maps = snapshots[k]
        overlays = [
            shrink(overlay_rgb(picture, saliency, is_signed=is_signed), LARGEST_FRAME)
            for picture, saliency in zip(pictures, maps, strict=True)
        ]
        frames.append(
            contact_sheet(
                draw_outlines(overlays, masks),
                captions[k] if captions else [""] * len(images),
                marked=marked[k] if marked else (),
                title="\n".join(filter(None, [name, title])),
                is_signed=is_signed,
            )
        )
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    return [_pad(frame, size) for frame in frames]


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes frames that repeat for ever. The last one stays longer.

    Args:
        frames: of one size.
        path: .gif (256 colours a frame, shown by everything), or .png (APNG: all colours, larger).

    Raises:
        ValueError: if there are no frames, or the path has another ending.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    if path.suffix not in FORMATS:
        raise ValueError(f"an animation is written to {' or '.join(FORMATS)}, not {path.name}")
    seconds = min(SLOWEST, max(FASTEST, SECONDS / len(frames)))
    durations = [round(1000 * seconds)] * len(frames)
    durations[-1] += round(1000 * LAST)
    images = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames] if path.suffix == ".gif" else list(frames)
    with replace_file(path) as file:
        images[0].save(
            file,
            FORMATS[path.suffix],
            save_all=True,
            append_images=images[1:],
            duration=durations,
            loop=0,
            optimize=path.suffix == ".gif",
        )


def _pad(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    if frame.size == size:
        return frame
    canvas = Image.new("RGB", size, "white")
    canvas.paste(frame)
    return canvas
