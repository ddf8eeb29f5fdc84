"""What the accuracies say of the methods, against numbers that are worked out by hand and scipy's own tests."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy import stats

from fg_lightning.roar import CannotRun
from fg_lightning.roar.results import (
    ALL,
    Cell,
    CellResult,
    ROARResults,
    accuracy_curves,
    holm,
    list_cells,
    mean_and_interval,
    read_result,
    write_result,
)

ACCURACIES = {"random": ([0.8, 0.6], [0.9, 0.5], [0.85, 0.55]), "fullgrad": ([0.6, 0.3], [0.8, 0.3], [0.55, 0.35])}
"""By seed, at fractions 0.4 and 0.8."""


def results(mode="roar", order="morf", accuracies=ACCURACIES):
    found = [CellResult(Cell(ALL, 0.0, seed), 1.0, total_variation=0.0) for seed in range(3)]
    for method, table in accuracies.items():
        for seed, row in enumerate(table):
            found += [
                CellResult(Cell(method, fraction, seed), accuracy, total_variation=fraction)
                for fraction, accuracy in zip((0.4, 0.8), row, strict=True)
            ]
    return ROARResults(found, mode, order)


@pytest.fixture
def cell_file(tmp_path):
    (tmp_path / "cells").mkdir()
    write_result(tmp_path, CellResult(Cell("fullgrad", 0.5, 1), 0.75, {"test/accuracy": 0.75, "odd": float("nan")}, 0.1, 2.5))
    return tmp_path / "cells" / "fullgrad-0.5-1.json"


def test_a_cell_comes_back_as_it_was(cell_file):
    result = read_result(cell_file.parents[1], Cell("fullgrad", 0.5, 1))
    assert (result.accuracy, result.metrics["test/accuracy"], result.total_variation, result.seconds) == (0.75, 0.75, 0.1, 2.5)
    assert read_result(cell_file.parents[1], Cell("fullgrad", 0.5, 2)) is None


@pytest.mark.parametrize("name", ["fullgrad-0.5-2", "random-0.5-1", "fullgrad-0.3-1"])
def test_a_cell_under_another_name_is_noticed(cell_file, name):
    """Renamed, or copied over another."""
    (cell_file.parent / f"{name}.json").write_bytes(cell_file.read_bytes())
    method, fraction, seed = name.split("-")
    with pytest.raises(CannotRun, match=rf"{name}.json holds the cell fullgrad-0.5-1: it was renamed or copied; remove it"):
        read_result(cell_file.parents[1], Cell(method, float(fraction), int(seed)))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b'"accuracy": 0.75', b'"accuracy": 0.76'),
        lambda raw: raw.replace(b'"seed": 1', b'"seed": 2'),
        lambda raw: raw.replace(b'"checksum"', b'"check"'),
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"[]",
        lambda raw: b"3",
        lambda raw: b"\xff\xfe",
        lambda raw: b"[" * 100_000,
    ],
)
def test_a_cell_that_was_changed_is_one_sentence(cell_file, change):
    raw = cell_file.read_bytes()
    cell_file.write_bytes(change(raw))
    assert cell_file.read_bytes() != raw
    with pytest.raises(CannotRun, match=r"fullgrad-0.5-1.json is damaged \(.*\); remove it, and the cell is run again"):
        read_result(cell_file.parents[1], Cell("fullgrad", 0.5, 1))


def area(method, seed):
    """By trapezes: 0 to 0.4 from the shared 1.0, and 0.4 to 0.8."""
    first, second = ACCURACIES[method][seed]
    return 0.4 * (1 + first) / 2 + 0.4 * (first + second) / 2


@pytest.mark.parametrize(
    ("mode", "order", "sign"), [("roar", "morf", 1), ("roar", "lerf", -1), ("kar", "morf", -1), ("road", "morf", 1)]
)
def test_the_area_between_a_method_and_random(mode, order, sign):
    (score,) = results(mode, order).scores()
    areas = [sign * (area("random", seed) - area("fullgrad", seed)) for seed in range(3)]
    assert score.area == pytest.approx(np.mean(areas))
    assert score.interval == pytest.approx(np.std(areas, ddof=1) / 3**0.5 * stats.t.ppf(0.975, 2))
    paired = stats.ttest_rel([area("random", seed) for seed in range(3)], [area("fullgrad", seed) for seed in range(3)])
    assert score.p == score.p_holm == pytest.approx(paired.pvalue)
    assert score.total_variation == pytest.approx(0.6)


def test_the_mean_and_its_interval_leave_out_what_failed():
    values = np.array([[0.5, 0.9], [0.7, np.nan], [0.6, np.nan]])
    mean, half = mean_and_interval(values)
    assert mean == pytest.approx([0.6, 0.9])
    low, high = stats.t.interval(0.95, 2, loc=0.6, scale=stats.sem([0.5, 0.7, 0.6]))
    assert half[0] == pytest.approx((high - low) / 2)
    assert np.isnan(half[1])


def test_holm_against_its_definition():
    # 0.01 x 4, then 0.02 x 3, then 0.03 x 2 (not below the one before), then 0.5 x 1
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, float("nan"), 0.7]) == pytest.approx([1.0, float("nan"), 1.0], nan_ok=True)


@pytest.mark.parametrize("by", [0.0, 0.1])
def test_differences_that_do_not_vary_are_no_evidence(by):
    """One network that is tested three times; 0.85 - 0.1 and 0.9 - 0.1 are off by rounding."""
    same = {"random": ACCURACIES["random"], "fullgrad": [[a - by for a in row] for row in ACCURACIES["random"]]}
    (score,) = results(accuracies=same).scores()
    assert score.area == pytest.approx(by * (0.4 / 2 + 0.4))
    assert np.isnan(score.p)
    assert np.isnan(score.p_holm)


def test_cells_are_every_method_fraction_and_seed_and_intact_images_once_a_seed():
    cells = list_cells(["a", "b"], [0.0, 0.5, 1.0], 2)
    assert [cell.name for cell in cells] == ["all-0-0", "all-0-1", "all-1-0", "all-1-1", "a-0.5-0", "a-0.5-1", "b-0.5-0", "b-0.5-1"]


def test_fractions_of_one_name_are_one_cell():
    cells = list_cells(["a"], [0.3, 0.1 + 0.2], 1)
    assert [(cell.name, cell.fraction) for cell in cells] == [("a-0.3-0", 0.3)]


def test_the_table_says_what_failed(tmp_path):
    failed = ROARResults([*results().results, CellResult(Cell("fullgrad", 0.9, 0), reason="Diverged: nan")], "roar", "morf")
    failed.write_table(tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert rows[0] == {
        "method": "all",
        "fraction": "0.0",
        "seed": "0",
        "order": "morf",
        "mode": "roar",
        "accuracy": "1.000000",
        "total_variation": "0.000000",
        "reason": "",
    }
    assert (rows[-1]["accuracy"], rows[-1]["reason"]) == ("", "Diverged: nan")
    assert failed.failures == [failed.results[-1]]


def test_the_curves_show_every_method_with_its_band():
    (axes,) = accuracy_curves(results()).axes
    lines = {line.get_label().split()[0]: line for line in axes.get_lines()}
    assert lines["random"].get_linestyle() == "--"
    assert lines["fullgrad"].get_ydata() == pytest.approx([1, 0.65, 0.95 / 3])
    assert len(axes.collections) == 2
    assert "lower is better" in axes.get_title()


@pytest.mark.parametrize("unit", [1, 100])
def test_bands_lie_about_their_lines_in_per_cent_too(unit):
    scaled = {method: [[a * unit for a in row] for row in table] for method, table in ACCURACIES.items()}
    (axes,) = accuracy_curves(results(accuracies=scaled)).axes
    for line, band in zip(axes.get_lines(), axes.collections, strict=True):
        own = [y for x, y in band.get_paths()[0].vertices if x == 0.4]
        assert min(own) < line.get_ydata()[1] < max(own) <= unit


def test_results_are_summed_up_and_compared_by_identity():
    first, second = results(), results()
    assert first == first != second
    assert len({first, second, *first.results[:2]}) == 4
    head, *lines = repr(first).splitlines()
    assert head == "ROARResults(mode roar, order morf: 15 trainings of 2 methods, 0 failed)"
    assert [line.split()[:2] for line in lines] == [["fullgrad", "area"]]
