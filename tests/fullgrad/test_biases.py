"""Every rule of the bias table against the definition, b = h(z) - J_h(z) z, in float64."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fg_lightning import full_gradients
from fg_lightning.fullgrad import tape
from fg_lightning.fullgrad.linearization import linearize
from fg_lightning.fullgrad.operations import OPERATIONS, UNKNOWN, no_bias
from tests.helpers.operations import CASES
from tests.helpers.operations.definition import Operation, check, values_of

# torch itself says so when forward-mode differentiation is first used.

NEVER_MET = {
    "cuda": "moves to a device",
    "fused_moving_avg_obs_fake_quant": "knows float32 only; see below",
    "scaled_dot_product_flash_attention": "needs a GPU",
    "scaled_dot_product_efficient_attention": "needs a GPU",
    "scaled_dot_product_cudnn_attention": "needs a GPU",
}


@pytest.mark.parametrize("name", CASES)
def test_sum_of_biases_is_output_minus_jacobian_times_operands(name: str) -> None:
    check(CASES[name])


def test_every_name_in_the_table_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    met: set[str] = set()
    ruled = {name for name, rules in OPERATIONS.items() if rules.bias is not linearize}

    class Watched(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            met.add(name)
            return UNKNOWN._replace(bias=no_bias)  # to meet a rule it need not be followed

    monkeypatch.setattr(tape, "OPERATIONS", Watched(OPERATIONS))
    for case in CASES.values():
        operands = values_of(case).requires_grad_().clone()
        with contextlib.suppress(Exception), tape.Tape([operands], (), {}):  # a case that fails has a test of its own
            Operation(case)(operands)
    assert not ruled - met - set(NEVER_MET)
    assert not met & set(NEVER_MET)
    assert not set(NEVER_MET) - ruled


def test_fake_quantisation_that_moves_its_range_is_not_run_again() -> None:
    x = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    runs = []

    def observed(x: Tensor) -> Tensor:
        low, high = torch.tensor(-0.5), torch.tensor(0.5)
        on, scale, zero = torch.tensor([1]), torch.tensor([0.125]), torch.tensor([0], dtype=torch.int32)
        y = torch.fused_moving_avg_obs_fake_quant(x, on, on, low, high, scale, zero, 0.5, -8, 7, -1)
        runs.append((float(low), float(scale)))
        return y.flatten(1).sum(1)

    class Observed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return observed(x)

    terms = full_gradients(Observed(), x)
    assert terms.unbatched_by is None
    assert not terms.fallback_ops
    assert terms.completeness_error.max() < 1e-5  # float32
    assert terms.implicit_terms[""].abs().min() > 1e-3
    observed(x)
    assert runs[0] == runs[1]
