"""The biases of torch's own modules against the definition, in float64."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import activation, padding, pooling

from tests.helpers.operations.definition import Case, Operand, check, z

# torch itself says so when forward-mode differentiation is first used.

ACTIVATION_ARGUMENTS: dict[str, tuple[Any, ...]] = {"Threshold": (0.1, 2.0), "Softmin": (1,), "Softmax": (1,), "LogSoftmax": (1,)}

ACTIVATIONS = [name for name in activation.__all__ if name != "MultiheadAttention"]


def check_module(module: nn.Module, operand: Operand) -> None:
    module = module.double().eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.3)
    module.requires_grad_(False)
    check(Case(module, (operand,)))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bias_of_every_activation_module(name: str, inplace: bool) -> None:
    kind = getattr(activation, name)
    takes_inplace = "inplace" in inspect.signature(kind).parameters
    if inplace and not takes_inplace:
        pytest.skip("has no in-place form")
    module = kind(*ACTIVATION_ARGUMENTS.get(name, ()), **({"inplace": True} if inplace else {}))
    # Wide enough that every piece of a piecewise activation is met.
    check_module(module, Operand((1, 4, 6, 6), lambda normal: 3 * normal))


POOL_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "FractionalMaxPool2d": (2, 2),
    "FractionalMaxPool3d": (2, 2),
    "LPPool1d": (2, 2),
    "LPPool2d": (2, 2),
    "LPPool3d": (2, 2),
}

POOLS = [name for name in pooling.__all__ if not name.startswith("MaxUnpool")]  # those take indices, above


@pytest.mark.parametrize("name", POOLS)
def test_bias_of_every_pooling_module(name: str) -> None:
    module = getattr(pooling, name)(*POOL_ARGUMENTS.get(name, (2,)))
    check_module(module, z(1, 2, *(4,) * int(name[-2])))


@pytest.mark.parametrize("name", padding.__all__)
def test_bias_of_every_padding_module(name: str) -> None:
    arguments = (1, 2.5) if name.startswith("ConstantPad") else (1,)
    check_module(getattr(padding, name)(*arguments), z(1, 2, *(3,) * int(name[-2])))


NORMS = {
    **{f"BatchNorm{d}d": (getattr(nn, f"BatchNorm{d}d")(4), d) for d in (1, 2, 3)},
    **{f"InstanceNorm{d}d": (getattr(nn, f"InstanceNorm{d}d")(4, affine=True), d) for d in (1, 2, 3)},
    "InstanceNorm2d, tracking": (nn.InstanceNorm2d(4, track_running_stats=True), 2),
    "BatchNorm2d, own statistics": (nn.BatchNorm2d(4, track_running_stats=False), 2),
    "GroupNorm": (nn.GroupNorm(2, 4), 2),
    "LayerNorm": (nn.LayerNorm((4, 3, 3)), 2),
    "LayerNorm without bias": (nn.LayerNorm((4, 3, 3), bias=False), 2),
    "RMSNorm": (nn.RMSNorm((3, 3)), 2),
    "LocalResponseNorm": (nn.LocalResponseNorm(3), 2),
    "CrossMapLRN2d": (nn.LocalResponseNorm(2, alpha=0.5), 2),
}


@pytest.mark.parametrize("name", NORMS)
def test_bias_of_every_normalisation_module(name: str) -> None:
    module, d = NORMS[name]
    check_module(module, z(2, 4, *(3,) * d))


RECURRENT = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


@pytest.mark.parametrize("name", RECURRENT)
def test_bias_of_recurrent_modules(name: str) -> None:
    check_module(RECURRENT[name](3, 4, batch_first=True), z(2, 3, 3))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_bias_of_multi_head_attention_is_counted_once(batch_first: bool, need_weights: bool) -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Any:
            return self.attention(x, x, x, need_weights=need_weights)

    check_module(SelfAttention(), z(2, 3, 4))


@pytest.mark.parametrize("norm_first", [False, True])
def test_bias_of_a_transformer_layer(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=norm_first, activation="gelu")
    check_module(layer, z(2, 3, 4))
