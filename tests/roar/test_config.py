"""The settings of an experiment: checked before anything is done, the same in Python and on the command line."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from fg_lightning.attribution import METHODS
from fg_lightning.cli.main import main
from fg_lightning.roar import ROARConfig, ROARExperiment
from fg_lightning.roar.cell_training import check_trainer_options
from fg_lightning.roar.cells import CellResult, read_result, write_result
from tests.helpers.tiny_squares import Data, Net


@pytest.mark.parametrize(("name", "why"), [("all", "no method may be called 'all'"), ("a/b", "not 'a/b'"), ("..", "not '..'")])
def test_names_that_no_file_or_row_can_have(tmp_path, name, why):
    with pytest.raises(ValueError, match=why):
        ROARExperiment(tmp_path, Data, Net, methods={name: METHODS["edges"]})


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        (
            {"fills": "meen"},
            ValueError,
            "^fill must be one of black, image_mean, noisy_linear, dataset_mean, .*, not 'meen'",
        ),
        ({"fills": float("nan")}, ValueError, "^fill must be a finite number"),
        (
            {"target": "foo"},
            ValueError,
            "target must be one of predicted, label, random, or the number of a class, from 0; not 'foo'",
        ),
        ({"fills": "black,meen"}, ValueError, "^fill must be one of black, .*, not 'meen'"),
        ({"fills": []}, ValueError, "fills must have at least one"),
        ({"fills": "black,black"}, ValueError, "fills must differ, but black is given more than once"),
        ({"fills": [lambda i, m: i, lambda i, m: i]}, ValueError, "function is given more than once; give functions names"),
        ({"fills": [124, 116, 104]}, ValueError, r"could be 3 fills, or one .*: write \[\[124, 116, 104\]\] for one, \[\[124\], "),
        ({"fills": {"a/b": 0.0}}, ValueError, "a fill's name must consist of .* not 'a/b'"),
        ({"fills": {"masks": 0.0}}, ValueError, "be neither masks nor intact"),
        ({"fills": object()}, TypeError, "^fill must be one of"),
        ({"target": -1}, ValueError, "the number of a class, from 0; not -1"),
        ({"target": True}, ValueError, "target must be one of"),
        ({"controls": "no"}, TypeError, "controls must be True or False, not 'no'"),
        ({"num_networks": 0}, ValueError, "num_networks must be at least 1"),
        ({"num_networks": 1001}, ValueError, "num_networks must be at most 1000"),
        ({"num_networks": 3, "checkpoint": ["a", "b"]}, ValueError, "num_networks is 3, but the checkpoints are 2"),
        ({"num_networks": 3, "checkpoint": "a"}, ValueError, "num_networks is 3, but the checkpoints are 1"),
        ({"engine": "ray"}, TypeError, "engine must be .*RayEngine"),
        ({"num_seeds": 0}, ValueError, "num_seeds must be at least 1"),
        ({"num_seeds": 1.5}, TypeError, "num_seeds must be an integer, not 1.5"),
        ({"max_epochs": 0}, ValueError, "max_epochs must be at least 1"),
        ({"fractions": [1.5]}, ValueError, "must lie between 0 and 1"),
        ({"fractions": [float("nan")]}, ValueError, "must lie between 0 and 1"),
        ({"fractions": []}, ValueError, "must contain one between 0 and 1"),
        ({"fractions": [0, 1]}, ValueError, "must contain one between 0 and 1"),
        ({"fractions": [0.3, 0.1 + 0.2]}, ValueError, "0.3 is given more than once"),
        ({"methods": []}, ValueError, "at least one name"),
        ({"methods": ["edges", "edges"]}, ValueError, "edges is given more than once"),
        ({"methods": ["none_such"]}, ValueError, "method must be one of"),
        ({"methods": {"a" * 151: METHODS["edges"]}}, ValueError, "at most 150 bytes"),
        ({"methods": {"ж" * 76: METHODS["edges"]}}, ValueError, "at most 150 bytes"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(tmp_path, given, error, why):
    with pytest.raises(error, match=why):
        ROARExperiment(tmp_path / "out", Data, Net, **given)
    assert not (tmp_path / "out").exists()


def test_the_longest_name_of_a_method_is_one_of_a_file(tmp_path):
    experiment = ROARExperiment(
        tmp_path,
        Data,
        Net,
        methods={"ж" * 75: METHODS["edges"]},
        fractions=[0.123456],
        fills={"ж" * 30: 0.0},
        num_networks=1000,
        num_seeds=1,
        controls=False,
    )
    (tmp_path / "cells").mkdir()
    write_result(tmp_path, CellResult(experiment.cells[-1], accuracy=0.5))
    assert experiment.cells[-1].network == 999
    assert read_result(tmp_path, experiment.cells[-1]).accuracy == 0.5


def test_a_metric_that_falls_as_networks_get_better(tmp_path):
    with pytest.raises(ValueError, match=r"'test/loss' is lower for a better network, .*: log its negative"):
        ROARExperiment(tmp_path, Data, Net, metric="test/loss")


@pytest.mark.parametrize("given", [{"devices": 2}, {"devices": -1}, {"devices": "2"}, {"devices": [0, 1]}, {"num_nodes": 2}])
def test_several_devices_for_one_training(tmp_path, given):
    with pytest.raises(ValueError, match=r"uses one device.*--engine ray --num_gpus 1"):
        ROARExperiment(tmp_path, Data, Net, trainer=given)


def test_an_argument_that_the_trainer_does_not_have():
    with pytest.raises(ValueError, match=r"no argument 'limit_train_batch'; did you mean limit_train_batches\?$"):
        check_trainer_options({"limit_train_batch": 2})


def test_the_number_of_epochs_has_one_place(tmp_path):
    with pytest.raises(ValueError, match="max_epochs is a setting of the experiment"):
        ROARConfig(tmp_path, Data, Net, trainer={"max_epochs": 3})


def test_one_device_whichever_it_is():
    assert check_trainer_options({"devices": "auto", "precision": 16}) == {"precision": 16}  # the experiment's own default is one
    for given in ({}, {"devices": 1}, {"devices": "1"}, {"devices": [3]}):
        assert check_trainer_options(given) == given


def test_methods_are_given_as_text_as_a_list_or_as_factories(tmp_path):
    mine = METHODS["edges"]
    for given, expected in (
        ("edges, gradient", ["random", "edges", "gradient"]),
        (["edges", "random"], ["random", "edges"]),
        ({"mine": mine}, ["random", "mine"]),
        (iter(["edges", "gradient"]), ["random", "edges", "gradient"]),
        ("all", [*METHODS]),
        (["all"], [*METHODS]),
    ):
        factories = ROARConfig(tmp_path, Data, Net, methods=given).factories
        assert list(factories) == expected
        assert all(factories[name] is METHODS.get(name, mine) for name in expected)


@pytest.mark.parametrize(("mode", "fill"), [("roar", "dataset_mean"), ("kar", "dataset_mean"), ("road", "noisy_linear")])
def test_the_fill_depends_on_the_mode(tmp_path, mode, fill):
    assert ROARConfig(tmp_path, Data, Net, mode=mode).fills == {fill: fill}
    assert ROARConfig(tmp_path, Data, Net, mode=mode, fills=0.0).fills == {"0": 0}


def grey(images, mask):
    return images


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("black", {"black": "black"}),
        ("black, dataset_mean,-0.5", {"black": "black", "dataset_mean": "dataset_mean", "-0.5": -0.5}),
        (-1, {"-1": -1}),
        (["black", 7.0], {"black": "black", "7": 7.0}),
        ([[124, 116, 104], "black"], {"124_116_104": [124, 116, 104], "black": "black"}),
        ([[0.5], [0.25]], {"0.5": [0.5], "0.25": [0.25]}),
        (grey, {"grey": grey}),
        ([grey, "black"], {"grey": grey, "black": "black"}),
        ({"mine": grey, "dark": 0.0}, {"mine": grey, "dark": 0.0}),
    ],
)
def test_fills_are_one_or_several(tmp_path, given, expected):
    assert ROARConfig(tmp_path, Data, Net, fills=given).fills == expected


def test_a_fill_is_a_number_for_each_channel_as_a_tensor(tmp_path):
    (name,) = ROARConfig(tmp_path, Data, Net, fills=[torch.tensor([0.5, 0.25])]).fills
    assert name == "0.5_0.25"


def test_checkpoints_are_one_for_each_network(tmp_path):
    assert ROARConfig(tmp_path, Data, Net, checkpoint="a.ckpt").num_networks == 1
    assert ROARConfig(tmp_path, Data, Net, checkpoint=["a.ckpt", "b.ckpt"]).num_networks == 2


def test_no_arguments_of_the_trainer(tmp_path):
    assert ROARConfig(tmp_path, Data, Net, trainer=None).trainer == {}


def test_an_experiment_takes_the_settings_of_a_configuration(tmp_path):
    config = ROARConfig(tmp_path, Data, Net, methods="edges", fractions=[0.25], mode="kar", num_seeds=2)
    experiment = ROARExperiment(**vars(config))
    assert vars(experiment.config) == vars(config)
    assert len(experiment.cells) == 2 * (2 + 2) + 2


def test_a_configuration_is_frozen_and_compared_by_identity(tmp_path):
    config = ROARConfig(tmp_path, Data, Net, methods="edges", fractions=[0.25])
    with pytest.raises(FrozenInstanceError):
        config.mode = "kar"
    assert len({config, ROARConfig(tmp_path, Data, Net)}) == 2


def test_every_setting_is_an_option_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["roar", "--help"])
    printed = capsys.readouterr().out
    for field in fields(ROARConfig):
        assert f"--{field.name} " in printed
    assert "Number of trainings for each method, fraction, fill and network" in " ".join(printed.split())
