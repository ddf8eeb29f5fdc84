"""The methods that get compared: against Captum's own results, plain loops, and SciPy's filters."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel
from captum.metrics import sensitivity_max
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from fg_lightning.attribution import METHODS, find_method, method, method_from
from fg_lightning.attribution.controls import blur
from fg_lightning.removal.seeds import seeds_of

FAST: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 5},
    **{name: {"n_samples": 5} for name in ("smoothgrad", "smoothgrad_squared", "vargrad", "smooth_fullgrad")},
}
"""Settings under which a method is quick."""

TARGETS = [0, 3, 1]

pytestmark = pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks:UserWarning")  # Captum's own, called directly


class Residual(nn.Module):
    """A ReLU module that works in place and is used twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.conv(self.relu(self.norm(x))))


def planar() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Residual(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


def signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 5)
    )


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(3, 3, 2), nn.Flatten(), nn.Linear(3, 5))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "planar": (planar, (2, 10, 8)),
    "signal": (signal, (2, 12)),
    "volume": (volume, (1, 6, 5, 5)),
}


def net(name: str = "planar") -> tuple[nn.Module, Tensor]:
    build, shape = NETS[name]
    torch.manual_seed(0)
    return build().eval(), torch.randn(3, *shape)


def maps_of(name: str, model: nn.Module, images: Tensor, target: Any = None, **settings: Any) -> Tensor:
    return METHODS[name](model, **FAST.get(name, {}) | settings).attribute(images, target=target)


def assert_close(drawn: Tensor, expected: Tensor) -> None:
    # float32: the same sums in batches of another size
    assert drawn.shape == expected.shape
    assert (drawn - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- what Captum has, as Captum gives it -----------------------------------------------------------------------------------------

CAPTUMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "gradient": lambda model, x: captum.attr.Saliency(model).attribute(x, target=TARGETS),
    "input_x_gradient": lambda model, x: captum.attr.InputXGradient(model).attribute(x, target=TARGETS),
    "integrated_gradients": lambda model, x: captum.attr.IntegratedGradients(model).attribute(x, target=TARGETS, n_steps=5),
    "guided_backprop": lambda model, x: captum.attr.GuidedBackprop(model).attribute(x, target=TARGETS),
}


@pytest.mark.parametrize("net_name", NETS)
@pytest.mark.parametrize("name", CAPTUMS)
def test_a_wrapped_method_is_captums_result_summed_over_channels(name: str, net_name: str) -> None:
    model, x = net(net_name)
    expected = CAPTUMS[name](model, x.clone().requires_grad_()).abs().sum(1, keepdim=True)
    assert_close(maps_of(name, model, x, TARGETS), expected)


@pytest.mark.parametrize(("net_name", "layer"), [("planar", "4"), ("signal", "4"), ("volume", "2")])
def test_gradcam_is_captums_at_a_layer_that_is_named(net_name: str, layer: str) -> None:
    model, x = net(net_name)
    planes = LayerGradCam(model, model[int(layer)]).attribute(x, target=TARGETS, relu_attributions=True)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    expected = LayerAttribution.interpolate(planes, x.shape[2:], mode)
    assert expected.max() > 0
    assert_close(maps_of("gradcam", model, x, TARGETS, layer=layer), expected)


@pytest.mark.parametrize(
    ("name", "nt_type"), [("smoothgrad", "smoothgrad"), ("smoothgrad_squared", "smoothgrad_sq"), ("vargrad", "vargrad")]
)
def test_noisy_methods_are_captums_noise_tunnel_under_the_same_noise(
    name: str, nt_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = net()

    def noisy(image: Tensor, stdev: float, n_samples: int) -> Tensor:
        generator = torch.Generator().manual_seed(seeds_of(image, 7)[0])
        copies = [image + stdev * torch.randn(image.shape[1:], generator=generator) for _ in range(n_samples)]
        return torch.cat(copies)

    monkeypatch.setattr(NoiseTunnel, "_add_noise_to_input", staticmethod(noisy))
    expected = []
    for image, target in zip(x.split(1), TARGETS, strict=True):
        tunnel = NoiseTunnel(captum.attr.Saliency(model))
        stdev = 0.2 * float(image.max() - image.min())
        expected.append(tunnel.attribute(image, nt_type=nt_type, nt_samples=6, stdevs=stdev, target=target, abs=False))
    drawn = maps_of(name, model, x, TARGETS, n_samples=6, noise=0.2, seed=7)
    assert_close(drawn, torch.cat(expected).abs().sum(1, keepdim=True))


# --- guided backpropagation, where Captum alone is wrong -------------------------------------------------------------------------


class Functional(nn.Module):
    """Convolutions with a ReLU between them, however it is called."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(96, 5)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        return self.head(self.relu(self.second(x)).flatten(1))


def overwritten(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


@pytest.mark.parametrize("relu", [F.relu, torch.relu, Tensor.relu, Tensor.relu_, overwritten])
def test_guided_backprop_guides_functional_relus_like_modules(relu: Callable[[Tensor], Tensor]) -> None:
    _, x = net()
    model = Functional(nn.ReLU()).eval()
    expected = captum.attr.GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=TARGETS).abs().sum(1, keepdim=True)
    assert_close(maps_of("guided_backprop", Functional(relu), x, TARGETS), expected)


class GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient.clamp_min(0) * (x > 0)


def test_guided_backprop_leaves_the_gradient_of_a_skip_connection_alone() -> None:
    _, x = net()
    model, guided = Functional(lambda x: x + F.relu(x)), Functional(lambda x: x + GuidedReLU.apply(x))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(guided(leaf)[range(3), TARGETS].sum(), leaf)
    assert_close(maps_of("guided_backprop", model, x, TARGETS), gradient.abs().sum(1, keepdim=True))


def test_guided_backprop_warns_where_there_is_nothing_to_guide() -> None:
    _, x = net()
    with pytest.warns(UserWarning, match="met no ReLU"):
        drawn = maps_of("guided_backprop", Functional(F.silu), x, TARGETS)
    assert_close(drawn, maps_of("gradient", Functional(F.silu), x, TARGETS))


# --- Grad-CAM's layer ------------------------------------------------------------------------------------------------------------


def test_gradcam_finds_the_last_plane() -> None:
    model, x = net()  # the dropout behind the residual block ends last
    assert torch.equal(maps_of("gradcam", model, x, 2), maps_of("gradcam", model, x, 2, layer="5"))
    pooled = nn.Sequential(nn.Conv2d(2, 5, 3), nn.AvgPool2d((8, 6)), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, 5))
    assert torch.equal(maps_of("gradcam", pooled, x, 2), maps_of("gradcam", pooled, x, 2, layer="0"))


class Tokens(nn.Module):
    """Patches, and a linear layer on what became of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(2, 4, 2, stride=2), nn.Linear(4, 4), nn.Linear(4, 5)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x)
        self.unused(patches)
        return self.head(self.mix(patches.flatten(2).mT).mean(1))


def test_gradcam_says_which_argument_to_give() -> None:
    model, x = net()
    with pytest.raises(ValueError, match=r"no layer 'layer5'; layers that fit are 1, 2, 3, 4\.norm, 4\.conv, 4\.relu, 4, 5"):
        maps_of("gradcam", model, x, layer="layer5")
    with pytest.raises(ValueError, match=r"layer '7' must be \[N, C, \*S\] with N = 3, but is \[3, 5\]"):
        maps_of("gradcam", model, x, layer="7")
    with pytest.raises(ValueError, match=r"found no layer whose output is a plane .* layer=\.\.\., or leave gradcam out"):
        maps_of("gradcam", nn.Sequential(nn.Flatten(), nn.Linear(160, 5)), x)
    with pytest.raises(ValueError, match=r"last planes .* 'unused', but what follows works on \[3, 20, 4\] \(in 'mix'\)"):
        maps_of("gradcam", Tokens(), x)
    assert maps_of("gradcam", Tokens(), x, layer="patches").shape == (3, 1, 10, 8)
    with pytest.raises(ValueError, match="does not depend on layer 'unused'"):
        maps_of("gradcam", Tokens(), x, layer="unused")


# --- the controls ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net_name", NETS)
def test_edges_are_scipys_sobel(net_name: str) -> None:
    model, x = net(net_name)

    def magnitude(plane: np.ndarray) -> np.ndarray:
        return np.sqrt(sum(scipy.ndimage.sobel(plane, axis, mode="nearest") ** 2 for axis in range(plane.ndim)))

    expected = [[sum(magnitude(channel) for channel in image)] for image in x.numpy()]
    assert_close(maps_of("edges", model, x), torch.from_numpy(np.array(expected)))


def test_blurred_maps_are_torchvisions_gaussian_blur() -> None:
    model, x = net()
    plain = maps_of("fullgrad", model, x, TARGETS)
    assert_close(maps_of("blurred_fullgrad", model, x, TARGETS, sigma=1.2), gaussian_blur(plain, [9, 9], [1.2, 1.2]))
    assert_close(maps_of("blurred_random", model, x, seed=3), blur(maps_of("random", model, x, seed=3), 10 / 28))


@pytest.mark.parametrize("size", [(30,), (12, 11, 13)])
def test_a_blur_along_every_axis_is_scipys(size: tuple[int, ...]) -> None:
    x = torch.rand(1, 1, *size)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 1.5, mode="mirror", radius=5)
    assert_close(blur(x, 1.5)[0, 0], torch.from_numpy(expected))


def test_a_blur_wider_than_the_image_still_has_its_size() -> None:
    x = torch.rand(2, 1, 1, 4)
    assert blur(x, 50.0).shape == x.shape


def test_a_blur_of_no_width_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma must be more than 0 pixels, not 0"):
        METHODS["blurred_random"](net()[0], sigma=0)


def test_random_maps_are_uniform_and_differ_between_images_and_seeds() -> None:
    model, _ = net()
    maps = maps_of("random", model, torch.rand(2, 2, 100, 100))
    # 10,000 uniform numbers: their mean has a standard deviation of 0.003
    assert (maps.mean((1, 2, 3)) - 0.5).abs().max() < 0.015
    assert 0 <= maps.min() < 0.01
    assert 0.99 < maps.max() < 1
    assert not torch.equal(maps[0], maps[1])
    x = torch.rand(1, 2, 10, 8)
    assert not torch.equal(maps_of("random", model, x), maps_of("random", model, x, seed=1))


# --- what holds for all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net_name", NETS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:guided_backprop met no ReLU")
def test_maps_are_planes_of_at_least_zero_that_do_not_depend_on_the_batch(name: str, net_name: str) -> None:
    model, x = net(net_name)
    together = maps_of(name, model, x, TARGETS)
    assert together.shape == (3, 1, *x.shape[2:])
    assert together.min() >= 0
    assert not together.requires_grad
    alone = torch.cat([maps_of(name, model, image, target) for image, target in zip(x.split(1), TARGETS, strict=True)])
    assert_close(together, alone)


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
    ("setting", "message"), [({"n_samples": 0}, "n_samples must be at least 1"), ({"noise": -1.0}, "noise must")]
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


# --- by name ---------------------------------------------------------------------------------------------------------------------


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
    with pytest.raises(TypeError, match="gradient has no setting n_steps; it takes none"):
        METHODS["gradient"](model, n_steps=2)


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
