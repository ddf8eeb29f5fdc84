"""Sentences on an experiment: p-values by Holm decide the words, masks that give the class away are named, with numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fg_lightning.cli.roar import _say_coverage
from fg_lightning.roar.cells import ALL, MASKS, Cell, CellResult
from fg_lightning.roar.findings import describe_fills, describe_masks, describe_scores, describe_target, find_leaks, list_findings
from fg_lightning.roar.results import ROARResults


def results(losses, fills=("black",), *, num_networks=1, num_seeds=3, masks=None, mode="roar", target="predicted", unit=1):
    """An experiment at fractions 0 and 0.5.

    Args:
        losses: by method, how far accuracy falls below 0.9 with each fill, give or take 0.001. None: by 0.1, give or take 0.1.
        masks: by method, the accuracy of masks alone.
    """
    found = []
    generator = np.random.default_rng(0)
    for network in range(num_networks):
        found += [CellResult(Cell(ALL, 0.0, seed, network), 0.9 * unit) for seed in range(num_seeds)]
        for method, of_fills in losses.items():
            for fill, loss in zip(fills, of_fills, strict=True):
                mean, spread = (0.8, 0.1) if loss is None else (0.9 - loss, 0.001)
                found += [
                    CellResult(Cell(method, 0.5, seed, network, fill), float(generator.normal(mean, spread)) * unit)
                    for seed in range(num_seeds)
                ]
            for own in [masks[method]] if masks and method in masks else []:
                found.append(CellResult(Cell(method, 0.5, 0, network, "", MASKS), own * unit))
    return ROARResults(found, mode, "morf", target)


def test_words_follow_the_p_values_adjusted_by_holm():
    found = results({"random": [0.1], "good": [0.5], "bad": [0.02], "unclear": [None]})
    p = {score.method: score.p_holm for score in found.scores()}
    assert p["good"] < 0.05
    assert p["bad"] < 0.05 < p["unclear"]
    first, second = describe_scores(found)
    assert "its p-value, adjusted by Holm, is below 0.05" in first
    assert second.startswith("Better than random: good (+")
    assert "; worse: bad (-" in second
    assert second.endswith("; no difference is shown for unclear.")


def test_nothing_is_called_worse_or_better_where_no_p_value_says_so():
    """Areas of methods alone decide no word, however many lie below 0."""
    found = results({"random": [0.1], **{f"method{i}": [None] for i in range(6)}})
    assert all(score.p_holm > 0.05 for score in found.scores())
    told = describe_scores(found)[1]
    assert told == "No method is better than random; none is worse; no difference is shown for any of the 6."


def test_what_is_adjusted_counts_not_what_is_not():
    """Every p-value below 0.05 alone, and none after the adjustment."""
    found = results({"random": [0.1], **{f"method{i}": [0.12 + i / 1000] for i in range(4)}})
    scores = found.scores()
    told = describe_scores(found)[1]
    for score in scores:
        assert (f"{score.method} (" in told) == (score.p_holm < 0.05)


def test_one_measurement_says_nothing_of_a_difference():
    (told,) = describe_scores(results({"random": [0.1], "good": [0.5]}, num_seeds=1))
    assert told.startswith("There are no p-values, because every curve was measured once")
    assert "--num_seeds" in told
    (of_road,) = describe_scores(results({"random": [0.1], "good": [0.5]}, num_seeds=1, mode="road"))
    assert "--num_seeds" not in of_road


def test_the_command_states_no_interval_for_one_measurement():
    assert "no interval" in _say_coverage(results({"random": [0.1], "good": [0.5]}, num_seeds=1))
    assert "intervals cover retraining" in _say_coverage(results({"random": [0.1], "good": [0.5]}, num_seeds=2))


@pytest.mark.parametrize(
    ("num_networks", "covered"),
    [(1, "cover retraining with 3 seeds, but not the maps: one network was explained"), (3, "cover 3 explained networks, so both")],
)
def test_it_says_what_intervals_cover(num_networks, covered):
    assert covered in describe_scores(results({"random": [0.1], "good": [0.5]}, num_networks=num_networks))[0]


def test_a_control_that_does_better_is_named():
    found = results({"random": [0.1], "edges": [0.6], "fullgrad": [0.5], "gradient": [0.7]})
    told = describe_scores(found)[1]
    assert told.endswith("The control edges, which does not use the network, has a larger area than fullgrad.")
    assert "control" not in describe_scores(results({"random": [0.1], "edges": [0.3], "fullgrad": [0.5]}))[1]


def test_a_fill_that_decides_is_named():
    losses = {"random": [0.1, 0.3], "fullgrad": [0.5, 0.1], "gradient": [0.5, 0.5], "gradcam": [0.5, 0.3005], "mine": [0.05, 0.1]}
    assert describe_fills(results(losses, ("black", "dataset_mean"))) == [
        "The fill decides about fullgrad: better than random with black; worse with dataset_mean.",
        "The fill decides about gradcam: better than random with black; no difference is shown with dataset_mean.",
    ]
    assert [sentence[:16] for sentence in describe_scores(results(losses, ("black", "dataset_mean")))[1:]] == [
        "With fill black,",
        "With fill datase",
    ]


def test_masks_that_give_the_class_away_are_named_with_what_they_reach():
    masks = {"random": 0.1, "fullgrad": 0.79, "edges": 0.64, "gradient": 0.19, "blurred_random": 0.11}
    found = results({method: [0.1] for method in masks}, masks=masks)
    assert find_leaks(found) == pytest.approx({"fullgrad": 0.79, "edges": 0.64})  # 0.19 is less than random's 0.1 and chance
    (told,) = describe_masks(found)
    assert "reach these accuracies: fullgrad 0.79 and edges 0.64; random 0.10." in told
    assert "gradient" not in told


@pytest.mark.parametrize(
    ("random", "reached", "leaks"), [(0.5, 0.58, False), (0.5, 0.62, True), (0.01, 0.015, False), (0.01, 0.03, True)]
)
def test_with_two_classes_or_a_hundred_the_margin_fits(random, reached, leaks):
    masks = {"random": random, "fullgrad": reached}
    for unit in (1, 100):
        assert bool(find_leaks(results({method: [0.1] for method in masks}, masks=masks, unit=unit))) == leaks


def test_masks_that_give_nothing_away_are_said_to():
    masks = {"random": 0.1, "fullgrad": 0.12}
    (told,) = describe_masks(results({method: [0.1] for method in masks}, masks=masks))
    assert told == "No method's masks give the class away: alone they reach at most 0.12, and random's 0.10."


def test_what_was_not_measured_is_said():
    (told,) = describe_masks(results({"random": [0.1], "fullgrad": [0.1]}))
    assert "was not measured" in told
    assert describe_target(results({"random": [0.1], "fullgrad": [0.1]})) == []
    assert describe_masks(results({"random": [0.1], "fullgrad": [0.1]}, mode="road")) == []  # nothing is trained on masks


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("predicted", "the explained network's answer"),
        ("label", "give the right answer itself away"),
        ("random", "made without the prediction and the label"),
        (3, "Class 3 is explained for all images"),
    ],
)
def test_each_target_says_what_it_gives_away_with_the_numbers(target, words):
    masks = {"random": 0.1, "edges": 0.85, "fullgrad": 0.79}
    (told,) = describe_target(results({method: [0.1] for method in masks}, masks=masks, target=target))
    assert words in told
    assert told.endswith("Here masks alone reach up to 0.79 (fullgrad), beside 0.90 with intact images.")  # edges know no class


def test_without_random_nothing_is_compared():
    found = results({"fullgrad": [0.1]}, masks={"fullgrad": 0.5})
    assert describe_scores(found) == []
    assert find_leaks(found) == {}
    assert list_findings(found)[-1].startswith("The predicted class")


def test_an_unfinished_experiment_has_findings_too():
    whole = results({"random": [0.1], "fullgrad": [0.5]}, masks={"random": 0.1, "fullgrad": 0.8}).results
    for count in range(1, len(whole) + 1):
        assert all(
            isinstance(sentence, str) and "nan" not in sentence
            for sentence in list_findings(ROARResults(whole[:count], "roar", "morf"))
        )
