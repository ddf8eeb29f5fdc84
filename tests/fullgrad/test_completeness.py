"""The terms add up: on networks drawn at random and on torchvision's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fg_lightning import FullGradients, full_gradients
from tests.helpers.random_networks import BLOCKS, CLASSES, RandomNetwork, images, randomised

# torch itself says so when forward-mode differentiation is first used.


def total(result: FullGradients) -> Tensor:
    return result.input_term + sum(result.bias_terms.values()) + sum(result.implicit_terms.values())


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(25))
def test_terms_of_a_random_network_sum_to_its_output(seed: int, n: int) -> None:
    model = RandomNetwork(seed)
    result = full_gradients(model, images(n, seed), target=seed % CLASSES)
    assert not result.missing_ops
    rounding = {"rtol": 1e-12, "atol": 1e-12}  # float64
    torch.testing.assert_close(result.output, model.eval()(images(n, seed))[:, seed % CLASSES].detach(), **rounding)
    torch.testing.assert_close(total(result) + result.residual, result.output, **rounding)
    # float64, with room for outputs that happen to be a hundredth of their terms
    assert result.completeness_error.max() < 1e-10


@pytest.mark.parametrize("block", BLOCKS)
def test_every_kind_of_block_is_drawn(block: type[nn.Module]) -> None:
    assert any(isinstance(module, block) for seed in range(25) for module in RandomNetwork(seed).blocks)


TORCHVISION: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(), 32),
    "vgg11_bn": (lambda: torchvision.models.vgg11_bn(init_weights=False), 32),
    "densenet121": (lambda: torchvision.models.densenet121(), 32),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(), 32),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(), 32),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(), 32),
    "googlenet": (lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False), 48),
    "googlenet with auxiliary heads": (lambda: torchvision.models.googlenet(aux_logits=True, init_weights=False), 48),
    "inception_v3": (lambda: torchvision.models.inception_v3(aux_logits=False, init_weights=False), 75),
    "inception_v3 with auxiliary heads": (lambda: torchvision.models.inception_v3(aux_logits=True, init_weights=False), 75),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_terms_of_torchvisions_networks_sum_to_their_output(name: str) -> None:
    build, size = TORCHVISION[name]
    torch.manual_seed(0)
    model = randomised(build())
    x = torch.randn(2, 3, size, size)
    # float32, through up to 121 layers
    assert full_gradients(model, x).completeness_error.max() < 1e-4
    # float64: what is left is rounding
    assert full_gradients(model.double(), x.double()).completeness_error.max() < 1e-10
