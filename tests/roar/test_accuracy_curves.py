"""The curves of an experiment: a panel for each fill, masks alone dashed, controls told apart."""

from __future__ import annotations

import numpy as np
import pytest

from fg_lightning.roar.accuracy_curves import accuracy_curves
from fg_lightning.roar.cells import ALL, MASKS, Cell, CellResult
from fg_lightning.roar.results import ROARResults

ACCURACIES = {
    "random": ([0.8, 0.6], [0.9, 0.5], [0.85, 0.55]),
    "fullgrad": ([0.6, 0.3], [0.8, 0.3], [0.55, 0.35]),
    "blurred_random": ([0.7, 0.4], [0.75, 0.5], [0.68, 0.45]),
}
"""By seed, at fractions 0.4 and 0.8; with the second fill a tenth lower."""

MASKS_ALONE = {"random": 0.1, "fullgrad": 0.6, "blurred_random": 0.12}


def results(fills=("dataset_mean", "black"), unit=1, controls=True, order="morf"):
    found = [CellResult(Cell(ALL, 0.0, seed), 1.0 * unit, total_variation=0.0) for seed in range(3)]
    for method, table in ACCURACIES.items():
        for place, fraction in enumerate((0.4, 0.8)):
            for i, fill in enumerate(fills):
                found += [
                    CellResult(Cell(method, fraction, seed, 0, fill), (row[place] - i / 10) * unit, total_variation=fraction)
                    for seed, row in enumerate(table)
                ]
            if controls:
                found.append(CellResult(Cell(method, fraction, 0, 0, "", MASKS), MASKS_ALONE[method] * unit))
    return ROARResults(found, "roar", order)


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_a_panel_for_each_fill_shows_every_method_with_its_bars():
    figure = accuracy_curves(results())
    first, second = figure.axes
    assert [first.get_title(), second.get_title()] == ["fill: dataset mean", "fill: black"]
    assert lines_of(first)["fullgrad"].get_ydata() == pytest.approx([1, 0.65, 0.95 / 3])
    assert lines_of(second)["fullgrad"].get_ydata() == pytest.approx([1, 0.55, 0.95 / 3 - 0.1])
    assert len(first.collections) == len(second.collections) == 3
    assert first.get_ylim() == second.get_ylim()
    assert lines_of(first)["fullgrad"].get_color() == lines_of(second)["fullgrad"].get_color()


def test_masks_alone_are_dashed_in_the_colour_of_their_method():
    lines = lines_of(accuracy_curves(results()).axes[1])
    for method, accuracy in MASKS_ALONE.items():
        dashed = lines[f"{method}, masks alone"]
        assert dashed.get_linestyle() == "--"
        assert dashed.get_color() == lines[method].get_color()
        assert dashed.get_ydata()[1:] == pytest.approx([accuracy, accuracy])
        assert np.isnan(dashed.get_ydata()[0])  # with no pixel removed there is no mask
        assert lines[method].get_linestyle() != "--"


def test_chance_is_a_dotted_line_that_the_legend_names():
    figure = accuracy_curves(results(unit=100))
    for axes in figure.axes:
        line = lines_of(axes)["chance: random's masks alone"]
        assert (line.get_linestyle(), line.get_ydata()) == (":", pytest.approx([10, 10]))
    assert "chance: random's masks alone" in [text.get_text() for text in figure.legends[0].get_texts()]
    without = accuracy_curves(results(controls=False))
    assert not any("chance" in text.get_text() for text in without.legends[0].get_texts())
    assert not any("chance" in name for name in lines_of(without.axes[0]))


def test_controls_are_grey_and_blurred_versions_dotted():
    lines = lines_of(accuracy_curves(results()).axes[0])
    assert [lines[name].get_color() for name in ("random", "blurred_random")] == ["black", "darkgrey"]
    assert [lines[name].get_linestyle() for name in ("random", "blurred_random", "fullgrad")] == ["-", ":", "-"]


def test_without_controls_nothing_is_dashed():
    figure = accuracy_curves(results(controls=False))
    assert not any(line.get_linestyle() == "--" for axes in figure.axes for line in axes.get_lines())
    assert "masks alone" not in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "masks alone" in [text.get_text() for text in accuracy_curves(results()).legends[0].get_texts()]


def test_there_is_no_title_and_the_axes_say_what_is_good():
    figure = accuracy_curves(results(fills=("black",)))
    (axes,) = figure.axes
    assert axes.get_title() == figure.get_suptitle() == ""
    assert figure.get_supylabel() == "test accuracy (lower is better)"
    assert accuracy_curves(results(order="lerf")).get_supylabel() == "test accuracy (higher is better)"
    assert figure.get_supxlabel() == "fraction of pixels removed"


@pytest.mark.parametrize("unit", [1, 100])
def test_bars_stand_beside_each_other_about_their_lines_in_per_cent_too(unit):
    (axes,) = accuracy_curves(results(("black",), unit, controls=False)).axes
    places = []
    for line, bars in zip(axes.get_lines(), axes.collections, strict=True):
        (place, low), (_, high) = bars.get_segments()[1]
        assert low < line.get_ydata()[1] < high <= unit
        assert abs(place - 0.4) < 0.07
        places.append(place)
    assert len(set(places)) == 3


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 2, 3)])
def test_panels_stand_side_by_side(count, rows, columns):
    figure = accuracy_curves(results([f"fill{i}" for i in range(count)]))
    assert len(figure.axes) == count
    assert figure.axes[0].get_gridspec().get_geometry() == (rows, columns)
