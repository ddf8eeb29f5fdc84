"""Film strips, contact sheets and depth maps hold what they should where they should."""

import numpy as np
import pytest
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from fg_lightning.visualization import contact_sheet, depth_map, film_strip
from fg_lightning.visualization.film_strips import animation, spread_indices
from fg_lightning.visualization.image_grids import GAP, comparison, draw_grid, pil_to_rgb
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


def test_words_are_drawn_as_pillow_draws_lines_of_text():
    """Lines are drawn once and then copied: below every frame stands what `multiline_text` would have drawn."""
    frames = [np.full((30, 90, 3), 40 * i, np.uint8) for i in range(3)]
    captions = ["class 7\n→ class 7 98%", "ÄÖgjpqy,_|\n\n(label 3)", "class 7"]
    canvas = draw_grid([frames], captions=[captions], title="epoch 3")
    expected = draw_grid([frames], captions=[["\n\n"] * 3])
    (top, left), *_ = (locate_frame(pil_to_rgb(canvas), frame)[0] for frame in frames)
    (plain_top, _), *_ = (locate_frame(pil_to_rgb(expected), frame)[0] for frame in frames)
    draw, font = ImageDraw.Draw(expected), ImageFont.truetype(findfont("DejaVu Sans"), 11)
    for j, caption in enumerate(captions):
        draw.multiline_text((left + j * (90 + GAP), plain_top + 30 + 1), caption, "black", font, spacing=2)
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


def test_a_depth_map_shows_signs_and_names_what_it_cannot_show():
    shares = np.zeros((30, 5))
    shares[0], shares[10], shares[20] = 5.0, 0.3, -0.3
    figure = depth_map(shares, [f"layer {i}" for i in range(30)], [f"epoch {i}" for i in range(5)])
    axes = figure.axes[0]
    picture = axes.images[0]
    assert np.array_equal(picture.get_array(), shares)
    assert picture.norm(0) == pytest.approx(0.5)
    assert picture.norm(0.3) > 0.5 > picture.norm(-0.3)
    assert {text.get_text() for text in axes.texts} >= {"5"}
    assert len(axes.get_yticklabels()) == 30


def test_many_layers_and_snapshots_are_named_where_there_is_room():
    figure = depth_map(
        np.random.default_rng(0).normal(size=(200, 100)), [f"l{i}" for i in range(200)], [f"e{i}" for i in range(100)]
    )
    axes = figure.axes[0]
    assert len(axes.get_yticklabels()) == 40
    assert len(axes.get_xticklabels()) == 16
    assert not axes.texts


def test_a_depth_map_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a row for each of 2 layers"):
        depth_map(np.zeros((3, 4)), ["a", "b"], ["1", "2", "3", "4"])
    with pytest.raises(ValueError, match="a row for each of 0 layers"):
        depth_map(np.zeros((0, 0)), [], [])


def test_pixels_of_a_picture():
    assert pil_to_rgb(Image.new("RGBA", (3, 2))).shape == (2, 3, 3)
