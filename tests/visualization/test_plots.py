"""Figures as files for a paper."""

import re
import zlib

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fg_lightning.visualization import curves, save_figure
from fg_lightning.visualization.plots import shift_beside


def draw():
    return curves([0.1, 0.2], {"fullgrad": [[1.0, 2.0], [1.5, 2.5]], "random": [1.0, 1.0]}, ylabel="change", controls=["random"])


@pytest.fixture
def figure():
    return draw()


def test_a_figure_is_written_as_png_pdf_and_svg(figure, tmp_path):
    paths = save_figure(figure, tmp_path / "curves.of.mine")
    assert [path.name for path in paths] == [f"curves.of.mine.{ending}" for ending in ("png", "pdf", "svg")]
    with Image.open(paths[0]) as picture:
        assert picture.size == tuple(round(side * figure.dpi) for side in figure.get_size_inches())
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert "<svg" in paths[2].read_text()
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_the_same_numbers_give_the_same_files(tmp_path):
    first = [path.read_bytes() for path in save_figure(draw(), tmp_path / "first")]
    assert [path.read_bytes() for path in save_figure(draw(), tmp_path / "second")] == first


def test_letters_in_a_pdf_are_truetype(figure, tmp_path):
    content = save_figure(figure, tmp_path / "curves")[1].read_bytes()
    assert b"/Subtype /Type3" not in content
    assert b"/Subtype /CIDFontType2" in content


def test_curves_have_no_title_unless_it_is_asked_for(figure):
    assert figure.axes[0].get_title() == ""
    assert figure.get_suptitle() == ""


def test_bars_stand_as_far_beside_every_fraction():
    left, right = (shift_beside([0.0, 0.1, 0.5, 0.9], place, 2) for place in (0, 1))
    assert right - left == pytest.approx([0.04 * 0.9 / 2] * 4)
    assert (left + right) / 2 == pytest.approx([0.0, 0.1, 0.5, 0.9])
    left, right = (shift_beside([0.01, 0.1, 1.0], place, 2, has_log_fractions=True) for place in (0, 1))
    assert right / left == pytest.approx([100 ** (0.04 / 2)] * 3)
    near, far = (shift_beside([0.1, 0.101, 0.9], place, 1000)[0] for place in (0, 999))
    assert far - near < 0.001  # bars of neighbours do not mix


def test_a_folder_that_is_missing_is_named(figure, tmp_path):
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "none"))):
        save_figure(figure, tmp_path / "none" / "curves")


def test_lines_in_a_pdf_are_lines(tmp_path):
    """No picture of a plot, which a page would blur."""
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    content = save_figure(figure, tmp_path / "plot")[1].read_bytes()
    assert b"/Subtype /Image" not in content
    streams = [part.partition(b"endstream")[0].strip(b"\r\n") for part in content.split(b"stream\n")[1:]]
    drawn = b"".join(zlib.decompress(stream) for stream in streams if stream[:1] == b"\x78")
    assert re.search(rb"[\d.]+ [\d.]+ l\n", drawn)
