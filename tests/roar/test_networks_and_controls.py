"""Several explained networks, several fills, and the control that sees the masks alone."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from fg_lightning.cli.main import main
from fg_lightning.roar import CannotRun, SaliencyStore, cell_training
from fg_lightning.roar.config import NETWORK_SEED
from tests.helpers import tiny_squares
from tests.helpers.tiny_squares import Net
from tests.roar.test_experiment import experiment, rows

pytestmark = pytest.mark.filterwarnings("error")  # the package silences Lightning's advice itself


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """An experiment with one network."""
    folder = tmp_path_factory.mktemp("roar")
    return folder, experiment(folder).run()


def test_several_networks_have_maps_and_trainings_of_their_own(alone, tmp_path):
    experiment(tmp_path, num_networks=2).run()
    first, second = ([row for row in rows(tmp_path) if row["network"] == network] for network in "01")
    assert first == rows(alone[0])  # one network is the first of several
    assert len(second) == len(first)
    weights = [torch.load(tmp_path / "networks" / f"{n}.pt", weights_only=True)["network.0.weight"] for n in (0, 1)]
    assert not torch.equal(*weights)
    one, other = (SaliencyStore(tmp_path / stores / "gradient") for stores in ("stores", "stores_1"))
    assert one.manifest.model != other.manifest.model
    assert not np.array_equal(one.ranks("test"), other.ranks("test"))
    assert set(json.loads((tmp_path / "experiment.json").read_text())["networks"]) == {"0", "1"}


def test_no_cell_is_trained_from_the_seed_of_an_explained_network(tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        cell_training, "seed_everything", lambda seed, **given: seeds.append(seed) or seed_everything(seed, **given)
    )
    experiment(tmp_path, methods=["random"], num_networks=2, controls=False).run()
    cells = [seed for seed in seeds if seed < NETWORK_SEED]
    assert {0, 1, 1000, 1001} <= set(cells)
    assert {NETWORK_SEED, NETWORK_SEED + 1} <= set(seeds)


def test_checkpoints_are_networks(tmp_path):
    paths = [tmp_path / f"{n}.ckpt" for n in (0, 1)]
    for path in paths:
        torch.save(Net().state_dict(), path)
    results = experiment(tmp_path / "out", checkpoint=paths, methods=["random"], num_seeds=1).run()
    assert results.networks == [0, 1]
    for n, path in enumerate(paths):
        there = torch.load(tmp_path / "out" / "networks" / f"{n}.pt", weights_only=True)
        assert torch.equal(there["network.0.weight"], torch.load(path, weights_only=True)["network.0.weight"])
    with pytest.raises(CannotRun, match=r"checkpoint 0 '\w+' there, '\w+' here; checkpoint 1"):
        experiment(tmp_path / "out", checkpoint=paths[::-1], methods=["random"], num_seeds=1).run()


def test_without_controls_the_results_say_so(alone, tmp_path):
    results = experiment(tmp_path, controls=False).run()
    assert (results.has_controls, alone[1].has_controls) == (False, True)
    assert not any(row["control"] for row in rows(tmp_path))
    assert [row for row in rows(alone[0]) if not row["control"]] == rows(tmp_path)
    summary = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert {row["masks_accuracy_largest"] for row in summary} == {""}
    experiment(tmp_path).run()  # they may be added
    assert rows(tmp_path) == rows(alone[0])


def test_masks_of_random_may_be_drawn_anew_at_every_reading(tmp_path):
    for name in "ab":
        experiment(tmp_path / name, redraw_random=True, num_seeds=1).run()
    assert (tmp_path / "a" / "results.csv").read_text() == (tmp_path / "b" / "results.csv").read_text()
    with pytest.raises(CannotRun, match="redraw_random True there, False here"):
        experiment(tmp_path / "a").run()


def test_one_network_after_the_other_is_tested_in_mode_road(tmp_path):
    results = experiment(tmp_path, mode="road", fills=0.0, num_networks=2).run()
    assert (results.networks, results.seeds, results.has_controls, results.interval_over) == ([0, 1], [0], False, "networks")
    (score,) = results.scores()
    areas = (results.accuracies("random") - results.accuracies("gradient"))[:, 1] / 2  # of a triangle whose one end is 0
    assert score.area == pytest.approx(areas.mean())
    assert score.num_repetitions == 2


def test_the_command_takes_them(tmp_path, capsys):
    own = ["--data", f"{tiny_squares.__name__}.Data", "--model", f"{tiny_squares.__name__}.Net", "--max_epochs", "1"]
    given = ["--methods", "random", "--fractions", "[0.5]", "--num_seeds", "1", "--num_networks", "2", "--target", "1"]
    main(["roar", "--output", str(tmp_path), *own, *given, "--fills", "[black,7.0]", "--no_controls"])
    expected = [("all", "", "0"), ("all", "", "1")] + [("random", fill, network) for fill in ("black", "7") for network in "01"]
    assert [(row["method"], row["fill"], row["network"]) for row in rows(tmp_path)] == expected
    assert {(row["control"], row["target"]) for row in rows(tmp_path)} == {("", "1")}
    checkpoints = [str(tmp_path / "networks" / f"{n}.pt") for n in (0, 1)]
    given = ["--methods", "random,gradient", "--fractions", "[0.5]", "--num_seeds", "1", "--fills", "-1", "--target", "random"]
    main(["roar", "--output", str(tmp_path / "b"), *own, *given, "--checkpoint", f"[{','.join(checkpoints)}]"])
    assert {row["fill"] for row in rows(tmp_path / "b")} == {"", "-1"}
    assert {row["network"] for row in rows(tmp_path / "b")} == {"0", "1"}
    printed = " ".join(capsys.readouterr().out.split())
    assert "Over 2 explained networks, 1 seed each: intervals cover the network and retraining; with fewer than 5" in printed
    assert "Masks alone: accuracy, at the largest fraction, of a network that sees only which pixels were removed" in printed
    assert "No controls were run" not in printed  # random alone has no score


def accuracy(folder, **of):
    """Of the only row with these values."""
    (row,) = (row for row in rows(folder) if all(row[name] == value for name, value in of.items()))
    return float(row["accuracy"])


def test_several_fills_share_maps_intact_images_and_the_control(alone, tmp_path):
    experiment(tmp_path, fills=["dataset_mean", 7.0, 250]).run()
    for row in rows(alone[0]):
        of = {name: row[name] for name in ("method", "control", "fill", "fraction", "seed")}
        assert accuracy(tmp_path, **of) == float(row["accuracy"])
    assert len(rows(tmp_path)) == len(rows(alone[0])) + 2 * 2 * 2
    summary = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    expected = [(method, fill) for fill in ("dataset_mean", "7", "250") for method in ("gradient", "random")]
    assert [(row["method"], row["fill"]) for row in summary] == expected


def test_the_corner_that_is_removed_gives_the_class_away(tmp_path):
    """The bright square is the class. Edges removes it, and who sees only the hole knows the class; random's holes say nothing."""
    experiment(tmp_path, methods=["random", "edges"], fractions=[0.2], num_seeds=1, max_epochs=8).run()
    assert accuracy(tmp_path, method="edges", control="masks") == 1
    assert accuracy(tmp_path, method="random", control="masks") < 0.8
