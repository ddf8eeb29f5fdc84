"""Frames in rows and columns with text around them: the contact sheet of a snapshot, and the comparison of several methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import TypeVar, Union

import numpy as np
from jaxtyping import Float
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fg_lightning.visualization.saliency_overlay import (
    RGB,
    Normalization,
    any_negative,
    colour_bar,
    describe_flat,
    enlarge,
    overlay_rgb,
    to_rgb,
)

T = TypeVar("T")

GAP = 6
"""Pixels between two frames."""

BORDER = 2
"""Width in pixels of the line around a marked frame."""

MARK = (170, 45, 0)
"""Colour of a mark: a dark orange that colour-blind people distinguish from black, white and green. It is dark in grey print."""

MAX_NAME_WIDTH, MAX_NAME_LINES = 120, 3
"""Largest width in pixels, and largest number of lines, of a row's name."""

FONT_SIZE = 13
"""In pixels. Screens show a strip of 12 snapshots at about two thirds of its size."""

LINE = 17
"""Height of a line of text in pixels."""

SPACING = 2
"""Pixels between two lines."""

BOLD_WIDTH = 0.87
"""Width of ordinary letters as a share of bold ones."""


def draw_grid(
    rows: Sequence[Sequence[RGB]],
    *,
    column_names: Sequence[str] = (),
    row_names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    marked: Sequence[Sequence[bool]] = (),
    title: str = "",
    is_signed: bool = False,
) -> Image.Image:
    """Draws frames on one canvas, with the colour bar of their maps at the right. Text that is too long is cut in the middle.

    Args:
        rows: rows of frames of one size, [H, W, 3] in 0..255. A row may be shorter than the first.
        column_names: text above the columns. Default: none.
        row_names: text beside the rows. Default: none.
        captions: text below each frame, in rows like the frames. Default: none.
        marked: whether a frame has a line around it and a white caption on the same colour, in rows like the frames. Default: none.
        title: title at the top, wrapped. Its first line is bold. Default: "", none.
        is_signed: whether the maps have negative values. Default: False.
    """
    height, width = rows[0][0].shape[:2]
    captions = [[_fit_caption(caption, width) for caption in row] for row in captions]
    lines = max((caption.count("\n") + 1 for row in captions for caption in row), default=0)
    pitch = height + LINE * lines + GAP
    row_names = [_fit_name(name) for name in row_names]
    left = 12 + max((_width(name) for name in row_names), default=-8) + 8
    right = left + max(len(row) for row in rows) * (width + GAP)
    bar_width = 8 + 6 + max(_width("high"), _width("low"), _width("against")) + 12
    first, _, rest = title.partition("\n")
    bold, plain = _wrap(first, round(BOLD_WIDTH * (right + bar_width - 24))), _wrap(rest, right + bar_width - 24)
    top = 12 + (LINE * len(bold + plain) + 4 if bold else 0)
    names_top, top = top - 6, top + LINE * max((name.count("\n") + 1 for name in column_names), default=0)
    canvas = Image.new("RGB", (right + bar_width, top + len(rows) * pitch + GAP), "white")
    draw = ImageDraw.Draw(canvas)

    _write(canvas, (12, 6), "\n".join(bold), is_bold=True)
    _write(canvas, (12, 6 + LINE * len(bold)), "\n".join(plain))
    for i, row in enumerate(rows):
        for j, frame in enumerate(row):
            x, y = left + j * (width + GAP), top + i * pitch
            caption = captions[i][j] if captions else ""
            if marked and marked[i][j]:
                below = y + height + LINE * (caption.count("\n") + 1 if caption else 0)
                draw.rectangle((x - BORDER, y - BORDER, x + width + BORDER - 1, below + BORDER - 1), MARK)
            canvas.paste(Image.fromarray(frame), (x, y))
            _write(canvas, (x, y + height + 1), caption, "white" if marked and marked[i][j] else "black")
    for j, name in enumerate(column_names):
        place = left + j * (width + GAP) + width // 2, names_top
        draw.multiline_text(place, _shorten(name, width), "black", _font(), "ma", SPACING, "center")
    for i, name in enumerate(row_names):
        draw.multiline_text((left - 8, top + i * pitch + height // 2), name, "black", _font(), "rm", SPACING)

    canvas.paste(Image.fromarray(colour_bar(height, is_signed=is_signed)), (right, top))
    highest, lowest = ("for", "against") if is_signed else ("high", "low")
    _write(canvas, (right + 14, top), highest)
    _write(canvas, (right + 14, top + height - LINE), lowest)
    return canvas


def label_flat(frame: RGB, saliency: Tensor) -> RGB:
    """The frame with a description of its map at the top if the map is the same everywhere: it would look like a fault."""
    words = describe_flat(saliency)
    if not words or len(frame) < LINE:
        return frame
    canvas = Image.fromarray(frame)
    words = _shorten(words, canvas.width - 8)
    ImageDraw.Draw(canvas).rectangle((0, 0, _width(words) + 7, LINE), "black")
    _write(canvas, (4, 0), words, "white")
    return pil_to_rgb(canvas)


def pil_to_rgb(picture: Image.Image) -> RGB:
    """A picture as [H, W, 3] in 0..255."""
    rgb: RGB = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    return rgb


def add_border(picture: RGB, *, is_marked: bool = False) -> RGB:
    """A picture with a line around it, in the colour of marks or white, [H + 8, W + 8, 3]."""
    bordered = np.empty((picture.shape[0] + 8, picture.shape[1] + 8, 3), np.uint8)
    bordered[:] = MARK if is_marked else 255
    bordered[4:-4, 4:-4] = picture
    return bordered


def _write(canvas: Image.Image, place: tuple[int, int], words: str, colour: str = "black", *, is_bold: bool = False) -> None:
    """Draws left-aligned text like `multiline_text`, faster: it keeps lines that other images or snapshots have, too."""
    for i, line in enumerate(words.split("\n") if words else ()):
        ink, left, top = _ink(line, is_bold=is_bold)
        canvas.paste(colour, (place[0] + left, place[1] + i * _line_height() + top), ink)


@lru_cache(1000)
def _ink(line: str, *, is_bold: bool) -> tuple[Image.Image, int, int]:
    """The opacity of a line of text, and its left and top edge relative to the position of the line."""
    font = _font(is_bold=is_bold)
    left, top, right, bottom = (round(side) for side in font.getbbox(line))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), line, 255, font)
    return ink, left, top


@cache
def _line_height() -> int:
    """The distance between lines in pixels, as in `multiline_text`."""
    return round(_font().getbbox("A")[3]) + SPACING


@cache
def _font(*, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans:bold" if is_bold else "DejaVu Sans"), FONT_SIZE)


@cache
def _width(words: str) -> int:
    return max(round(_font().getlength(line)) for line in words.split("\n"))


@cache
def _shorten(words: str, width: int) -> str:
    """Cuts each line to `width` pixels. An ellipsis replaces its middle, because both ends distinguish names."""
    return "\n".join(_shorten_line(line, width) for line in words.split("\n"))


@cache
def _fit_caption(caption: str, width: int) -> str:
    """Breaks lines that are too long before their last " · ", which comes before a probability. Longer lines are cut."""
    lines = [line if _width(line) <= width else "\n".join(line.rsplit(" · ", 1)) for line in caption.split("\n")]
    return _shorten("\n".join(lines), width)


def _fit_name(name: str) -> str:
    """A row's name in at most three lines."""
    lines = _wrap(name, MAX_NAME_WIDTH)
    if len(lines) > MAX_NAME_LINES:
        lines = _wrap(_shorten_line(name, round(0.85 * MAX_NAME_LINES * MAX_NAME_WIDTH)), MAX_NAME_WIDTH)[:MAX_NAME_LINES]
    return _shorten("\n".join(lines), MAX_NAME_WIDTH)


def _shorten_line(line: str, width: int) -> str:
    if _width(line) <= width:
        return line
    for num_kept in range(len(line) - 1, 1, -1):
        shorter = f"{line[: -(-num_kept // 2)].rstrip()}…{line[len(line) - num_kept // 2 :].lstrip()}"
        if _width(shorter) <= width:
            return shorter
    return "…"


def contact_sheet(
    overlays: Sequence[RGB],
    captions: Sequence[str],
    *,
    marked: Sequence[bool] = (),
    title: str = "",
    is_signed: bool = False,
) -> Image.Image:
    """Draws overlays with their captions in a grid, as one picture.

    Args:
        overlays: overlays of one size, [H, W, 3] in 0..255.
        captions: a caption for each overlay, of any number of lines.
        marked: whether an overlay has a line around it and a white caption on the same colour, such as for a wrong prediction.
            Default: none.
        title: title at the top. Its first line is bold. Default: "", none.
        is_signed: whether the maps have negative values. Default: False.

    Raises:
        ValueError: if there is nothing to show, or not one caption for every overlay.
    """
    if not overlays or len(captions) != len(overlays):
        raise ValueError(f"a contact sheet needs overlays and a caption for each, not {len(captions)} captions for {len(overlays)}")
    columns = min(len(overlays), max(4, math.ceil(math.sqrt(len(overlays)))))
    rows, captions_below, marks = (_rows(overlays, columns), _rows(captions, columns), _rows(marked, columns))
    return draw_grid(rows, captions=captions_below, marked=marks, title=title, is_signed=is_signed)


def _rows(items: Sequence[T], columns: int) -> list[Sequence[T]]:
    return [items[i : i + columns] for i in range(0, len(items), columns)]


MAX_COLUMNS = 6

MAX_NOTE = 4
"""Largest number of lines of a note below a method's name."""


def comparison(
    image: Float[Tensor, "c h w"],
    maps: Mapping[str, Union[Float[Tensor, "1 h w"], str]],
    *,
    caption: str = "image",
    notes: Mapping[str, str] | None = None,
    normalization: Normalization | None = None,
) -> Image.Image:
    """Draws an image and an overlay of each method's map, side by side. Each map is scaled by its own range.

    Args:
        image: [C, H, W], in the model's units.
        maps: name of each method -> its map, [1, H, W], in the order to draw. For a method without a map, pass the reason as text;
            it is written into a grey frame.
        caption: text below the image itself, such as the prediction. Default: "image".
        notes: name of a method -> text below its name, wrapped. Default: None, no notes.
        normalization: normalization of the image, which is undone if it fits. Default: None, unknown.

    Raises:
        ValueError: if there is no map.
    """
    drawn = [saliency for saliency in maps.values() if not isinstance(saliency, str)]
    if not drawn:
        raise ValueError("a comparison needs the map of at least one method")
    picture = to_rgb(image, normalization)
    is_signed = any_negative(drawn)
    frames = [enlarge(picture)]
    for saliency in maps.values():
        if isinstance(saliency, str):
            frames.append(_notice(frames[0].shape, saliency))
        else:
            frames.append(label_flat(overlay_rgb(picture, saliency, is_signed=is_signed), saliency))
    width = frames[0].shape[1]
    captions = [
        caption,
        *("\n".join([_break_name(name, width), *_wrap((notes or {}).get(name, ""), width)[:MAX_NOTE]]) for name in maps),
    ]
    columns = math.ceil(len(frames) / math.ceil(len(frames) / MAX_COLUMNS))
    return draw_grid(_rows(frames, columns), captions=_rows(captions, columns), is_signed=is_signed)


def _break_name(name: str, width: int) -> str:
    """A name in lines of at most `width` pixels, broken after underscores."""
    lines = [""]
    for part in name.replace("_", "_\n").split("\n"):
        lines[-1:] = [lines[-1] + part] if not lines[-1] or _width(lines[-1] + part) <= width else [lines[-1], part]
    return "\n".join(lines)


def _notice(shape: tuple[int, ...], words: str) -> RGB:
    """A grey frame with text in it, as much as fits."""
    height, width = shape[:2]
    lines = _wrap(words, width - 12)
    room = (height - 12) // _line_height()
    if len(lines) > room:
        lines = [*lines[: room - 1], f"{lines[room - 1]} …"]
    canvas = Image.new("RGB", (width, height), "gainsboro")
    _write(canvas, (6, 6), "\n".join(_shorten(line, width - 12) for line in lines))
    return pil_to_rgb(canvas)


def _wrap(words: str, width: int) -> list[str]:
    """Text in lines of at most `width` pixels, except single longer words."""
    lines: list[str] = []
    for paragraph in words.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            lines[-1:] = [longer] if not lines[-1] or _width(longer) <= width else [lines[-1], word]
    return lines
