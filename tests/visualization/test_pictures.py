"""Film strips, contact sheets and depth maps hold what they should where they should."""

import numpy as np
import pytest
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from fg_lightning.visualization import contact_sheet, film_strip
from fg_lightning.visualization.film_strips import animation, spread_indices
from fg_lightning.visualization.image_grids import (
    BORDER,
    GAP,
    MARK,
    _break_name,
    _fit_caption,
    _shorten,
    _width,
    comparison,
    draw_grid,
    label_flat,
    pil_to_rgb,
)
from fg_lightning.visualization.saliency_overlay import enlarge, overlay, to_rgb
from tests.helpers.pictures import locate_frame


@pytest.fixture
def strip():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 28, 28, generator=generator)
    snapshots = [(title, torch.rand(3, 1, 28, 28, generator=generator)) for title in ("untrained", "epoch 1")]
    return images, snapshots


def test_a_film_strip_has_a_row_for_every_image_and_a_column_for_every_look(strip):
    images, snapshots = strip
    captions = [[f"{title} {i}" for i in range(3)] for title, _ in snapshots]
    canvas = pil_to_rgb(film_strip(images, snapshots, row_names=["a", "b", "c"], captions=captions))
    corners = {}
    for i in range(3):
        frames = [enlarge(to_rgb(images[i])), *(overlay(images[i], maps[i]) for _, maps in snapshots)]
        for j, frame in enumerate(frames):
            (corners[i, j],) = locate_frame(canvas, frame)
    assert len({top for top, _ in corners.values()}) == 3
    assert len({left for _, left in corners.values()}) == 3
    assert corners[0, 1][1] - corners[0, 0][1] == 112 + GAP
    # Words stand beside the rows, above the columns and below the frames.
    top, left = corners[0, 0]
    assert (canvas[top : top + 112, :left] < 128).any()
    assert (canvas[:top, left:] < 128).any()
    assert (canvas[top + 112 : corners[1, 0][0], corners[0, 1][1] : corners[0, 1][1] + 112] < 128).any()


def test_of_many_snapshots_as_many_are_shown_as_there_is_room_for(strip):
    images, _ = strip
    snapshots = [(f"epoch {i}", torch.rand(3, 1, 28, 28)) for i in range(10)]
    wide, narrow = film_strip(images, snapshots), film_strip(images, snapshots, max_columns=4)
    assert wide.width - narrow.width == 6 * (112 + GAP)
    assert locate_frame(pil_to_rgb(narrow), overlay(images[0], snapshots[-1][1][0]))


def test_a_film_strip_has_at_most_twelve_columns_of_maps_unless_more_are_asked_for(strip):
    images, _ = strip
    snapshots = [(f"epoch {i}", torch.rand(3, 1, 28, 28)) for i in range(40)]
    widths = [film_strip(images, snapshots, **options).width for options in ({}, {"max_columns": 12}, {"max_columns": 40})]
    assert widths[0] == widths[1] == widths[2] - 28 * (112 + GAP)


def test_what_is_marked_has_a_line_around_it_and_a_caption_on_the_same_colour():
    frames = [np.full((112, 112, 3), level, np.uint8) for level in (200, 100)]
    canvas = pil_to_rgb(draw_grid([frames], captions=[["7 · 98 %", "✗ 1 · 61 %"]], marked=[[False, True]]))
    (top, left), (_, right) = (locate_frame(canvas, frame)[0] for frame in frames)
    is_mark = (canvas == MARK).all(-1)
    assert is_mark[top - BORDER : top + 112, right - BORDER].all()
    assert is_mark[top + 113 : top + 127, right : right + 112].mean() > 0.5
    assert not is_mark[:, : right - BORDER].any()
    assert (canvas[top + 113 : top + 127, right : right + 112] == 255).all(-1).any()  # white letters
    assert (canvas[top + 113 : top + 127, left : left + 112] == 0).all(-1).any()  # black letters


def test_a_mark_is_told_by_its_lightness_alone():
    """In grey print and by the colour-blind: white letters on it have the contrast that WCAG asks of small text."""
    linear = [((value / 255 + 0.055) / 1.055) ** 2.4 for value in MARK]
    lightness = np.dot(linear, [0.2126, 0.7152, 0.0722])
    assert 1.05 / (lightness + 0.05) > 4.5


@pytest.mark.parametrize(
    ("words", "shown"),
    [("cat", "cat"), ("n02123045 tabby, tabby cat", "n021230…by cat"), ("W" * 40, "WWWW…WWW")],
)
def test_long_names_lose_their_middle(words, shown):
    assert _shorten(words, 112) == shown
    assert _width(shown) <= 112


@pytest.mark.parametrize(
    ("name", "lines"),
    [("gradcam", ["gradcam"]), ("guided_backprop", ["guided_backprop"]), ("integrated_gradients", ["integrated_", "gradients"])],
)
def test_a_name_that_is_too_long_breaks_after_an_underscore(name, lines):
    assert _break_name(name, 112).split("\n") == lines


def test_a_caption_that_is_too_long_breaks_before_its_probability():
    assert _fit_caption("golden retriever · 98 %", 112) == "golden retriever\n98 %"
    assert _fit_caption("7\n→ ✗ 1 · 61 %", 112) == "7\n→ ✗ 1 · 61 %"


def test_a_title_is_above_the_frames_and_wrapped():
    frame = np.full((112, 112, 3), 200, np.uint8)
    short, long = (draw_grid([[frame]], title=title) for title in ("epoch 3", "epoch 3 " * 20 + "\nbelow"))
    assert short.width == long.width
    assert locate_frame(pil_to_rgb(long), frame)[0][0] > locate_frame(pil_to_rgb(short), frame)[0][0] + 100


@pytest.mark.parametrize(("columns", "side"), [(2, 192), (7, 181), (12, 112)])
def test_large_images_are_as_large_as_there_is_room_for(columns, side):
    snapshots = [(str(k), torch.rand(1, 1, 300, 300)) for k in range(columns)]
    assert film_strip(torch.rand(1, 3, 300, 300), snapshots).height == 12 + 17 + side + GAP + GAP


def test_words_are_drawn_as_pillow_draws_lines_of_text():
    """Lines are drawn once and then copied: below every frame stands what `multiline_text` would have drawn."""
    frames = [np.full((30, 112, 3), 40 * i, np.uint8) for i in range(3)]
    captions = ["class 7\n→ class 7 98%", "ÄÖgjpqy,_|\n\n(label 3)", "class 7"]
    canvas = draw_grid([frames], captions=[captions], title="epoch 3")
    expected = draw_grid([frames], captions=[["\n\n"] * 3])
    (top, left), *_ = (locate_frame(pil_to_rgb(canvas), frame)[0] for frame in frames)
    (plain_top, _), *_ = (locate_frame(pil_to_rgb(expected), frame)[0] for frame in frames)
    draw, font = ImageDraw.Draw(expected), ImageFont.truetype(findfont("DejaVu Sans"), 13)
    for j, caption in enumerate(captions):
        draw.multiline_text((left + j * (112 + GAP), plain_top + 30 + 1), caption, "black", font, spacing=2)
    assert top > plain_top  # by the title
    assert (pil_to_rgb(canvas)[top:] == pil_to_rgb(expected)[plain_top:]).all()


@pytest.mark.parametrize(("count", "at_most"), [(3, 5), (5, 5), (10, 4), (1000, 24), (1, 1)])
def test_evenly_spaced_things_are_distinct_and_reach_both_ends(count, at_most):
    chosen = spread_indices(count, at_most)
    assert len(chosen) == len(set(chosen)) == min(count, at_most)
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    assert max(np.diff(chosen), default=1) - min(np.diff(chosen), default=1) <= 1


def test_maps_beside_signed_ones_take_their_colours():
    """Where one map has negative values, the colour bar is the signed one, and so are the colours of all."""
    images, positive = torch.rand(2, 1, 28, 28), torch.rand(1, 28, 28)
    signed = positive - 0.5
    expected = [overlay(images[0], signed), overlay(images[1], positive, is_signed=True)]
    snapshots = [("now", torch.stack([signed, positive]))]
    drawn = [pil_to_rgb(film_strip(images, snapshots)), pil_to_rgb(animation(images, snapshots)[0])]
    for canvas in drawn:
        assert [len(locate_frame(canvas, frame)) for frame in expected] == [1, 1]
    of_one = pil_to_rgb(comparison(images[1], {"a": signed, "b": positive}))
    assert len(locate_frame(of_one, expected[1])) == 1
    alone = pil_to_rgb(film_strip(images[1:], [("now", positive[None])]))
    assert len(locate_frame(alone, overlay(images[1], positive))) == 1


@pytest.mark.parametrize(("value", "words"), [(0.0, "all zero"), (0.3, "constant")])
def test_a_map_of_one_colour_is_named_in_its_frame(value, words):
    images, flat, varied = torch.rand(2, 1, 28, 28), torch.full((1, 28, 28), value), torch.rand(1, 28, 28)
    plain, unchanged = overlay(images[0], flat), overlay(images[1], varied)
    labelled = label_flat(plain, flat)
    expected = Image.fromarray(plain)
    draw, font = ImageDraw.Draw(expected), ImageFont.truetype(findfont("DejaVu Sans"), 13)
    draw.rectangle((0, 0, round(font.getlength(words)) + 7, 17), "black")
    draw.text((4, 0), words, "white", font)
    assert (labelled == np.asarray(expected)).all()
    assert label_flat(unchanged, varied) is unchanged
    snapshots = [("now", torch.stack([flat, varied]))]
    drawn = [film_strip(images, snapshots), animation(images, snapshots)[0]]
    assert [len(locate_frame(pil_to_rgb(picture), frame)) for picture in drawn for frame in (labelled, unchanged)] == [1] * 4
    assert (label_flat(plain, flat.requires_grad_()) == labelled).all()
    assert len(locate_frame(pil_to_rgb(comparison(images[0], {"a": flat, "b": varied})), labelled)) == 1


def test_large_frames_are_reduced():
    strip = film_strip(torch.rand(1, 3, 600, 400), [("now", torch.rand(1, 1, 600, 400))])
    assert strip.height < 300


@pytest.mark.parametrize("snapshots", [[], [("one", torch.rand(2, 1, 28, 28))]])
def test_a_strip_of_nothing_is_refused(strip, snapshots):
    with pytest.raises(ValueError, match=r"at least one|3 maps"):
        film_strip(strip[0], snapshots)


def test_a_contact_sheet_has_every_overlay_and_a_caption_below_it():
    overlays = [np.random.default_rng(i).integers(0, 255, (112, 112, 3), dtype=np.uint8) for i in range(6)]
    canvas = pil_to_rgb(contact_sheet(overlays, [f"class {i}\n→ class {i} 99%" for i in range(6)], title="epoch 3"))
    places = [locate_frame(canvas, frame) for frame in overlays]
    assert all(len(place) == 1 for place in places)
    tops = [place[0][0] for place in places]
    assert tops[:4] == [tops[0]] * 4
    assert tops[4] > tops[3] + 112 + 2 * 12
    for ((top, left),) in places:
        assert (canvas[top + 112 : top + 112 + 30, left : left + 112] < 128).any()
    with pytest.raises(ValueError, match="a caption for each"):
        contact_sheet(overlays, ["one"])


def test_words_that_do_not_fit_are_cut_off():
    frame = np.zeros((112, 112, 3), np.uint8)
    short, long = (draw_grid([[frame]], captions=[[words]], row_names=[words]) for words in ("cat", "cat" * 100))
    assert long.width < short.width + 200
    below = pil_to_rgb(long)[-20:, long.width - 70 :]
    assert (below == 255).all()


def test_pixels_of_a_picture():
    assert pil_to_rgb(Image.new("RGBA", (3, 2))).shape == (2, 3, 3)
