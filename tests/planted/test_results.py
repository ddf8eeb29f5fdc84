"""Scores against numbers by hand: networks that do not rely on the mark are left out."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from fg_lightning.planted import PlantedResults
from fg_lightning.planted.figures import score_figure
from fg_lightning.planted.results import LEAST_FALL, Explanation, TrainedNetwork

FOLLOWS = [True, True, False, False]

POINTING = {
    ("planted", 0, "mine"): [1, 1, 0, 0],
    ("planted", 1, "mine"): [1, 0, 0, 0],
    ("planted", 2, "mine"): [0, 0, 0, 0],
    ("control", 0, "mine"): [0, 0, 1, 0],
    ("control", 1, "mine"): [0, 0, 0, 0],
    ("control", 2, "mine"): [1, 1, 1, 1],
}


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def trained(network, seed, label, shuffled, follows=FOLLOWS):
    return TrainedNetwork(network, seed, {"label": label, "shuffled": shuffled, "random": shuffled}, list(follows), "hash")


def explained(network, seed, method, values):
    return Explanation(network, seed, method, {"pointing_game": list(values), "relevance_mass": [v / 2 for v in values]})


@pytest.fixture
def results():
    """Three networks of either kind; that of seed 2 does not rely on the mark."""
    networks = [trained("planted", 0, 0.9, 0.3), trained("planted", 1, 1.0, 0.5), trained("planted", 2, 1.0, 0.7)]
    networks += [trained("control", seed, 0.9, 0.9, [False] * 4) for seed in range(3)]
    explanations = [explained(*cell, values) for cell, values in POINTING.items()]
    explanations += [explained(network, seed, "worse", [0.0] * 4) for network in ("planted", "control") for seed in range(3)]
    return PlantedResults(networks, explanations, 0.25)


def half_interval(values):
    return t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5


def test_scores_are_means_over_the_networks_that_live_on_the_mark(results):
    best, worst = results.scores()
    assert (best.method, worst.method) == ("mine", "worse")
    assert best.num_networks == 2
    assert best.planted == pytest.approx((0.5 + 0.25) / 2)
    assert best.planted_interval == pytest.approx(half_interval([0.5, 0.25]))
    assert best.control == pytest.approx((0.25 + 0) / 2)
    assert best.control_interval == pytest.approx(half_interval([0.25, 0]))
    assert best.difference == pytest.approx(0.25)
    assert best.difference_interval == pytest.approx(0, abs=1e-12)  # both networks differ from their controls by a quarter
    assert results.scores("relevance_mass")[0].planted == pytest.approx(best.planted / 2)


def test_p_values_compare_with_the_controls_and_are_adjusted_for_the_number_of_methods(results):
    for network, seed, value in (("planted", 0, 1.0), ("planted", 1, 0.75), ("control", 0, 0.0), ("control", 1, 0.25)):
        results.explanations.append(explained(network, seed, "third", [value] * 4))
    more = PlantedResults(results.networks, results.explanations, 0.25)
    scores = {score.method: score for score in more.scores()}
    assert scores["third"].p_holm == pytest.approx(ttest_rel([1.0, 0.75], [0.0, 0.25]).pvalue)
    assert np.isnan(scores["mine"].p_holm)  # both networks differ from their controls by a quarter
    for network, seed, value in (("planted", 0, 1.0), ("planted", 1, 0.5), ("control", 0, 0.5), ("control", 1, 0.25)):
        more.explanations.append(explained(network, seed, "fourth", [value] * 4))
    scores = {score.method: score for score in PlantedResults(more.networks, more.explanations, 0.25).scores()}
    p = sorted([ttest_rel([1.0, 0.75], [0.0, 0.25]).pvalue, ttest_rel([1.0, 0.5], [0.5, 0.25]).pvalue])
    assert sorted([scores["third"].p_holm, scores["fourth"].p_holm]) == pytest.approx([2 * p[0], max(2 * p[0], p[1])])


def test_methods_are_compared_pair_by_pair(results):
    for network, seed, value in (("planted", 0, 0.25), ("planted", 1, 0.5), ("control", 0, 0.0), ("control", 1, 0.0)):
        results.explanations.append(explained(network, seed, "third", [value] * 4))
    more = PlantedResults(results.networks, results.explanations, 0.25)
    first, second = more.differences("mine")  # 0.5 and 0.25 of the networks
    assert (first.method, first.other, second.other) == ("mine", "worse", "third")
    assert first.mean == pytest.approx(0.375)
    assert first.interval == pytest.approx(half_interval([0.5, 0.25]))
    assert second.mean == pytest.approx(0)
    assert first.p_holm == pytest.approx(2 * ttest_rel([0.5, 0.25], [0, 0]).pvalue)
    with pytest.raises(ValueError, match="method must be one of mine, worse, third, not 'nothing'"):
        more.differences("nothing")


def test_images_that_follow_the_mark_are_the_same_for_the_control(results):
    best = results.scores(images="following")[0]
    assert best.planted == pytest.approx((1 + 0.5) / 2)  # of the first two images
    assert best.control == 0


def test_a_fall_of_a_third_is_enough():
    assert trained("planted", 0, LEAST_FALL + 0.5 + 1e-9, 0.5).lives_on_mark
    assert not trained("planted", 0, 0.9, 0.9 - LEAST_FALL + 1e-6).lives_on_mark
    assert not trained("planted", 0, 0.3, 0.0).lives_on_mark  # a third of nine tenths, not of three


def test_it_says_which_networks_rely_on_the_mark(results):
    assert results.verdict.startswith("2 of 3 networks rely on the mark (accuracy 0.967 with the mark of the label, 0.500 with")
    assert results.verdict.endswith("; scores leave out the others")
    assert "mine" in repr(results)


def test_without_such_a_network_no_result_is_stated(tmp_path):
    networks = [trained(network, 0, 0.9, 0.8) for network in ("planted", "control")]
    results = PlantedResults(networks, [explained(*cell, values) for cell, values in POINTING.items() if cell[1] == 0], 0.25)
    assert results.scores() == results.differences("mine") == []
    assert results.verdict.startswith("none of 1 networks relies on the mark (accuracy 0.900 ")
    assert results.verdict.endswith("there are no scores")
    results.write_table(tmp_path / "table.csv")
    results.write_summary(tmp_path / "summary.csv")
    rows = rows_of(tmp_path / "table.csv")
    assert {row["lives_on_mark"] for row in rows} == {"False"}
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1


def test_the_table_has_a_value_a_row(results, tmp_path):
    results.write_table(tmp_path / "table.csv")
    rows = rows_of(tmp_path / "table.csv")
    accuracies = [row for row in rows if row["metric"].startswith("accuracy_")]
    assert len(accuracies) == 6 * 3
    maps = {tuple(row[name] for name in ("network", "seed", "method", "images", "metric")): row for row in rows if row["method"]}
    assert len(maps) == 6 * 2 * 2 * 2
    assert float(maps["planted", "1", "mine", "following", "pointing_game"]["value"]) == 0.5
    assert maps["planted", "2", "mine", "all", "pointing_game"]["lives_on_mark"] == "False"
    results.write_summary(tmp_path / "summary.csv")
    summary = rows_of(tmp_path / "summary.csv")
    assert len(summary) == 2 * 2 * 2
    assert float(summary[0]["planted"]) == pytest.approx(0.375)


def test_a_method_that_failed_is_a_row_without_a_value(results, tmp_path):
    broken = [Explanation(network, seed, "broken", reason="no") for network in ("planted", "control") for seed in range(3)]
    more = PlantedResults(results.networks, [*results.explanations, *broken], 0.25)
    assert [score.method for score in more.scores()] == ["mine", "worse"]
    assert len(more.failures) == 6
    more.write_table(tmp_path / "table.csv")
    rows = [row for row in rows_of(tmp_path / "table.csv") if row["method"] == "broken"]
    assert [row["reason"] for row in rows] == ["no"] * 6
    assert {row["value"] for row in rows} == {""}


def test_one_network_has_no_interval(results, tmp_path):
    alone = PlantedResults([n for n in results.networks if n.seed == 0], [e for e in results.explanations if e.seed == 0], 0.25)
    score = alone.scores()[0]
    assert np.isnan(score.planted_interval)
    alone.write_summary(tmp_path / "summary.csv")
    row = rows_of(tmp_path / "summary.csv")[0]
    assert row["planted_interval_95"] == ""
    score_figure(alone).savefig(tmp_path / "figure.png")


def test_the_figure_shows_means_networks_and_the_share_of_the_mark(results):
    figure = score_figure(results)
    left, _ = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["worse", "mine"]
    drawn = [tuple(map(float, line.get_xdata())) for line in left.lines]
    assert (0.5, 0.25) in drawn  # the networks of mine
    assert (0.375,) in drawn
    assert (0.25, 0.25) in drawn  # the dotted line
    assert not figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "trained with the mark",
        "trained with random marks",
        "the mark's share of the pixels",
    ]
