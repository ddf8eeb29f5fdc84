"""The locally affine reading: the same output, another gradient, complete as well."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer, efficientnet_b0

from fg_lightning import FullGrad, full_gradients

# Rounding of a few hundred operations in float64.
EXACT = 1e-11


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.data.normal_(0, 0.3, generator=generator)
    return model.double().eval()


def vit():
    return VisionTransformer(image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=5)


def swin():
    return SwinTransformer([2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=5)


def mixed_norms():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(inplace=True), nn.Conv2d(8, 8, 1), nn.GELU(approximate="tanh"),
        nn.Mish(), nn.Hardswish(), nn.Flatten(), nn.RMSNorm(8 * 36), nn.Linear(8 * 36, 5),
    )  # fmt: skip


@pytest.mark.parametrize("build", [vit, swin, mixed_norms])
def test_it_is_complete_with_explicit_biases_alone_and_keeps_the_output(build):
    torch.manual_seed(0)
    model, images = randomised(build()), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    exact = full_gradients(model, images, 2)
    affine = full_gradients(model, images, 2, reading="locally_affine")
    assert torch.allclose(affine.output, exact.output, rtol=EXACT)
    assert affine.completeness_error.max() < EXACT
    assert all(term.abs().max() < EXACT for term in affine.implicit_terms.values())
    assert max(term.abs().max() for term in exact.implicit_terms.values()) > 1e-3
    assert not torch.allclose(affine.input_gradient, exact.input_gradient, rtol=1e-3)


def test_it_is_complete_with_implicit_biases_where_other_non_linearities_remain():
    torch.manual_seed(0)
    model, images = efficientnet_b0().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    terms = full_gradients(model, images, reading="locally_affine")
    assert terms.completeness_error.max() < 1e-10
    assert terms.implicit_terms


@pytest.mark.parametrize(
    ("operation", "frozen"),
    [
        (lambda x: F.layer_norm(x, (6,)), lambda x: (x - x.mean(-1, True)) / (x.detach().var(-1, False, True) + 1e-5).sqrt()),
        (lambda x: F.gelu(x), lambda x: x * (F.gelu(x) / x).detach()),
        (lambda x: F.silu(x), lambda x: x * (F.silu(x) / x).detach()),
        (lambda x: F.hardswish(x), lambda x: x * (F.hardswish(x) / x).detach()),
        (lambda x: F.mish(x), lambda x: x * (F.mish(x) / x).detach()),
        (lambda x: (x @ x.mT).softmax(-1) @ x, lambda x: (x @ x.mT).softmax(-1).detach() @ x),
        (lambda x: F.scaled_dot_product_attention(x, x, x), lambda x: (x @ x.mT / 6**0.5).softmax(-1).detach() @ x),
        (
            lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
            lambda x: (x @ x.mT / 6**0.5 + torch.full((5, 5), -torch.inf).triu(1)).softmax(-1).detach() @ x,
        ),
    ],
)  # fmt: skip
def test_its_gradient_is_that_of_the_function_with_gates_weights_and_statistics_held(operation, frozen):
    class Model(nn.Module):
        def forward(self, images):
            return operation(images).square().flatten(1).sum(1)

    images = torch.randn(2, 1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(frozen(leaf).square().sum(), leaf)
    assert torch.allclose(full_gradients(Model(), images, reading="locally_affine").input_gradient, expected, rtol=1e-9, atol=EXACT)


def test_a_softmax_at_the_end_is_no_attention():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Softmax(1)).double()
    terms = full_gradients(model, torch.rand(2, 3, 2, 2, dtype=torch.float64), reading="locally_affine")
    assert terms.implicit_terms["2"].abs().min() > 0


@pytest.mark.ill_typed
def test_unknown_readings_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="exact, locally_affine"):
        full_gradients(nn.Identity(), torch.ones(1, 1, 2, 2), reading="affine")
    with pytest.raises(ValueError, match="exact, locally_affine"):
        FullGrad(nn.Identity(), reading="affine")


def test_the_users_layout_places_a_term_that_has_none():
    """A network that scrambles its pixels, and a user who knows how."""
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))

    class Scrambled(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.rand(36))
            self.head = nn.Linear(36, 3)

        def forward(self, images):
            return self.head(F.relu(images.flatten(1)[:, order] + self.bias))

    torch.manual_seed(0)
    model, images = Scrambled(), torch.rand(2, 1, 6, 6)
    seen = []

    def layout(term, values):
        seen.append((term.module, term.operation))
        if term.operation == "add":
            return values[:, order.argsort()].reshape(-1, 1, 6, 6)
        return None

    plain, placed = FullGrad(model).attribute(images), FullGrad(model, layout=layout).attribute(images)
    assert ("", "add") in seen
    term = placed - plain
    terms = full_gradients(model, images)
    expected = terms.input_gradient * model.bias[order.argsort()].reshape(1, 1, 6, 6)
    magnitude = expected.detach().abs().flatten(1)
    low, high = magnitude.amin(1, keepdim=True), magnitude.amax(1, keepdim=True)
    # float32
    assert torch.allclose(term.flatten(1), (magnitude - low) / (high - low + 1e-6), atol=1e-5)
