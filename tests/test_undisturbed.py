"""Every public function that runs a model leaves it as it was, object by object, however it holds its tensors."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fg_lightning import FullGrad, SimpleFullGrad, SmoothFullGrad, full_gradients
from fg_lightning.attribution import METHODS
from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import Network, predict
from fg_lightning.metrics import CompletenessError, PixelPerturbation, completeness_error, pixel_perturbation
from tests.helpers.attribution_cases import FAST
from tests.helpers.holding_networks import Middle
from tests.helpers.model_state import assert_unchanged, state_of
from tests.helpers.undisturbed_networks import NETWORKS

pytestmark = [
    pytest.mark.filterwarnings("ignore:guided_backprop found no ReLU"),
    pytest.mark.filterwarnings("ignore:FullGrad"),  # what is not drawn, or not complete, is not the point here
]

FRACTIONS = [0.2, 0.5]


def perturbed(model: nn.Module, x: Tensor) -> Any:
    return pixel_perturbation(model, x, x.mean(1, keepdim=True), 1, fractions=FRACTIONS, change="drop")


FUNCTIONS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "full_gradients": lambda model, x: full_gradients(model, x, 1),
    "FullGrad with terms": lambda model, x: FullGrad(model).attribute_with_terms(x, 1),
    "FullGrad, locally affine": lambda model, x: FullGrad(model, reading="locally_affine").attribute(x, 1),
    "SimpleFullGrad": lambda model, x: SimpleFullGrad(model).attribute(x, 1),
    "SmoothFullGrad": lambda model, x: SmoothFullGrad(model, num_samples=2).attribute(x, 1),
    "one image": lambda model, x: FullGrad(model).attribute(x[:1], 1),
    "no target": lambda model, x: full_gradients(model, x),
    "completeness_error": lambda model, x: completeness_error(model, x, 1),
    "CompletenessError": lambda model, x: CompletenessError().update(model, x, 1),
    "pixel_perturbation": perturbed,
    "PixelPerturbation": lambda model, x: PixelPerturbation(FRACTIONS, "morf").update(model, x, x.mean(1, keepdim=True), 1),
    "explain": lambda model, x: predict(Network(model, torch.as_tensor), x, None),
    **{name: lambda model, x, name=name: METHODS[name](model, **FAST.get(name, {})).attribute(x, target=1) for name in METHODS},
}

TYPICAL = ("full_gradients", "FullGrad with terms", "integrated_gradients", "gradcam", "pixel_perturbation")

BLIND = {"random", "edges", "blurred_random"}
"""Methods that do not run the model."""


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model, x = NETWORKS[name](), torch.randn(2, 3, 6, 6)
    model.train()
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    x.requires_grad_()
    x.grad = torch.ones_like(x)
    return model, x


def check(function: str, name: str, fail: bool) -> None:
    model, x = built(name)
    for module in model.modules():
        if isinstance(module, Middle):
            module.fail = fail
    before = state_of(model, x)
    for _ in range(2):
        with pytest.raises((KeyError, CannotRun), match="halfway") if fail and function not in BLIND else nullcontext():
            FUNCTIONS[function](model, x)
    assert_unchanged(before, state_of(model, x))


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("function", TYPICAL)
def test_a_model_is_left_as_it_was(function: str, name: str, fail: bool) -> None:
    check(function, name, fail)


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", ["modules under two names", "buffers of all kinds"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_leaves_a_model_as_it_was(function: str, name: str, fail: bool) -> None:
    check(function, name, fail)


@pytest.mark.slow
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name not in TYPICAL])
def test_every_function_leaves_every_model_as_it_was(function: str, name: str, fail: bool) -> None:
    check(function, name, fail)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("inference tensors", "half precision")])
def test_an_optimizer_made_before_trains_the_same_afterwards(name: str) -> None:
    """Bit for bit what it would have trained, and no parameter that it would not have."""

    def trained(look: bool) -> dict[str, Tensor | None]:
        model, x = built(name)
        if name == "compiled":
            model = model._orig_mod  # compiling takes a minute; it is the same module
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            if look:
                full_gradients(model, x, 1)
                METHODS["gradcam"](model).attribute(x, target=1)
                METHODS["smoothgrad"](model, num_samples=2).attribute(x, target=1)
                perturbed(model, x)
            optimizer.zero_grad()
            model(x.detach().clone()).square().sum().backward(retain_graph=True)
            optimizer.step()
        gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters(remove_duplicate=False)}
        return gradients | dict(model.state_dict())

    alone, watched = trained(False), trained(True)
    assert alone.keys() == watched.keys()
    for key, expected in alone.items():
        assert (expected is None) == (watched[key] is None), key
        assert expected is None or torch.equal(expected, watched[key]), key


def test_weights_that_are_cached_are_computed_again() -> None:
    model, x = built("parametrisations")
    with parametrize.cached():
        full_gradients(model, x, 1)
        model(x).sum().backward()
    assert model.head.parametrizations.weight.original.grad is not None
    with parametrize.cached():
        expected = model.eval()(x)
        assert full_gradients(model, x, 1).output.sub(expected[:, 1]).abs().max() < 1e-5  # float32


def test_what_a_forward_is_given_is_its_own_to_overwrite() -> None:
    class Overwrites(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            x.sub_(1)
            return (x * scale.mul_(2)).flatten(1)

    x, scale = torch.rand(2, 1, 2, 2), torch.rand(2, 1, 2, 2)
    given, scale_given = x.clone(), scale.clone()
    for function in (full_gradients, FullGrad(Overwrites()).attribute):
        owner = (Overwrites(),) if function is full_gradients else ()
        function(*owner, x, 1, additional_forward_args=(scale,))
    options: dict[str, Any] = {"fractions": FRACTIONS, "change": "drop", "additional_forward_args": (scale,)}
    pixel_perturbation(Overwrites(), x, x, 1, **options)
    assert torch.equal(x, given)
    assert torch.equal(scale, scale_given)


def test_lazy_modules_are_refused_before_they_are_run(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    norm = nn.Sequential(nn.LazyBatchNorm2d(affine=False))
    x = torch.rand(2, 1, 2, 2)
    for run in (full_gradients, perturbed, lambda m, x: METHODS["gradient"](m).attribute(x)):
        for lazy in (model, norm):
            with pytest.raises(ValueError, match="lazy modules"):
                run(lazy, x)
    assert isinstance(model[1].weight, nn.UninitializedParameter)
