"""Frames in rows and columns with words around them: the contact sheet of a snapshot, and the comparison of several methods."""

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

from fg_lightning.visualization.saliency_overlay import RGB, Normalization, any_negative, colour_bar, enlarge, overlay_rgb, to_rgb

T = TypeVar("T")

GAP = 6
"""Pixels between two frames."""

BORDER = 2
"""Pixels of the line around a frame that is marked."""

MARK = (170, 45, 0)
"""Colour of a mark: a dark orange that the colour-blind tell from black, white and green, and that is dark in grey print."""

MAX_NAME_WIDTH, MAX_NAME_LINES = 120, 3
"""Pixels and lines of a row's name."""

FONT_SIZE = 13
"""Pixels. A strip of 12 snapshots is shown at about two thirds of its size."""

LINE = 17
"""Pixels for a line of words."""

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
    """Draws frames on one canvas, with the colour bar of their maps at the right. Words that are too long lose their middle.

    Args:
        rows: frames of one size, [H, W, 3]; a row may be shorter than the first.
        column_names: above the columns.
        row_names: beside the rows.
        captions: below each frame, as rows of one for each frame.
        marked: whether a frame gets a line around it and its caption is white on the same colour, in rows as captions.
        title: at the top, wrapped. Its first line is bold.
        is_signed: whether the maps have negative values.
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
    """What `multiline_text` draws, left-aligned; most lines were drawn before, for another image or an earlier snapshot."""
    for i, line in enumerate(words.split("\n") if words else ()):
        ink, left, top = _ink(line, is_bold=is_bold)
        canvas.paste(colour, (place[0] + left, place[1] + i * _line_height() + top), ink)


@lru_cache(1000)
def _ink(line: str, *, is_bold: bool) -> tuple[Image.Image, int, int]:
    """How opaque a line of text is, and where that lies relative to the line's place."""
    font = _font(is_bold=is_bold)
    left, top, right, bottom = (round(side) for side in font.getbbox(line))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), line, 255, font)
    return ink, left, top


@cache
def _line_height() -> int:
    """From one line to the next, as `multiline_text` has it."""
    return round(_font().getbbox("A")[3]) + SPACING


@cache
def _font(*, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans:bold" if is_bold else "DejaVu Sans"), FONT_SIZE)


@cache
def _width(words: str) -> int:
    return max(round(_font().getlength(line)) for line in words.split("\n"))


@cache
def _shorten(words: str, width: int) -> str:
    """Cuts each line to so many pixels. An ellipsis stands for what is cut out of its middle: both ends tell names apart."""
    return "\n".join(_shorten_line(line, width) for line in words.split("\n"))


@cache
def _fit_caption(caption: str, width: int) -> str:
    """Breaks lines that are too long before their last dot, which stands before a probability, and cuts what is still too long."""
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
        overlays: of one size, [H, W, 3].
        captions: one for each, of any number of lines.
        marked: whether an overlay gets a line around it and its caption is white on the same colour, such as a wrong prediction.
        title: above all of them. Its first line is bold.
        is_signed: whether the maps have negative values.

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
"""Lines of a note below a method's name."""


def comparison(
    image: Float[Tensor, "c h w"],
    maps: Mapping[str, Union[Float[Tensor, "1 h w"], str]],
    *,
    caption: str = "image",
    notes: Mapping[str, str] | None = None,
    normalization: Normalization | None = None,
) -> Image.Image:
    """Draws an image and the map of each method over it, scaled by its own range.

    Args:
        image: in the model's units.
        maps: by the names of the methods, in the order to draw them. A method that has no map has the reason in its place, which is
            written into a grey frame.
        caption: below the image itself, such as what was predicted.
        notes: lines below the names of methods, wrapped.
        normalization: of the image, undone if it fits.

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
            frames.append(overlay_rgb(picture, saliency, is_signed=is_signed))
    width = frames[0].shape[1]
    captions = [caption, *("\n".join([name, *_wrap((notes or {}).get(name, ""), width)[:MAX_NOTE]]) for name in maps)]
    columns = math.ceil(len(frames) / math.ceil(len(frames) / MAX_COLUMNS))
    return draw_grid(_rows(frames, columns), captions=_rows(captions, columns), is_signed=is_signed)


def _notice(shape: tuple[int, ...], words: str) -> RGB:
    """A grey frame with words in it, as many as there is room for."""
    height, width = shape[:2]
    lines = _wrap(words, width - 12)
    room = (height - 12) // _line_height()
    if len(lines) > room:
        lines = [*lines[: room - 1], f"{lines[room - 1]} …"]
    canvas = Image.new("RGB", (width, height), "gainsboro")
    _write(canvas, (6, 6), "\n".join(_shorten(line, width - 12) for line in lines))
    return pil_to_rgb(canvas)


def _wrap(words: str, width: int) -> list[str]:
    """Words in lines of so many pixels."""
    lines: list[str] = []
    for paragraph in words.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            lines[-1:] = [longer] if not lines[-1] or _width(longer) <= width else [lines[-1], word]
    return lines
