"""An experiment on images in which only the mark tells the class: it finds that, and can be stopped and started again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from fg_lightning.attribution import METHODS
from fg_lightning.errors import CannotRun
from fg_lightning.planted import PlantedExperiment, PlantedShortcut, experiment
from fg_lightning.roar.engines import LocalEngine
from tests.helpers.tiny_squares import Data, Net

SETTINGS = {"methods": ["random", "gradient"], "num_seeds": 2, "max_epochs": 8, "size": 3, "margin": 1}


class OnlyTheMark(Data):
    """Noise and labels that it says nothing of."""

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        images, labels = torch.rand(300, 1, 8, 8, generator=generator), torch.arange(300) % 2
        self.train, self.val, self.test = (TensorDataset(images[i::3], labels[i::3]) for i in range(3))


class Fast(Net):
    """Learns the mark in a few epochs."""

    def __init__(self):
        super().__init__(lr=0.3)


def run(folder, data=OnlyTheMark, model=Fast, **options):
    return PlantedExperiment(folder, data, model, **{**SETTINGS, **options}).run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "mine"
    return folder, run(folder)


def test_networks_that_have_only_the_mark_live_on_it_and_controls_do_not(finished):
    results = finished[1]
    for network in results.networks:
        assert network.lives_on_mark == (network.network == "planted")
        if network.network == "planted":
            assert network.accuracies["label"] > 0.95
            assert network.accuracies["shuffled"] < 0.05
            assert sum(network.follows) > 95
    assert results.seeds == [0, 1]
    assert results.verdict.startswith("2 of 2 networks rely on the mark")


def test_gradients_lie_on_the_mark_and_random_maps_do_not(finished):
    scores = {score.method: score for score in finished[1].scores()}
    assert scores["gradient"].planted > 0.9
    assert scores["gradient"].difference > 0.3
    assert scores["random"].planted == pytest.approx(finished[1].area, abs=0.1)
    assert finished[1].area == 16 / 64


def test_scores_are_what_a_plain_loop_over_the_images_gives(finished):
    folder, results = finished
    model = Net()
    model.load_state_dict(torch.load(folder / "networks" / "planted-1.pt", weights_only=True))
    data = PlantedShortcut(OnlyTheMark(), size=3, seed=1)
    data.setup("test")
    pointing, mass = [], []
    for images, _ in data.test_dataloader():
        for image in images:
            (saliency,) = METHODS["gradient"](model).attribute(image[None])
            values = saliency[0].numpy()
            y, x = np.unravel_index(values.argmax(), values.shape)
            pointing.append(float(y < 4 and x < 4))
            mass.append(values[:4, :4].sum() / values.sum())
    assert results.by_seed("planted", "gradient", "pointing_game")[1] == pytest.approx(np.mean(pointing), abs=1e-6)
    assert results.by_seed("planted", "gradient", "relevance_mass")[1] == pytest.approx(np.mean(mass), abs=1e-4)


def test_everything_is_written(finished):
    folder = finished[0]
    for name in ("results.csv", "summary.csv", "planted.png", "planted.pdf", "planted.svg", "maps.png"):
        assert (folder / name).stat().st_size > 100
    assert sorted(path.name for path in (folder / "networks").iterdir()) == [
        f"{network}-{seed}.pt" for network in ("control", "planted") for seed in (0, 1)
    ]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".pt")}


@pytest.fixture
def copied(finished, tmp_path):
    """The finished experiment, whose networks are refused to be trained again."""
    for path in finished[0].rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(finished[0])).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(finished[0])).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a network was trained again")

    monkeypatch.setattr(experiment, "fit", refuse)


@pytest.mark.usefixtures("no_training")
def test_a_finished_experiment_runs_nothing(copied, monkeypatch):
    before = contents(copied)
    monkeypatch.setattr(LocalEngine, "run", lambda self, work, items: iter(items and pytest.fail(f"{items} run again")))
    run(copied)
    assert contents(copied) == before


@pytest.mark.usefixtures("no_training")
def test_a_network_that_was_trained_but_not_tested_is_not_trained_again(copied):
    before = contents(copied)
    (copied / "cells" / "control-1.json").unlink()
    (copied / "cells" / "planted-0-gradient.json").unlink()
    (copied / "results.csv").unlink()
    run(copied)
    assert contents(copied) == before


@pytest.mark.usefixtures("no_training")
def test_methods_may_be_added(copied):
    results = run(copied, methods="random,gradient,edges")
    assert {score.method for score in results.scores()} == {"random", "gradient", "edges"}


@pytest.mark.slow
def test_an_experiment_that_was_stopped_ends_with_the_same_numbers(finished, tmp_path, monkeypatch):
    fit, calls = experiment.fit, []

    def stop_at_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert len(list((tmp_path / "networks").iterdir())) == 2
    torch.rand(3)  # another state of the generator than at the first run
    run(tmp_path)
    for name in ("results.csv", "summary.csv"):
        assert (tmp_path / name).read_text() == (finished[0] / name).read_text()


def test_another_experiment_in_the_folder_is_refused(copied):
    with pytest.raises(CannotRun, match=r"holds another experiment: strength 1\.0 there, 0\.5 here"):
        run(copied, strength=0.5)


def test_damaged_and_changed_files_are_named(copied):
    cell = copied / "cells" / "planted-0-gradient.json"
    good = cell.read_text()
    cell.write_text(good[:40])
    with pytest.raises(CannotRun, match=r"planted-0-gradient\.json is damaged .*; remove it to compute it again"):
        run(copied)
    cell.write_text((copied / "cells" / "planted-1-gradient.json").read_text())
    with pytest.raises(CannotRun, match="was renamed or copied"):
        run(copied)
    cell.unlink()
    weights = copied / "networks" / "planted-0.pt"
    torch.save(Net().state_dict(), weights)
    with pytest.raises(CannotRun, match=r"planted-0\.pt was changed after it was tested"):
        run(copied)


def test_marks_of_strength_zero_give_no_result(tmp_path):
    results = run(tmp_path, strength=0.0, num_seeds=1)
    assert results.scores() == []
    assert "there are no scores" in results.verdict
    assert not (tmp_path / "planted.png").exists()
    assert not (tmp_path / "maps.png").exists()


@pytest.mark.slow
def test_a_decoy_beside_the_image(tmp_path):
    results = run(tmp_path, data=Data, shortcut="decoy", num_seeds=1, max_epochs=10, size=None, margin=None)
    planted, control = results.networks
    assert planted.lives_on_mark
    assert not control.lives_on_mark
    assert control.accuracies["random"] > 0.9  # it sees the class in the decoy's place
    assert results.scores()[0].method == "gradient"
    assert results.area == 0.25


def broken_method(model, **settings):
    raise RuntimeError("a fault of the user's own method")


@pytest.mark.usefixtures("no_training")
def test_a_method_that_fails_is_tried_again(copied):
    methods = {"random": METHODS["random"], "mine": broken_method}
    results = run(copied, methods=methods)
    assert [(e.network, e.seed, e.method) for e in results.failures] == [
        (network, seed, "mine") for network in ("planted", "control") for seed in (0, 1)
    ]
    assert "a fault of the user's own method" in results.failures[0].reason
    about = json.loads((copied / "experiment.json").read_text())
    about["methods"]["mine"] = about["methods"]["random"]
    (copied / "experiment.json").write_text(json.dumps(about))
    again = run(copied, methods={"random": METHODS["random"], "mine": METHODS["random"]})
    assert not again.failures


# --- bad input: nothing is trained ------------------------------------------------------------------------------------------------


class NoTest(OnlyTheMark):
    test_dataloader = Data.__mro__[1].test_dataloader


class NoLabels(OnlyTheMark):
    def setup(self, stage):
        super().setup(stage)
        self.train = self.val = self.test = TensorDataset(torch.rand(9, 1, 8, 8), torch.rand(9))


class NoLogits(Net):
    def forward(self, images):
        return self.network(images)[:, 0]

    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", 0.5)


class Percent(Net):
    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", 50.0)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"methods": "none_such"}, "method must be one of random"),
        ({"methods": "random,random"}, "methods must differ, but random is given more than once"),
        ({"methods": []}, "methods must have at least one name"),
        ({"methods": {"a/b": METHODS["random"]}}, "since files are named after it; not 'a/b'"),
        ({"strength": -1}, "strength must be from 0 to 1"),
        ({"shortcut": "edge"}, "shortcut must be one of corner, decoy"),
        ({"num_seeds": 0}, "num_seeds must be at least 1"),
        ({"margin": -1}, "margin must be a number of pixels"),
        ({"margin": 9}, "cover the whole image"),
        ({"size": 7}, "a patch of 7 pixels is too large"),
        ({"metric": "f1"}, "the test logged no metric 'f1'; it logged test/accuracy"),
        ({"trainer": {"devices": 2}}, "uses one device"),
        ({"data": NoTest}, "has no test data"),
        ({"data": NoLabels}, "no integer label was found"),
        ({"model": NoLogits}, r"logits \[N, classes\] of two classes or more, but it gives \(2,\)"),
        ({"model": Percent}, "the accuracy must be 0 to 1, but the test logged 50"),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_trained(tmp_path, options, why):
    with pytest.raises(ValueError, match=why):
        run(tmp_path, **options)
    assert not list(Path(tmp_path).rglob("*.pt"))


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": Net()}, "model must be a function that makes a new LightningModule"),
        ({"data": OnlyTheMark()}, "data must be a function that makes a new LightningDataModule"),
        ({"max_epochs": 1.5}, r"max_epochs must be an integer, not 1\.5"),
        ({"engine": "ray"}, r"engine must be a LocalEngine\(\) or a RayEngine\(\), not 'ray'"),
    ],
)
def test_settings_of_the_wrong_type_are_refused(tmp_path, options, why):
    with pytest.raises(TypeError, match=why):
        run(tmp_path, **options)


def test_a_corrected_call_goes_on_in_the_same_folder(tmp_path):
    with pytest.raises(CannotRun):
        run(tmp_path, margin=9)
    assert run(tmp_path, num_seeds=1, methods="random").networks


# --- the digits -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_the_digits_maps_find_the_patch_as_in_a_first_try(tmp_path):
    """A patch of 3 pixels: the network falls by a third; FullGrad's maximum lies there for more than half of the images."""
    from fg_lightning.demo import DigitClassifier, DigitsDataModule

    def model():
        return DigitClassifier(width=8)

    experiment = PlantedExperiment(tmp_path, DigitsDataModule, model, methods="random,gradient,fullgrad", num_seeds=1)
    results = experiment.run()
    assert results.networks[0].accuracies["label"] > 0.95
    assert results.seeds == [0]
    scores = {score.method: score for score in results.scores()}
    assert results.area == 0.0625
    assert scores["fullgrad"].planted > 0.4
    assert scores["fullgrad"].control < 0.1
    assert scores["gradient"].planted > 0.3
    assert scores["random"].planted == pytest.approx(0.0625, abs=0.05)
