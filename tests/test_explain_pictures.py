"""How pictures are read for `fg-lightning explain`, and how sheets and curves are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fg_lightning.errors import CannotRun
from fg_lightning.explain.pictures import overlay_names, read_picture, stack_batches
from fg_lightning.explain.time_estimate import in_words
from fg_lightning.visualization.image_grids import LINE, comparison
from fg_lightning.visualization.plots import curves


def test_overlays_of_files_of_one_name_are_kept_apart() -> None:
    files = [Path("a/cat.png"), Path("b/cat.jpg"), Path("cat_2.png"), Path("dog.png")]
    assert list(overlay_names(files).values()) == ["cat.png", "cat_2.png", "cat_2_2.png", "dog.png"]


def test_pictures_of_one_size_go_together() -> None:
    shapes = [(1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 3, 2), (1, 2, 2)]
    batches = stack_batches(iter([(Path(str(i)), torch.rand(shape)) for i, shape in enumerate(shapes)]), 2)
    assert [[path.name for path in paths] for paths, _ in batches] == [["0", "1"], ["2"], ["3"], ["4"]]


def test_a_picture_is_turned_as_its_camera_says() -> None:
    picture = Image.new("RGB", (4, 2))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save("turned.jpg", exif=exif)
    seen: list[tuple[int, int]] = []
    read_picture(Path("turned.jpg"), lambda picture: seen.append(picture.size) or torch.zeros(3, 2, 2))
    assert seen == [(2, 4)]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_picture_of_sixteen_bits_keeps_its_greys(dtype: type) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(dtype).reshape(1, 256)
    Image.fromarray(ramp).save("ramp.tif")
    seen: list[np.ndarray] = []
    read_picture(Path("ramp.tif"), lambda picture: seen.append(np.asarray(picture)) or torch.zeros(3, 2, 2))
    assert np.array_equal(seen[0][0, :, 1], np.arange(256))


def test_a_picture_of_unknown_range_is_refused() -> None:
    Image.fromarray(np.array([[0.5, 2e5]], dtype=np.float32)).save("depth.tif")
    with pytest.raises(CannotRun, match=r"depth\.tif cannot be read .* from 0\.5 to 200000; save it with 8 or 16 bits"):
        read_picture(Path("depth.tif"), lambda picture: torch.zeros(3, 2, 2))


# --- pictures and plots ----------------------------------------------------------------------------------------------------------


def test_many_methods_go_in_rows_of_about_the_same_length() -> None:
    image, saliency = torch.rand(3, 112, 112), torch.rand(1, 112, 112)
    few = comparison(image, {f"method {i}": saliency for i in range(5)})
    many = comparison(image, {f"method {i}": saliency for i in range(6)})
    assert few.height < 2 * 112 < many.height  # six frames in a row, seven in two
    assert many.width < few.width
    with pytest.raises(ValueError, match="at least one method"):
        comparison(image, {})


def test_a_method_without_a_map_has_the_reason_in_its_place() -> None:
    image, saliency = torch.rand(3, 112, 112), torch.rand(1, 112, 112)
    drawn = np.asarray(comparison(image, {"gradient": saliency, "gradcam": "does not apply: it found no layer"}))
    again = np.asarray(comparison(image, {"gradient": saliency, "gradcam": saliency}))
    left, right = drawn[12:124, :242], drawn[12:124, 248:360]
    assert np.array_equal(left, again[12:124, :242])
    assert len(np.unique(right.reshape(-1, 3), axis=0)) > 2  # grey, black and the smooth edges of letters
    assert all(len(set(pixel)) == 1 for pixel in right.reshape(-1, 3).tolist())
    with pytest.raises(ValueError, match="at least one method"):
        comparison(image, {"gradcam": "does not apply"})


def test_notes_stand_below_the_names_of_methods() -> None:
    image, saliency = torch.rand(3, 112, 112), torch.rand(1, 112, 112)
    without = comparison(image, {"fullgrad": saliency, "gradient": saliency})
    noted = comparison(image, {"fullgrad": saliency, "gradient": saliency}, notes={"fullgrad": "completeness\nerror 1e-7"})
    assert noted.width == without.width
    assert noted.height == without.height + 2 * LINE


def test_long_notes_are_wrapped_and_cut() -> None:
    image, saliency = torch.rand(3, 112, 112), torch.rand(1, 112, 112)
    (plain, long) = (comparison(image, {"a": saliency}, notes={"a": words}) for words in ("", "many words " * 40))
    assert long.width == plain.width
    assert long.height == plain.height + 4 * LINE


def test_times_are_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.04, 0.51, 12.4, 99, 130, 7000)] == [
        "0.04 s",
        "0.5 s",
        "12 s",
        "99 s",
        "2 min",
        "1.9 h",
    ]


def test_a_missing_method_is_named_in_the_legend_without_a_line() -> None:
    figure = curves([0.1, 0.2], {"mine": [1.0, 2.0]}, ylabel="change", missing=["gradcam: does not apply"])
    names, (line,) = figure.axes[1].get_yticklabels(), figure.axes[1].lines
    assert [name.get_text() for name in names] == ["gradcam: does not apply", "mine"]
    assert line.get_xydata()[0] == pytest.approx([1.5, 1])
    assert len(figure.axes[0].lines) == 1


def test_curves_draw_the_mean_of_repetitions_and_its_error() -> None:
    values = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 7.0]])
    figure = curves([0.1, 0.2, 0.3], {"mine": values, "random": [1.0, 1.0, 1.0]}, ylabel="change", controls=["random"])
    mine, random = figure.axes[0].lines
    assert mine.get_ydata().tolist() == [2.0, 3.0, 5.0]
    assert random.get_color() == "grey"
    (bars,) = figure.axes[0].collections  # the control has one repetition, and no bars
    # the standard error of two numbers is half their distance
    assert [bar[:, 1].tolist() for bar in bars.get_segments()] == [
        [2 - 2 * 1, 2 + 2 * 1],
        [3 - 2 * 1, 3 + 2 * 1],
        [5 - 2 * 2, 5 + 2 * 2],
    ]
    assert all(abs(bar[0, 0] - fraction) < 0.02 for bar, fraction in zip(bars.get_segments(), [0.1, 0.2, 0.3], strict=True))


def test_the_legend_of_curves_is_ordered_by_their_means_and_shows_the_error() -> None:
    values = {"low": np.array([[1.0, 2.0, 6.0], [1.0, 4.0, 8.0]]), "unknown": np.full((1, 3), np.nan), "high": np.full((1, 3), 9.0)}
    legend = curves([0.1, 0.2, 0.4], values, ylabel="change").axes[1]
    assert [name.get_text() for name in legend.get_yticklabels()] == ["unknown", "low", "high"]
    (bar,) = legend.collections
    low, high = (1.5 * 0.1 + 4 * 0.2) / 0.3, (2.5 * 0.1 + 6 * 0.2) / 0.3  # the area under each curve over the range
    middle = (low + high) / 2
    assert bar.get_segments()[0][:, 0] == pytest.approx([middle - (high - low), middle + (high - low)])


def test_many_curves_have_bars_only_in_the_legend() -> None:
    values = {str(k): np.random.default_rng(k).random((3, 4)) for k in range(7)}
    axes, legend = curves([0.1, 0.2, 0.3, 0.4], values, ylabel="change").axes
    assert (len(axes.collections), len(legend.collections)) == (0, 7)
    assert len({line.get_color() for line in axes.lines}) == 7


def test_curves_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no curves to draw"):
        curves([0.1], {}, ylabel="change")
    with pytest.raises(ValueError, match=r"values of 'mine' must be \[2\] or \[R, 2\], not \(3,\)"):
        curves([0.1, 0.2], {"mine": [1, 2, 3]}, ylabel="change")
