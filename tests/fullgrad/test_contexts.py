"""The same comes out in any context, precision and place that a model is in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fg_lightning import FullGrad, SimpleFullGrad, full_gradients
from fg_lightning.fullgrad.tape import Tape


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


CONTEXTS: dict[str, Callable[[], Any]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_gives_the_same_in_any_context(context: str) -> None:
    model, x = plain_net(), torch.rand(2, 3, 6, 6)
    terms, maps = full_gradients(model, x, target=1), FullGrad(model).attribute(x, target=1)
    with CONTEXTS[context]():
        there = full_gradients(model, x, target=1)
        drawn = FullGrad(model).attribute(x, target=1)
    assert torch.equal(there.input_gradient, terms.input_gradient)
    assert torch.equal(there.residual, terms.residual)
    assert torch.equal(drawn, maps)


def test_inference_tensors_may_be_images() -> None:
    model, x = plain_net(), torch.rand(2, 3, 6, 6)
    with torch.inference_mode():
        frozen = x.clone()
    assert torch.equal(FullGrad(model).attribute(frozen, target=1), FullGrad(model).attribute(x, target=1))
    assert torch.equal(full_gradients(model, frozen, target=1).residual, full_gradients(model, x, target=1).residual)


def test_inference_tensors_may_be_parameters_and_buffers() -> None:
    model, x = plain_net(), torch.rand(2, 3, 6, 6)
    with torch.inference_mode():
        frozen = plain_net()
    assert all(parameter.is_inference() for parameter in frozen.parameters())
    assert torch.equal(FullGrad(frozen).attribute(x, target=1), FullGrad(model).attribute(x, target=1))
    assert torch.equal(full_gradients(frozen, x, target=1).residual, full_gradients(model, x, target=1).residual)


class Sliced(Tensor):
    """Refuses to be sliced along what it takes for its batch, as MONAI's MetaTensor does."""

    def __getitem__(self, index: Any) -> Tensor:
        raise ValueError("inconsistent metadata")


def test_images_of_a_class_of_their_own_give_plain_tensors() -> None:
    model, x = plain_net(), torch.rand(2, 3, 6, 6)
    terms, expected = full_gradients(model, x.as_subclass(Sliced), target=1), full_gradients(model, x, target=1)
    maps = FullGrad(model).attribute(x.as_subclass(Sliced), target=1)
    by_module = (*terms.bias_terms.values(), *terms.implicit_terms.values())
    assert {type(t) for t in (terms.output, terms.input_gradient, terms.input_term, terms.residual, maps, *by_module)} == {Tensor}
    assert torch.equal(terms.input_gradient, expected.input_gradient)
    assert torch.equal(maps, FullGrad(model).attribute(x, target=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted_to_float32(dtype: torch.dtype) -> None:
    half, x = plain_net().to(dtype), torch.rand(2, 3, 6, 6).to(dtype)
    lifted = plain_net().to(dtype).float()
    result, expected = full_gradients(half, x, target=1), full_gradients(lifted, x.float(), target=1)
    assert result.output.dtype is torch.float32
    assert torch.equal(result.input_gradient, expected.input_gradient)
    assert result.completeness_error.max() < 1e-4  # float32
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}


def test_float32_images_may_go_with_half_precision_parameters() -> None:
    half, x = plain_net().half(), torch.rand(2, 3, 6, 6)
    assert full_gradients(half, x, target=1).completeness_error.max() < 1e-4  # float32


def test_autocast_is_kept_where_it_is_asked_for() -> None:
    model, x = plain_net(), torch.rand(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = full_gradients(model, x, target=1, autocast=True)
    exact = full_gradients(model, x, target=1)
    assert not torch.equal(kept.output.float(), exact.output)
    # bfloat16 has 8 bits; outputs and terms are of size one
    torch.testing.assert_close(kept.output.float(), exact.output, rtol=0.05, atol=0.05)
    assert kept.residual.abs().max() < 0.2


class EntersAutocast(nn.Module):
    """Enters autocast in its forward, by a context and by a decorator on an inner forward, as accelerate has it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = plain_net()
        self.network.forward = torch.autocast("cpu", dtype=torch.bfloat16)(self.network.forward)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.network(x)
            with torch.autocast("cpu", enabled=False):
                return 2 * y.float()


def test_autocast_in_a_forward_is_off_unless_it_is_asked_for() -> None:
    model, x = EntersAutocast(), torch.rand(2, 3, 6, 6)
    terms, kept = full_gradients(model, x, target=1), full_gradients(model, x, target=1, autocast=True)
    assert terms.completeness_error.max() < 1e-5  # float32
    torch.testing.assert_close(terms.output, 2 * plain_net()(x)[:, 1], rtol=1e-5, atol=1e-5)  # float32
    assert not torch.equal(kept.output, terms.output)
    assert model.network(x).dtype is torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("method", [FullGrad, SimpleFullGrad])
def test_a_model_moves_between_calls_without_a_trace(method: type[FullGrad]) -> None:
    model, x = plain_net(), torch.rand(2, 3, 6, 6)
    attribution = method(model)
    first = attribution.attribute(x, target=1)
    model.train()
    model(x)  # moves the running statistics
    model.eval()
    assert not torch.equal(attribution.attribute(x, target=1), first)
    assert torch.equal(attribution.attribute(x, target=1), method(model).attribute(x, target=1))


def test_in_place_operations_keep_copies_only_where_a_rule_reads_what_they_overwrite(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    copy = Tape._copy_overwritten
    monkeypatch.setattr(Tape, "_copy_overwritten", lambda tape, op: (copied.append(op.name), copy(tape, op))[1])

    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y += x
            y *= 3
            y[:, 0] = 1.0
            y.mul_(x).sigmoid_()
            return y.flatten(1)

    x = torch.rand(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert full_gradients(InPlace(), x, 4).completeness_error.max() < 1e-12  # float64 rounding
    assert copied == ["mul", "sigmoid"]  # the product of two that depend on the input, and the non-linearity


def test_a_forward_that_converts_to_half_precision_itself_is_told() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.middle = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3).bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.middle(self.stem(x).bfloat16()).float().mean((2, 3))

    with pytest.raises(ValueError, match="converts to half precision itself"):
        full_gradients(Mixed(), torch.rand(2, 3, 8, 8), 0)


class Recording(TorchFunctionMode):
    """A mode of the user that notes the functions it meets."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[object] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.met.append(function)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("is_inside", [True, False])
def test_a_mode_of_the_user_meets_what_the_network_calls(is_inside: bool) -> None:
    mode = Recording()

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with mode if is_inside else nullcontext():
                return F.softplus(F.layer_norm(x, x.shape[1:])).flatten(1)

    with nullcontext() if is_inside else mode:
        terms = full_gradients(Net(), torch.rand(2, 1, 4, 4, dtype=torch.float64), 0)
    assert float(terms.completeness_error.max()) < 1e-9
    assert (F.layer_norm if is_inside else torch.layer_norm) in mode.met  # the tape opens what it meets before the user's mode
