"""What holds for all methods, and how one is found by its name."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Callable
from inspect import signature
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fg_lightning.attribution import CONTROLS, METHODS, find_method, method, method_from
from tests import ROOT
from tests.helpers.attribution_cases import FAST, NETS, TARGETS, assert_close, maps_of, net


@pytest.mark.parametrize("net_name", NETS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:guided_backprop found no ReLU")
def test_maps_are_planes_of_at_least_zero_that_do_not_depend_on_the_batch(name: str, net_name: str) -> None:
    model, x = net(net_name)
    together = maps_of(name, model, x, TARGETS)
    assert together.shape == (3, 1, *x.shape[2:])
    assert together.min() >= 0
    assert not together.requires_grad
    alone = torch.cat([maps_of(name, model, image, target) for image, target in zip(x.split(1), TARGETS, strict=True)])
    assert_close(together, alone)


def test_a_method_of_one_image_input_refuses_several() -> None:
    model, x = net()
    with pytest.raises(TypeError, match="one image input, not 2; FullGrad"):
        METHODS["gradient"](model).attribute((x, x), 1)


class Conditioned(nn.Module):
    """Its second argument scales the images, its third has a row for each of them."""

    def __init__(self, model: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.scale = scale

    def forward(self, x: Tensor, scale: float | None = None, shift: Tensor | None = None) -> Tensor:
        x = x.mul_(self.scale if scale is None else scale)
        return self.model(x if shift is None else x + shift.mul_(2))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_additional_forward_arguments(name: str) -> None:
    plain, x = net()
    method = METHODS[name](Conditioned(plain), **FAST.get(name, {}))
    assert list(signature(method.attribute).parameters)[:3] == ["inputs", "target", "additional_forward_args"]
    expected = maps_of(name, Conditioned(plain, 2.0), x, 1)
    assert torch.equal(method.attribute(x, 1, (2.0,)), expected)
    assert torch.equal(method.attribute(x, 1, additional_forward_args=2.0), expected)
    assert torch.equal(method.attribute(x, 1), expected) is (name in CONTROLS)

    shift = torch.randn_like(x)
    given = shift.clone()
    together = method.attribute(x, TARGETS, (2.0, shift))
    assert torch.equal(shift, given)
    rows = zip(x.split(1), TARGETS, shift.split(1), strict=True)
    assert_close(together, torch.cat([method.attribute(image, target, (2.0, own)) for image, target, own in rows]))
    assert torch.equal(together, method.attribute(x, TARGETS, 2.0)) is (name in CONTROLS)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_behind(name: str) -> None:
    model, x = net()
    model.train()
    model[1].eval()
    nn.functional.cross_entropy(model(x), torch.tensor(TARGETS)).backward()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    flags = [module.training for module in model.modules()]
    given, random_state = x.clone(), torch.get_rng_state()

    def check() -> None:
        assert torch.equal(torch.get_rng_state(), random_state)
        assert [module.training for module in model.modules()] == flags
        assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), gradients, strict=True))
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
        assert torch.equal(x, given)
        assert not x.requires_grad
        assert x.grad is None

    with torch.no_grad():
        maps = maps_of(name, model, x)
    check()
    assert torch.equal(maps, maps_of(name, model.eval(), x))  # dropout was off, statistics were the running ones
    flags = [False] * len(flags)
    if name not in ("random", "edges", "blurred_random"):
        with pytest.raises(ValueError, match="target"):
            maps_of(name, model, x, target=5)
        check()


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "gradcam", "guided_backprop", "gradient"])
def test_no_target_is_the_class_predicted_from_the_image_itself(name: str) -> None:
    # the second class is predicted for what is dark, such as most of the way that integrated gradients go
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.rand(3, 2, 10, 8)
    with torch.no_grad():
        model[3].weight[0].fill_(1.0)
        model[3].bias.zero_()
        scores = model(x)
        model[3].bias[1] = 0.9 * (scores[:, 0] - scores[:, 1]).min()
    assert model(x).argmax(1).tolist() == [0, 0, 0]
    assert model(x / 2).argmax(1).tolist() == [1, 1, 1]
    assert torch.equal(maps_of(name, model, x), maps_of(name, model, x, target=0))
    assert not torch.equal(maps_of(name, model, x), maps_of(name, model, x, target=1))


class Checkpointed(nn.Module):
    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.backbone, self.head = model[:-1], model[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.backbone, x, use_reentrant=True))


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "smoothgrad", "guided_backprop", "gradcam", "fullgrad"])
def test_a_reentrant_checkpoint_is_run_as_if_it_were_none(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.rand(3, 2, 10, 8)
    assert torch.equal(maps_of(name, Checkpointed(model), x, target=1), maps_of(name, model, x, target=1))


@pytest.mark.parametrize("shape", [(), (2, 1, 1), (1, 2, 10, 8), (3, 2, 10, 8)])
def test_a_baseline_broadcasts_to_the_images(shape: tuple[int, ...]) -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(160, 2)), torch.rand(3, 2, 10, 8)
    given = METHODS["integrated_gradients"](model, baseline=torch.full(shape, 0.5)).attribute(x, 1)
    assert_close(given, METHODS["integrated_gradients"](model, baseline=0.5).attribute(x, 1))


class Frozen(nn.Module):
    """A head on a backbone that is run under no_grad, as a frozen feature extractor is."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.backbone, self.head = model[:-1], model[-1]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


@pytest.mark.parametrize(
    "name", ["gradient", "input_x_gradient", "integrated_gradients", "smoothgrad", "guided_backprop", "gradcam", "fullgrad"]
)
def test_a_backbone_under_no_grad_counts_like_any_other(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.rand(3, 2, 10, 8)
    assert torch.equal(maps_of(name, Frozen(model), x, target=1), maps_of(name, model, x, target=1))
    assert torch.equal(maps_of(name, Frozen(model), x), maps_of(name, model, x))


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "smoothgrad", "gradcam"])
@pytest.mark.parametrize("kind", ["list", "tensor", "function"])
def test_targets_come_in_every_kind(name: str, kind: str) -> None:
    model, x = net()
    target = {
        "list": TARGETS,
        "tensor": torch.tensor(TARGETS),
        "function": lambda output: output[range(len(output)), TARGETS * (len(output) // 3)],
    }[kind]
    alone = torch.cat([maps_of(name, model, image, own) for image, own in zip(x.split(1), TARGETS, strict=True)])
    assert_close(maps_of(name, model, x, target), alone)


def test_an_array_of_targets_is_not_refused() -> None:
    model, x = net()
    assert torch.equal(maps_of("vargrad", model, x, np.array(TARGETS)), maps_of("vargrad", model, x, TARGETS))


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "vargrad", "guided_backprop"])
def test_a_dense_output_takes_a_tuple(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
    _, x = net()
    maps = maps_of(name, model, x, (1, 2, 3))
    assert maps.shape == (3, 1, 10, 8)
    seen = torch.zeros(10, 8, dtype=torch.bool)
    seen[2:7, 3:8] = True  # what two 3 x 3 convolutions see from (2, 3)
    assert (maps[..., ~seen] == 0).all()
    assert (maps[..., seen] > 0).any()


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "smoothgrad_squared", "vargrad"])
def test_memory_is_bounded_and_does_not_show(name: str) -> None:
    model, x = net()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    bounded = maps_of(name, model, x, TARGETS, internal_batch_size=7)
    assert max(sizes) == 6  # whole copies of a batch of three
    assert maps_of(name, model, x, TARGETS, internal_batch_size=1).shape == bounded.shape  # the batch itself is the least
    assert_close(bounded, maps_of(name, model, x, TARGETS, internal_batch_size=100))


def test_vargrad_of_a_linear_model_vanishes() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(160, 5)), net()[1]
    assert (
        maps_of("vargrad", model, x, 1).max() < 1e-12
    )  # squares of float32 rounding; E[g^2] - E[g]^2 would give 1e-8 or less than 0
    assert_close(maps_of("smoothgrad", model, x, 1), maps_of("gradient", model, x, 1))


def test_noise_is_told_by_the_seed_alone() -> None:
    model, x = net()
    first = maps_of("smoothgrad", model, x, 1, seed=4)
    torch.manual_seed(99)
    assert torch.equal(first, maps_of("smoothgrad", model, x, 1, seed=4))
    assert not torch.allclose(first, maps_of("smoothgrad", model, x, 1, seed=5))


@pytest.mark.parametrize(
    ("setting", "message"), [({"num_samples": 0}, "num_samples must be at least 1"), ({"noise": -1.0}, "noise must")]
)
def test_noise_that_makes_no_sense_is_refused(setting: dict[str, Any], message: str) -> None:
    model, x = net()
    with pytest.raises(ValueError, match=message):
        maps_of("vargrad", model, x, **setting)


@pytest.mark.parametrize("name", METHODS)
def test_maps_are_the_same_under_autocast_and_inference_mode(name: str) -> None:
    model, x = net()
    expected = maps_of(name, model, x, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(maps_of(name, model, x, TARGETS), expected)
    with torch.inference_mode():
        assert torch.equal(maps_of(name, model, x.clone(), TARGETS), expected)


def test_a_model_in_half_precision_has_a_float32_map() -> None:
    model, x = net()
    assert maps_of("gradient", model.half(), x.half(), 1).dtype is torch.float32


def test_a_forward_that_overwrites_its_input_is_explained() -> None:
    class Shifting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(1.0).flatten(1).square()

    x = torch.rand(2, 1, 2, 2)
    assert torch.allclose(maps_of("gradient", Shifting(), x, 0)[:, 0, 0, 0], 2 * (x - 1).abs()[:, 0, 0, 0])


@pytest.mark.parametrize("name", ["gradient", "smoothgrad", "integrated_gradients"])
def test_an_output_that_does_not_depend_on_the_images_is_named(name: str) -> None:
    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)

    with pytest.raises(ValueError, match="does not depend on the images"):
        maps_of(name, Deaf(), torch.rand(2, 1, 2, 2))


def test_works_in_captums_sensitivity() -> None:
    model, x = net()
    sensitivity = sensitivity_max(METHODS["gradient"](model).attribute, x, n_perturb_samples=2, target=torch.tensor(TARGETS))
    assert sensitivity.shape == (3,)
    assert sensitivity.isfinite().all()


def test_the_methods_of_the_comparison_are_there() -> None:
    assert set(METHODS) >= set(
        "random edges gradient input_x_gradient integrated_gradients smoothgrad smoothgrad_squared vargrad guided_backprop gradcam "
        "fullgrad simple_fullgrad smooth_fullgrad blurred_random blurred_fullgrad".split()
    )


def test_a_method_is_found_by_its_name_or_is_one() -> None:
    assert find_method("gradient") is METHODS["gradient"]
    assert find_method(captum.attr.Saliency) is captum.attr.Saliency
    with pytest.raises(ValueError, match=r"one of random, edges, gradient, .*, not 'grad_cam'"):
        find_method("grad_cam")


def test_an_own_method_is_entered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net()

    def constant(scores: Callable[[Tensor], Tensor], images: Tensor, *, height: float = 1.0) -> Tensor:
        return torch.full_like(images[:, :1], height)

    monkeypatch.setitem(METHODS, "mine", method_from(constant))
    assert maps_of("mine", model, x, height=2.0).unique().tolist() == [2.0]
    with pytest.raises(TypeError, match="constant has no setting heigth; it takes height"):
        METHODS["mine"](model, heigth=2.0)
    with pytest.raises(TypeError, match="gradient has no setting num_steps; it takes none"):
        METHODS["gradient"](model, num_steps=2)


def test_the_manual_has_all_methods_with_their_settings() -> None:
    text = (ROOT / "docs/reference/methods.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\|", text, re.MULTILINE)
    assert {name for name, _ in rows} == set(METHODS)
    model, x = net()
    for name, settings in rows:
        arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in ast.parse(f"f({settings})").body[0].value.keywords}
        maps = [METHODS[name](model, **given).attribute(x, 1) for given in ({}, arguments)]
        assert torch.equal(*maps)
        with pytest.raises(TypeError) as refused:
            METHODS[name](model, none_such=1)
        for known in re.findall(r"it takes (.*)", str(refused.value)):
            assert [setting for setting in arguments if setting != "sigma"] == ([] if known == "none" else known.split(", "))


@pytest.mark.ill_typed
def test_a_model_or_images_of_another_kind_are_refused() -> None:
    model, x = net()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not function"):
        METHODS["gradient"](lambda x: x)
    with pytest.raises(TypeError, match="images must be floating-point"):
        maps_of("gradient", model, x.byte())
    with pytest.raises(ValueError, match="needs a batch dimension"):
        maps_of("gradient", model, x[0, 0])


def test_the_example_runs() -> None:
    try:
        results = doctest.testmod(method)
        assert results.attempted
        assert not results.failed
    finally:
        METHODS.pop("brightness", None)
