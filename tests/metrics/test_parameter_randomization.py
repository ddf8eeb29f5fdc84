"""Maps of a trained network against those of networks with random parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fg_lightning.attribution import METHODS
from fg_lightning.fullgrad import FullGrad
from fg_lightning.metrics import ParameterRandomization, rank_correlation
from fg_lightning.metrics.parameter_randomization import randomize_parameters


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64, 10)).eval()


def images() -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_correlations_are_those_of_networks_randomized_by_hand(mode: Any) -> None:
    model = network()
    metric = ParameterRandomization(model, "fullgrad", mode=mode, seed=5)
    metric.update(images(), 2)
    expected, changed = {}, copy.deepcopy(model)
    whole = FullGrad(model).attribute(images(), 2)
    for number, index in enumerate((6, 3, 1, 0)):
        changed = copy.deepcopy(model) if mode == "independent" else changed
        torch.manual_seed(5 + number)
        changed[index].reset_parameters()
        expected[str(index)] = rank_correlation(whole, FullGrad(changed).attribute(images(), 2)).mean()
    computed = metric.compute()
    assert list(computed) == list(expected)
    torch.testing.assert_close(list(computed.values()), list(expected.values()), rtol=1e-6, atol=1e-6)


def test_a_map_that_knows_nothing_of_the_network_does_not_change() -> None:
    metric = ParameterRandomization(network(), "edges")
    metric.update(images())
    torch.testing.assert_close(list(metric.compute().values()), [torch.ones(())] * 4, rtol=0, atol=1e-6)


def test_the_classes_of_the_trained_network_are_explained() -> None:
    model = network()
    classes = model(images()).argmax(1)
    by_itself, given = ParameterRandomization(model, "gradient"), ParameterRandomization(model, "gradient")
    by_itself.update(images())
    given.update(images(), classes)
    assert by_itself.compute() == given.compute()


def test_network_and_random_state_stay() -> None:
    model, state = network(), torch.get_rng_state()
    torch.manual_seed(3)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    metric = ParameterRandomization(model, METHODS["gradient"])
    metric.update(images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, 65))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_a_layer_that_cannot_be_made_anew_has_its_values_shuffled() -> None:
    model = nn.Sequential(nn.Flatten(), Scale(), nn.Linear(64, 3))
    metric = ParameterRandomization(model, "gradient", mode="independent")
    metric.update(images())
    correlations = metric.compute()
    assert list(correlations) == ["2", "1"]
    assert correlations["1"] < 0.9


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mode": "both"}, "mode must be one of cascading, independent, not 'both'"), ({"method": "fulgrad"}, "fulgrad")],
)
def test_unknown_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParameterRandomization(network(), **settings)


def test_a_network_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to randomize"):
        ParameterRandomization(nn.Flatten())


def test_a_random_copy_is_that_at_the_end_of_the_cascade() -> None:
    model, state = network(), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    changed = randomize_parameters(model, seed=5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    metric = ParameterRandomization(model, "gradient", seed=5)
    metric.update(images(), 2)
    expected = rank_correlation(*(METHODS["gradient"](of).attribute(images(), 2) for of in (model, changed))).mean()
    torch.testing.assert_close(metric.compute()["0"], expected, rtol=1e-6, atol=1e-6)
