"""Pictures of maps over time: the film strip (a row for each image, a column for each snapshot) and its animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from fg_lightning.atomic_files import replace_file
from fg_lightning.visualization.image_grids import GAP, contact_sheet, draw_grid, label_flat
from fg_lightning.visualization.outlines import draw_outlines
from fg_lightning.visualization.saliency_overlay import RGB, Normalization, any_negative, enlarge, overlay_rgb, shrink, to_rgb

LARGEST_SIDE, SMALLER_SIDE = 192, 112
"""Largest side of a frame in pixels. With many columns, it falls to the second number."""

MAX_WIDTH = 1500
"""Width of a row of frames in pixels, so that it fits on a screen."""

MAX_SNAPSHOTS = 12
"""Largest number of columns that are still easy to see in a panel, on a page or on a screen."""


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
        snapshots: the title and the maps [N, 1, H, W] of each snapshot, in order.
        row_names: text beside each row, such as the label. Default: none.
        captions: for each snapshot, the text below each of its N frames, such as the prediction. Default: none.
        marked: for each snapshot, which of its N frames are marked, such as those of wrong predictions. Default: none.
        masks: where the network should look, bool [N, 1, H, W]; they are outlined. Default: None.
        title: title at the top; its first line is bold. Default: "", none.
        normalization: normalization of the images, which is undone if it fits. Default: None, unknown.
        max_columns: largest number of snapshots. If there are more, evenly spaced ones are shown, with the first and the last.
            Default: 12.

    Returns:
        A picture with a row for each image: the image itself, then an overlay for each snapshot. Words in an overlay mark a map
        that is zero or constant.

    Raises:
        ValueError: if there is nothing to show, or a snapshot does not have one map for every image.
    """
    check_snapshots("a film strip", images, snapshots)
    chosen = spread_indices(len(snapshots), max_columns)
    is_signed = any_negative(maps for _, maps in snapshots)
    side = max(SMALLER_SIDE, min(LARGEST_SIDE, MAX_WIDTH // (1 + len(chosen)) - GAP))

    def row(i: int, picture: RGB) -> list[RGB]:
        overlays = (overlay_rgb(picture, snapshots[k][1][i], is_signed=is_signed) for k in chosen)
        frames = [shrink(frame, side) for frame in (enlarge(picture), *overlays)]
        outlined = draw_outlines(frames, None if masks is None else masks[i : i + 1].expand(len(frames), -1, -1, -1))
        return [outlined[0], *(label_flat(frame, snapshots[k][1][i]) for k, frame in zip(chosen, outlined[1:], strict=True))]

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
    """Raises ValueError if there is nothing to show, or a snapshot does not have one map for every image."""
    if not snapshots or not len(images):
        raise ValueError(f"{what} needs at least one image and one snapshot")
    if any(len(maps) != len(images) for _, maps in snapshots):
        raise ValueError(f"every snapshot must have {len(images)} maps, one for each image")


def spread_indices(num_items: int, at_most: int) -> list[int]:
    """At most `at_most` of the indices 0 .. `num_items` - 1, evenly spaced, with the first and the last."""
    if num_items <= at_most:
        return list(range(num_items))
    return np.linspace(0, num_items - 1, at_most).round().astype(int).tolist()


LARGEST_FRAME = 160
"""Largest side of an overlay in pixels. Larger overlays are reduced, because a GIF of many frames is large."""

SECONDS, LAST = 8.0, 2.0
"""Seconds for all frames, and additional seconds for the last frame."""

FASTEST, SLOWEST = 0.08, 0.8
"""Least and largest seconds for a frame."""

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
        snapshots: the title and the maps [N, 1, H, W] of each snapshot, in order.
        captions: for each snapshot, the text below each of its N overlays, such as the prediction. Default: none.
        marked: for each snapshot, which of its N overlays are marked, such as those of wrong predictions. Default: none.
        masks: where the network should look, bool [N, 1, H, W]; they are outlined. Default: None.
        title: title of all frames, below the title of the snapshot. Default: "", none.
        normalization: normalization of the images, which is undone if it fits. Default: None, unknown.
        max_frames: largest number of frames. If there are more snapshots, evenly spaced ones are shown, with the first and the
            last. Default: 60.

    Returns:
        Pictures of the same size; see `save_animation`.

    Raises:
        ValueError: if there is nothing to show, or a snapshot does not have one map for every image.
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
                [label_flat(*pair) for pair in zip(draw_outlines(overlays, masks), maps, strict=True)],
                captions[k] if captions else [""] * len(images),
                marked=marked[k] if marked else (),
                title="\n".join(filter(None, [name, title])),
                is_signed=is_signed,
            )
        )
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    return [_pad(frame, size) for frame in frames]


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes an animation that repeats for ever. The last frame stays 2 seconds longer.

    Args:
        frames: pictures of the same size.
        path: .gif (256 colours in a frame, every viewer shows it) or .png (APNG: all colours, larger).

    Raises:
        OSError: if the file cannot be written.
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
