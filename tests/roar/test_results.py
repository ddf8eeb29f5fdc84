"""What the accuracies say of the methods, against numbers that are worked out by hand and scipy's own tests."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy import stats

from fg_lightning.roar import CannotRun
from fg_lightning.roar.cells import (
    ALL,
    MASKS,
    Cell,
    CellResult,
    list_cells,
    parse_row,
    read_result,
    read_results,
    write_result,
)
from fg_lightning.roar.results import ROARResults, holm, mean_and_interval, mean_of_known

ACCURACIES = {"random": ([0.8, 0.6], [0.9, 0.5], [0.85, 0.55]), "fullgrad": ([0.6, 0.3], [0.8, 0.3], [0.55, 0.35])}
"""By seed, at fractions 0.4 and 0.8."""


def results(mode="roar", order="morf", accuracies=ACCURACIES):
    found = [CellResult(Cell(ALL, 0.0, seed), 1.0, total_variation=0.0) for seed in range(3)]
    for method, table in accuracies.items():
        for seed, row in enumerate(table):
            found += [
                CellResult(Cell(method, fraction, seed, 0, "black"), accuracy, total_variation=fraction)
                for fraction, accuracy in zip((0.4, 0.8), row, strict=True)
            ]
    return ROARResults(found, mode, order)


NETWORKS = {
    ("random", "black"): [[[0.8, 0.6], [0.9, 0.5]], [[0.85, 0.55], [0.7, 0.5]], [[0.75, 0.6], [0.8, 0.4]]],
    ("fullgrad", "black"): [[[0.6, 0.3], [0.8, 0.3]], [[0.55, 0.35], [0.6, 0.5]], [[0.65, 0.2], [0.6, 0.3]]],
    ("random", "mean"): [[[0.7, 0.6], [0.6, 0.5]], [[0.8, 0.5], [0.7, 0.5]], [[0.7, 0.6], [0.8, 0.4]]],
    ("fullgrad", "mean"): [[[0.9, 0.8], [0.8, 0.7]], [[0.9, 0.8], [0.8, 0.6]], [[0.9, 0.7], [0.9, 0.8]]],
}
"""By method and fill: [networks, seeds, fractions]."""

LEAKS = {"random": [[0.1, 0.12], [0.11, 0.1], [0.1, 0.09]], "fullgrad": [[0.8, 0.7], [0.9, 0.6], [0.7, 0.8]]}
"""By method: [networks, fractions]."""


def several():
    """Results of three networks with two seeds each, two fills and controls."""
    found = [CellResult(Cell(ALL, 0.0, seed, network), 1.0) for network in range(3) for seed in range(2)]
    for (method, fill), values in NETWORKS.items():
        for (network, seed, i), accuracy in np.ndenumerate(np.array(values)):
            found.append(CellResult(Cell(method, (0.4, 0.8)[i], seed, network, fill), accuracy))
    for method, values in LEAKS.items():
        for (network, i), accuracy in np.ndenumerate(np.array(values)):
            found.append(CellResult(Cell(method, (0.4, 0.8)[i], 0, network, control=MASKS), accuracy))
    return ROARResults(found, "roar", "morf")


@pytest.fixture
def cell_file(tmp_path):
    (tmp_path / "cells").mkdir()
    cell, metrics = Cell("fullgrad", 0.5, 1, 0, "black"), {"test/accuracy": 0.75, "odd": float("nan")}
    write_result(tmp_path, CellResult(cell, 0.75, metrics, 0.1, 2.5))
    return tmp_path / "cells" / "fullgrad-0.5-black-0-1.json"


def test_a_cell_comes_back_as_it_was(cell_file):
    result = read_result(cell_file.parents[1], Cell("fullgrad", 0.5, 1, 0, "black"))
    assert (result.accuracy, result.metrics["test/accuracy"], result.total_variation, result.seconds) == (0.75, 0.75, 0.1, 2.5)
    assert read_result(cell_file.parents[1], Cell("fullgrad", 0.5, 2, 0, "black")) is None


@pytest.mark.parametrize(
    "cell",
    [
        Cell("fullgrad", 0.5, 2, 0, "black"),
        Cell("random", 0.5, 1, 0, "black"),
        Cell("fullgrad", 0.3, 1, 0, "black"),
        Cell("fullgrad", 0.5, 1, 1, "black"),
        Cell("fullgrad", 0.5, 1, 0, "mean"),
        Cell("fullgrad", 0.5, 1, control=MASKS),
    ],
)
def test_a_cell_under_another_name_is_noticed(cell_file, cell):
    """Renamed, or copied over another."""
    (cell_file.parent / f"{cell.name}.json").write_bytes(cell_file.read_bytes())
    with pytest.raises(CannotRun, match=rf"{cell.name}.json holds the cell fullgrad-0.5-black-0-1: the file was renamed"):
        read_result(cell_file.parents[1], cell)
    results, num_damaged = read_results(cell_file.parents[1])
    assert [result.cell.name for result in results] == ["fullgrad-0.5-black-0-1"]
    assert num_damaged == 1


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
    with pytest.raises(CannotRun, match=r"fullgrad-0.5-black-0-1.json is damaged \(.*\); remove it to run the cell again"):
        read_result(cell_file.parents[1], Cell("fullgrad", 0.5, 1, 0, "black"))
    assert read_results(cell_file.parents[1]) == ([], 1)


def area_under(first, second):
    """By trapezes: 0 to 0.4 from the shared 1.0, and 0.4 to 0.8. Divided by the range."""
    return (0.4 * (1 + first) / 2 + 0.4 * (first + second) / 2) / 0.8


def area(method, seed):
    return area_under(*ACCURACIES[method][seed])


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
    assert (score.fill, score.num_repetitions, results(mode, order).interval_over) == ("black", 3, "seeds")
    assert np.isnan([score.masks_accuracy_mean, score.masks_accuracy_largest]).all()


@pytest.mark.parametrize("fill", ["black", "mean"])
def test_an_interval_over_networks_is_that_of_their_means_over_seeds(fill):
    """Seeds of one network share its maps: they are no repetitions of each other."""
    found = several()
    (score,) = found.scores(fill)
    areas = [
        np.mean([area_under(*r) - area_under(*f) for r, f in zip(random, fullgrad, strict=True)])
        for random, fullgrad in zip(NETWORKS["random", fill], NETWORKS["fullgrad", fill], strict=True)
    ]
    assert score.area == pytest.approx(np.mean(areas))
    assert score.interval == pytest.approx(np.std(areas, ddof=1) / 3**0.5 * stats.t.ppf(0.975, 2))
    assert score.p == pytest.approx(stats.ttest_1samp(areas, 0).pvalue)
    assert (score.num_repetitions, found.interval_over) == (3, "networks")
    assert found.accuracies("fullgrad", fill) == pytest.approx(
        np.array([[1, *np.mean(network, 0)] for network in NETWORKS["fullgrad", fill]])
    )


def test_p_values_are_adjusted_for_methods_and_fills_together():
    scores = several().scores()
    assert [score.fill for score in scores] == ["black", "mean"]
    assert [score.p_holm for score in scores] == holm([score.p for score in scores])
    assert [score.p_holm for score in several().scores("mean")] == [scores[1].p_holm]


def test_what_the_masks_alone_give_away_is_a_column(tmp_path):
    found = several()
    assert found.has_controls
    assert found.masks_accuracies("fullgrad")[:, 1:] == pytest.approx(np.array(LEAKS["fullgrad"]))
    assert np.isnan(found.masks_accuracies("fullgrad")[:, 0]).all()
    assert found.chance == pytest.approx(np.mean(LEAKS["random"]))
    found.write_summary(tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [(row["method"], row["fill"]) for row in rows] == [
        ("fullgrad", "black"),
        ("random", "black"),
        ("fullgrad", "mean"),
        ("random", "mean"),
    ]
    for row in rows:
        assert float(row["masks_accuracy_mean"]) == pytest.approx(np.mean(LEAKS[row["method"]]), rel=1e-5)
        assert float(row["masks_accuracy_largest"]) == pytest.approx(np.mean(LEAKS[row["method"]], 0)[1], rel=1e-5)
    assert (rows[1]["area"], rows[1]["p"], rows[0]["interval_over"], rows[0]["num_repetitions"]) == ("0", "", "networks", "3")


def test_a_mean_over_fractions_of_which_one_failed_is_unknown():
    some = [result for result in several().results if result.cell != Cell("fullgrad", 0.8, 0, 1, control=MASKS)]
    scores = ROARResults(some, "roar", "morf").scores("black")
    assert scores[0].masks_accuracy_mean == pytest.approx(np.mean([LEAKS["fullgrad"][n] for n in (0, 2)]))
    assert np.isnan(mean_of_known(np.array([[np.nan], [np.nan]]), 0)).all()


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
    assert score.area == pytest.approx(by * (0.4 / 2 + 0.4) / 0.8)
    assert np.isnan(score.p)
    assert np.isnan(score.p_holm)


def test_cells_are_every_method_fraction_and_seed_and_intact_images_once_a_seed():
    cells = list_cells(["a", "b"], [0.0, 0.5, 1.0], ["black"], num_seeds=2)
    assert [cell.name for cell in cells] == [
        *("all-0-intact-0-0", "all-0-intact-0-1", "all-1-intact-0-0", "all-1-intact-0-1"),
        *("a-0.5-black-0-0", "a-0.5-black-0-1", "b-0.5-black-0-0", "b-0.5-black-0-1"),
    ]


def test_the_control_is_one_cell_for_each_method_fraction_and_network():
    cells = list_cells(["a", "b"], [0, 0.5, 0.7], ["black", "mean"], num_networks=2, num_seeds=3, controls=True)
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 3 + 2 * 2 * 2 * 2 * 3 + 2 * 2 * 2
    assert {(c.seed, c.fill) for c in cells if c.control} == {(0, "")}
    assert {(c.seed, c.network) for c in cells if not c.control} == {(seed, network) for seed in range(3) for network in range(2)}


def test_fractions_of_one_name_are_one_cell():
    cells = list_cells(["a"], [0.3, 0.1 + 0.2], ["black"])
    assert [(cell.name, cell.fraction) for cell in cells] == [("a-0.3-black-0-0", 0.3)]


def test_the_table_says_what_failed(tmp_path):
    broken = CellResult(Cell("fullgrad", 0.9, 0, 0, "black"), reason="Diverged: nan")
    failed = ROARResults([*results().results, broken], "roar", "morf", 3)
    failed.write_table(tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert rows[0] == {
        "method": "all",
        "control": "",
        "fill": "",
        "fraction": "0.0",
        "network": "0",
        "seed": "0",
        "target": "3",
        "order": "morf",
        "mode": "roar",
        "accuracy": "1.000000",
        "total_variation": "0.000000",
        "reason": "",
    }
    assert (rows[-1]["accuracy"], rows[-1]["reason"]) == ("", "Diverged: nan")
    assert failed.failures == [failed.results[-1]]
    assert [parse_row(row).cell for row in rows] == [result.cell for result in failed.results]
    with pytest.raises(ValueError, match="a finite accuracy, or the reason"):
        parse_row({**rows[0], "accuracy": ""})


def test_results_are_summed_up_and_compared_by_identity():
    first, second = results(), results()
    assert first == first != second
    assert len({first, second, *first.results[:2]}) == 4
    head, *lines = repr(first).splitlines()
    assert head == "ROARResults(mode roar, order morf: 15 trainings of 2 methods, 0 failed, no controls)"
    assert "no controls" not in repr(several())
    assert [line.split()[:2] for line in lines] == [["fullgrad", "black"]]
