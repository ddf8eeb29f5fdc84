"""What an experiment cannot be given is said before anything is done."""

from __future__ import annotations

import pytest
from tiny import Data, Net

from fg_lightning.attribution import METHODS
from fg_lightning.roar import ROARExperiment
from fg_lightning.roar.arguments import on_one_device


@pytest.mark.parametrize(("name", "why"), [("all", "no method may be called 'all'"), ("a/b", "not 'a/b'"), ("..", "not '..'")])
def test_names_that_no_file_or_row_can_have(tmp_path, name, why):
    with pytest.raises(ValueError, match=why):
        ROARExperiment(tmp_path, Data, Net, methods={name: METHODS["edges"]})


def test_a_metric_that_falls_as_networks_get_better(tmp_path):
    with pytest.raises(ValueError, match="'test/loss' is lower: log its negative"):
        ROARExperiment(tmp_path, Data, Net, metric="test/loss")


@pytest.mark.parametrize("given", [{"devices": 2}, {"devices": -1}, {"devices": "2"}, {"devices": [0, 1]}, {"num_nodes": 2}])
def test_several_devices_for_one_training(tmp_path, given):
    with pytest.raises(ValueError, match=r"takes one device.*--engine ray --gpus 1"):
        ROARExperiment(tmp_path, Data, Net, trainer=given)


def test_one_device_whichever_it_is():
    assert on_one_device({"devices": "auto", "precision": 16}) == {"precision": 16}  # the experiment's own default is one
    for given in ({}, {"devices": 1}, {"devices": "1"}, {"devices": [3]}):
        assert on_one_device(given) == given
