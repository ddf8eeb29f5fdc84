"""FullGrad maps, against the paper's formula written out with hooks on modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import NoiseTunnel
from captum.metrics import sensitivity_max
from torch import Tensor, nn

from fg_lightning import FullGrad, SimpleFullGrad, SmoothFullGrad, full_gradients
from tests.helpers.saliency_networks import NETS, LessTheMean, net, randomised

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def psi(term: Tensor, size: tuple[int, ...]) -> Tensor:
    """Rescaled to [0, 1] by sample, every channel upsampled, and summed."""
    magnitude = term.abs().flatten(1)
    low, high = magnitude.min(1, keepdim=True).values, magnitude.max(1, keepdim=True).values
    rescaled = ((magnitude - low) / (high - low + 1e-6)).reshape(term.shape)
    return F.interpolate(rescaled, size, mode=MODES[len(size)], align_corners=True).sum(1, keepdim=True)


def bias_of(module: nn.Module, y: Tensor) -> Tensor | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        bias = module.bias - module.running_mean * module.weight / torch.sqrt(module.running_var + module.eps)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        bias = module.bias
    else:
        return None
    return None if bias is None else bias.detach().reshape(1, -1, *(1,) * (y.ndim - 2)).expand_as(y)


def by_hooks(model: nn.Module, x: Tensor, target: list[int], simple: bool = False) -> Tensor:
    outputs: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        if bias_of(module, y) is None:
            return y
        outputs.append((module, y))
        return y.clone()  # an in-place ReLU would overwrite what was kept

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    x = x.clone().requires_grad_()
    score = model(x)[torch.arange(len(x)), target].sum()
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(score, [x, *(y for _, y in outputs)])
    size = tuple(x.shape[2:])
    drawn = psi(gradients[0] * x.detach(), size)
    for (module, y), gradient in zip(outputs, gradients[1:], strict=True):
        drawn = drawn + psi(gradient if simple else gradient * bias_of(module, y), size)
    return drawn


def assert_same_map(drawn: Tensor, expected: Tensor) -> None:
    # float32: the rescaling divides by ranges, in another order of sums
    assert (drawn - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NETS)
def test_fullgrad_is_the_papers_formula_on_relu_nets(name: str) -> None:
    model, x = net(name)
    drawn = FullGrad(model).attribute(x, target=[0, 3, 1])
    assert drawn.shape == (3, 1, *x.shape[2:])
    assert_same_map(drawn, by_hooks(model, x, [0, 3, 1]))


@pytest.mark.parametrize("name", NETS)
def test_simple_fullgrad_takes_gradients_without_biases(name: str) -> None:
    model, x = net(name)
    assert_same_map(SimpleFullGrad(model).attribute(x, target=[0, 3, 1]), by_hooks(model, x, [0, 3, 1], simple=True))


def smooth_net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.GELU(), nn.Flatten())
    return randomised(nn.Sequential(*model, nn.Linear(64, 5))), torch.randn(3, 2, 8, 8)


METHODS = {
    "FullGrad": FullGrad,
    "SimpleFullGrad": SimpleFullGrad,
    "positive": lambda model: FullGrad(model, psi="positive"),
    "without implicit": lambda model: FullGrad(model, implicit=False),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*NETS, "smooth"])
def test_maps_of_a_batch_are_those_of_its_images_alone_and_at_least_zero(name: str, method: str) -> None:
    model, x = smooth_net() if name == "smooth" else net(name)
    attribution = METHODS[method](model)
    together = attribution.attribute(x, target=2)
    alone = torch.cat([attribution.attribute(x[i : i + 1], target=2) for i in range(len(x))])
    assert_same_map(together, alone)
    assert together.min() >= 0
    assert not together.requires_grad


def test_implicit_terms_are_drawn_unless_left_out() -> None:
    model, x = smooth_net()
    with_implicit, without = (FullGrad(model, implicit=implicit).attribute(x, target=2) for implicit in (True, False))
    # every implicit term adds at least 0, and some of them more than float32 rounding of a map of size ten
    assert (with_implicit - without).min() >= -1e-4
    assert (with_implicit - without).max() > 0.1


def test_implicit_terms_make_no_difference_to_a_relu_net() -> None:
    model, x = net("residual")
    assert torch.equal(FullGrad(model).attribute(x, target=2), FullGrad(model, implicit=False).attribute(x, target=2))


def test_signed_maps_take_both_signs() -> None:
    model, x = net("convolutions")
    drawn = FullGrad(model, psi="signed").attribute(x, target=2)
    assert drawn.min() < 0 < drawn.max()


def test_no_target_is_the_predicted_class() -> None:
    model, x = net("residual")
    assert torch.equal(FullGrad(model).attribute(x), FullGrad(model).attribute(x, target=model(x).argmax(1)))


def test_a_map_and_its_terms_come_from_one_pass() -> None:
    model, x = net("residual")
    maps, terms = FullGrad(model).attribute_with_terms(x, target=2)
    assert torch.equal(maps, FullGrad(model).attribute(x, target=2))
    assert terms.completeness_error.max() < 1e-4  # float32


def test_a_scaled_image_half_precision_model_has_a_float32_map() -> None:
    model, x = net("convolutions")
    assert FullGrad(model.half()).attribute(x.half(), target=2).dtype is torch.float32


def test_works_in_captums_noise_tunnel() -> None:
    model, x = net("convolutions")
    torch.manual_seed(0)
    drawn = NoiseTunnel(FullGrad(model)).attribute(x, nt_samples=4, nt_samples_batch_size=2, stdevs=0.1, target=[0, 3, 1])
    assert drawn.shape == (3, 1, 8, 8)
    assert drawn.min() >= 0
    quiet = NoiseTunnel(FullGrad(model)).attribute(x, nt_samples=2, stdevs=0.0, target=[0, 3, 1])
    assert_same_map(quiet, FullGrad(model).attribute(x, target=[0, 3, 1]))


def test_works_in_captums_sensitivity() -> None:
    model, x = net("convolutions")
    torch.manual_seed(0)
    sensitivity = sensitivity_max(
        FullGrad(model).attribute, x, perturb_radius=0.02, n_perturb_samples=2, target=torch.tensor([0, 3, 1])
    )
    assert sensitivity.shape == (3,)
    assert (sensitivity > 0).all()
    assert sensitivity.isfinite().all()


class Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


class Halved(nn.Module):
    """A custom function, which is seen to work entry by entry."""

    def forward(self, x: Tensor) -> Tensor:
        return Halves.apply(F.silu(x)).flatten(1)


class Looped(nn.Module):
    """Takes a batch apart."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.silu(image) for image in x]).flatten(1)


def test_the_operation_for_which_images_went_one_by_one_is_named() -> None:
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    for method in (FullGrad(Looped()), SmoothFullGrad(Looped(), num_samples=2)):
        _, terms = method.attribute_with_terms(images, [0, 1, 2])
        assert terms.unbatched_by == "unbind in the model itself"
        assert terms.target is not None
        assert terms.target.tolist() == [0, 1, 2]
        assert terms.completeness_error.max() < 1e-10  # float64
        assert method.attribute_with_terms(images[:1], 0)[1].unbatched_by is None
    assert full_gradients(Looped(), images, 0).unbatched_by == "unbind in the model itself"
    assert full_gradients(Halved(), images, 0).unbatched_by is None
    assert full_gradients(nn.Flatten(), images, 0).unbatched_by is None


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda classes: range(len(classes))])
@pytest.mark.parametrize("model", [Halved(), Looped(), nn.Flatten()])
@pytest.mark.parametrize("method", [FullGrad, partial(SmoothFullGrad, num_samples=2)])
def test_targets_of_each_image_may_come_in_any_sequence(
    method: Callable[[nn.Module], FullGrad], model: nn.Module, kind: Callable[[list[int]], Any]
) -> None:
    images = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    classes = [0, 1, 2, 3, 4, 5]
    assert torch.equal(method(model).attribute(images, kind(classes)), method(model).attribute(images, classes))


@pytest.mark.parametrize("model", [Halved(), Looped(), nn.Flatten()])
def test_an_error_in_psi_is_not_laid_at_the_models_door(model: nn.Module) -> None:
    def psi(term: Tensor) -> Tensor:
        raise KeyError("in psi")

    with pytest.raises(KeyError, match="in psi"):
        FullGrad(model, psi=psi).attribute(torch.randn(3, 2, 4, 4), 0)


def test_a_model_that_takes_no_single_image_is_said_to_mix_samples() -> None:
    class InPairs(LessTheMean):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.unflatten(0, (-1, 2)).flatten(0, 1))

    with pytest.raises(ValueError, match=r"cannot be told apart behind .* cannot run on one image alone"):
        FullGrad(InPairs()).attribute(torch.randn(4, 2, 4, 4), 0)


@pytest.mark.parametrize(
    ("psi", "got"),
    [(lambda t: t.sum(), r"shape \(\)"), (lambda t: t.sum(1, keepdim=True), r"shape \(2, 1, 4, 4\)"), (lambda t: 1.0, "a float")],
)
def test_a_psi_that_returns_no_plane_is_refused(psi: Callable[[Tensor], Any], got: str) -> None:
    with pytest.raises(ValueError, match=rf"psi must return \[N, \*S\].*returned {got}"):
        FullGrad(nn.Sequential(nn.SiLU(), nn.Flatten()), psi=psi).attribute(torch.randn(2, 2, 4, 4), 0)


@pytest.mark.parametrize("psi", ["nonsense", ["absolute"], None])
@pytest.mark.ill_typed
def test_a_psi_of_no_known_kind_is_refused(psi: Any) -> None:
    with pytest.raises(ValueError, match="psi must be one of absolute, positive, signed, or a function"):
        FullGrad(nn.Flatten(), psi=psi)


def test_a_layout_that_returns_no_images_is_refused() -> None:
    model = nn.Sequential(nn.SiLU(), nn.Flatten())
    with pytest.raises(ValueError, match=r"layout must return silu in 0 as \[N, C, \*S\].*returned shape \(2, 4, 4\)"):
        FullGrad(model, layout=lambda term, values: values[0]).attribute(torch.randn(2, 2, 4, 4), 0)
