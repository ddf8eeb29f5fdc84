"""The sanity checks of a run: against random weights and the next class, on a copy."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fg_lightning.fullgrad import FullGrad
from fg_lightning.metrics.drift import rank_correlation
from fg_lightning.metrics.parameter_randomization import randomize_parameters
from fg_lightning.recording.explainer import Explainer
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.sanity_checks import SanityCheck, check_sanity, explain_with


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64, 5))


def images() -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def check(
    model: nn.Module, methods: dict[str, Any] | None = None, task: str = "classes", labels: Tensor | None = None
) -> tuple[dict[str, SanityCheck], Explainer]:
    methods = methods or {}
    probe = Probe.from_user((images(), torch.tensor([0, 3, 1]) if labels is None else labels))
    explainer = Explainer(probe, task=task)
    explanation = explainer.explain(model)
    maps = {"fullgrad": explanation.maps, **{key: explainer.draw_maps(method, model) for key, method in methods.items()}}
    return check_sanity(model, maps, explain_with(explainer, methods), explanation.answers.runner_up), explainer


def test_correlations_are_those_computed_by_hand() -> None:
    model = network()
    labels = torch.tensor([0, 3, 1])
    checks, explainer = check(model)
    maps = FullGrad(model).attribute(images(), labels)
    others = model.eval()(images()).detach()
    others[torch.arange(3), labels] = -torch.inf
    expected = {
        "randomized": FullGrad(randomize_parameters(model)).attribute(images(), labels),
        "runner_up": FullGrad(model).attribute(images(), others.argmax(1)),
    }
    for name, of_other in expected.items():
        value = float(rank_correlation(maps, of_other).mean())
        assert getattr(checks["fullgrad"], name) == pytest.approx(value, abs=1e-6)
    assert explainer.probe.labels is not None
    assert torch.equal(explainer.probe.labels, labels)


def test_a_method_that_knows_no_network_gives_the_same_maps() -> None:
    checks, _ = check(network(), {"edges": "edges", "gradient": "gradient"})
    assert checks["edges"].randomized == pytest.approx(1)
    assert checks["edges"].runner_up == pytest.approx(1)
    assert checks["gradient"].randomized is not None
    assert checks["gradient"].randomized < 0.9


def test_a_method_that_fails_does_not_stop_the_others() -> None:
    calls = list[nn.Module]()

    def gradient_once(model: nn.Module) -> Any:
        calls.append(model)
        if len(calls) > 1:
            raise RuntimeError("once is enough")
        return FullGrad(model)

    checks, _ = check(network(), {"once": gradient_once})
    assert (checks["once"].randomized, checks["once"].runner_up) == (None, None)
    assert checks["fullgrad"].randomized is not None


def test_without_classes_there_is_no_next_class() -> None:
    checks, _ = check(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), task="number", labels=torch.rand(3))
    assert checks["fullgrad"].runner_up is None
    assert checks["fullgrad"].why_not_runner_up == "there is no other class"


class Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def test_a_network_that_cannot_be_copied_says_so() -> None:
    checks, _ = check(Locked())
    assert checks["fullgrad"].randomized is None
    assert "pickle" in checks["fullgrad"].why_not_randomized
    assert checks["fullgrad"].runner_up is not None


def test_the_network_stays_as_it_was() -> None:
    model = network().train()
    model(images()).sum().backward()
    model[0].register_forward_hook(lambda *_: None)
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    values, flags = (
        [copy.deepcopy(tensor.detach()) for tensor in tensors if tensor is not None],
        [m.training for m in model.modules()],
    )
    attributes = [{name: id(value) for name, value in vars(module).items()} for module in model.modules()]
    np.random.seed(1)
    state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    check(model, {"gradcam": "gradcam"})
    after = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    assert all(new is old for new, old in zip(after, tensors, strict=True))
    assert all(torch.equal(new.detach(), value) for new, value in zip(after, values, strict=True) if new is not None)
    assert [m.training for m in model.modules()] == flags
    assert [{name: id(value) for name, value in vars(module).items()} for module in model.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state(legacy=False)["state"]["key"] == state[1]).all()
