"""A model, its input and the process are left as they were."""

from __future__ import annotations

import gc
import random
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
import torch._functorch.apis as functorch_apis
import torch._functorch.eager_transforms as eager_transforms
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionMeta
from torch.nn.utils import prune
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import CheckpointFunction

from fg_lightning import FullGrad, SimpleFullGrad, full_gradients
from fg_lightning.fullgrad.call import Call

CALLS = 300

METHODS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "full_gradients": lambda model, x: full_gradients(model, x, target=1),
    "FullGrad": lambda model, x: FullGrad(model).attribute(x, target=1),
}


class Net(nn.Module):
    """Whatever could be disturbed: batch norm in training, dropout of both kinds, a modified input, frozen parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(64, 5)
        self.register_buffer("calls", torch.zeros(1))
        self.conv.weight.requires_grad_(False)
        self.norm.train()
        self.dropout.eval()
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        self.calls += 1
        y = F.silu(self.norm(self.conv(x)), inplace=True)
        if self.fail:
            raise KeyError("halfway")
        return self.head(F.dropout(self.dropout(y), 0.3, training=True).flatten(1))


def state_of(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Everything that a call might change."""
    hooks = [name for name in vars(torch.nn.modules.module) if name.startswith("_global_") and name.endswith("hooks")]
    assert len(hooks) > 5  # torch still calls them so
    return {
        "global hooks": [len(getattr(torch.nn.modules.module, name)) for name in hooks],
        "hooks": [len(hooks) for module in model.modules() for name, hooks in vars(module).items() if name.endswith("_hooks")],
        "tensor hooks": [bool(t._backward_hooks) for t in [x, *model.parameters(), *model.buffers()]],
        "attributes": [sorted(vars(t)) for t in [x, *model.parameters(), *model.buffers()]],
        "module attributes": [{name: id(value) for name, value in vars(module).items()} for module in model.modules()],
        "module contents": [contents(value) for module in model.modules() for value in vars(module).values()],
        "flags": [module.training for module in model.modules()],
        "requires_grad": [t.requires_grad for t in [x, *model.parameters()]],
        "grad": [None if t.grad is None else t.grad.tolist() for t in [x, *model.parameters()]],
        "versions": [t._version for t in [x, *model.parameters(), *model.buffers()]],
        "identities": [id(t) for t in [*model.parameters(), *model.buffers()]],
        "values": [t.tolist() for t in [x.detach(), *model.state_dict().values()]],
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "function modes": torch.overrides._len_torch_function_stack(),
    }


def contents(value: Any) -> list[tuple[int, int]]:
    """Which objects are in a dictionary, list or set."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, set)) else ()
    return [(id(key) if isinstance(value, dict) else 0, id(item)) for key, item in items]


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert [name for name in before if before[name] != after[name]] == []


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_changed(method: str, fail: bool) -> None:
    model, x = Net(), torch.rand(2, 3, 6, 6)
    model(x.clone()).sum().backward()  # gradients that must stay
    model.fail = fail
    x.requires_grad_()
    x.grad = torch.ones_like(x)
    before = state_of(model, x)
    for _ in range(CALLS):
        with pytest.raises(KeyError, match="halfway") if fail else nullcontext():
            METHODS[method](model, x)
    assert_unchanged(before, state_of(model, x))


class Remembers(Net):
    """Counts, keeps and computes once, in plain attributes and in a buffer made when it is needed."""

    def __init__(self) -> None:
        super().__init__()
        prune.identity(self.head, "weight")  # set anew as an attribute before each forward
        self.count = 0
        self.doubled: Tensor | None = None
        self.seen: list[Tensor] = []
        self.sizes: set[int] = {6}
        self.cache: dict[str, Tensor] = {"input": torch.ones(1)}
        self.of_each: defaultdict[int, list[int]] = defaultdict(list)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(x)
        self.sizes.add(len(self.seen))
        self.cache["input"] = x
        self.of_each[self.count] = [1]
        self.doubled = self.conv.weight * 2 if self.doubled is None else self.doubled
        self.scale = self.cache.setdefault("scale", self.norm.weight.sum() if self.training else torch.zeros(()))
        if not hasattr(self, "made"):
            self.register_buffer("made", torch.ones(1))
        return super().forward(x) + self.doubled.sum() + self.scale


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_what_a_model_keeps_in_plain_attributes_is_as_it_was(method: str, fail: bool) -> None:
    model, x = Remembers(), torch.rand(2, 3, 6, 6)
    model.conv.weight.requires_grad_()
    model.fail = fail
    before = state_of(model, x)
    for _ in range(2):
        with pytest.raises(KeyError, match="halfway") if fail else nullcontext():
            METHODS[method](model, x)
    assert_unchanged(before, state_of(model, x))
    model.fail = False
    model(x).sum().backward()  # by weights that no look has cut off
    assert model.conv.weight.grad is not None
    assert model.head.weight_orig.grad is not None
    assert model.scale.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_changed_when_a_visitor_fails(method: str) -> None:
    model, x = Net(), torch.rand(2, 3, 6, 6)
    before = state_of(model, x)

    def psi(term: Tensor) -> Tensor:
        raise KeyError("in psi")

    with pytest.raises(KeyError, match="in psi"):
        FullGrad(model, psi=psi).attribute(x, target=1)
    with pytest.raises(ValueError, match="out of range"):
        full_gradients(model, x, target=77)
    assert_unchanged(before, state_of(model, x))


def test_nothing_is_changed_where_samples_mix() -> None:
    class Mixing(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y - y.mean(0)

    model, x = Mixing(), torch.rand(2, 3, 6, 6)
    before = state_of(model, x)
    with pytest.raises(ValueError, match="mixes the samples"):
        full_gradients(model, x, target=1)
    assert_unchanged(before, state_of(model, x))


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_no_tensor_stays_alive(method: str, fail: bool) -> None:
    model, x = Net(), torch.rand(2, 3, 6, 6)

    def call(times: int) -> int:
        for _ in range(times):
            model.fail = fail
            with pytest.raises(KeyError, match="halfway") if fail else nullcontext():
                METHODS[method](model, x)
        return live_tensors()

    call(2)  # what is made once and kept, such as torch's own caches
    assert call(20) <= call(20)


class Keeps(nn.Module):
    """Keeps a tensor of its forward, as some models keep their attention."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.network(x)
        return self.kept


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_keeps_a_tensor_of_its_forward_is_let_go_of(method: str) -> None:
    model = Keeps()
    METHODS[method](model, torch.rand(2, 3, 6, 6))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


STATM = Path("/proc/self/statm")


def resident() -> float:
    """Megabytes."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not STATM.exists(), reason="reads the resident memory from /proc")
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow(method: str, fail: bool) -> None:
    class Large(Net):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.SiLU(inplace=True), nn.Softmax(1), nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(self.conv(x))
            y = y * y.sigmoid()
            if self.fail:
                raise KeyError("halfway")
            return self.head(F.adaptive_avg_pool2d(y, 4).flatten(1))

    model, x = Large(), torch.rand(1, 3, 130, 130)  # seven activations of a quarter of a MB each
    model.fail = fail

    def call(times: int) -> float:
        for _ in range(times):
            with pytest.raises(KeyError, match="halfway") if fail else nullcontext():
                METHODS[method](model, x)
        return resident()

    settled = call(30)
    # One activation kept in each call would be 75 MB, all of them 500 MB; the allocator's own coming and going is a few.
    assert call(CALLS) - settled < 40


# --- threads ---------------------------------------------------------------------------------------------------------------------


class Between(nn.Module):
    """Does something else in the middle of its forward."""

    def __init__(self, something: Callable[[], Any]) -> None:
        super().__init__()
        self.head = nn.Linear(108, 3)
        self.something = something

    def forward(self, x: Tensor) -> Tensor:
        self.something()
        return self.head(x.flatten(1))


def patched() -> list[Any]:
    """What of torch is not itself while a model is met."""
    return [
        vars(CheckpointFunction).get("apply"),
        vars(FunctionMeta).get("__getattribute__"),
        *(value for name, value in vars(checkpoints).items() if name.startswith("_checkpoint_without_reentrant_generator")),
        *(vars(functorch_apis)["vmap_impl"], eager_transforms.grad_impl),
    ]


def test_threads_leave_torch_as_it_was() -> None:
    first_in, second_in, first_out = Event(), Event(), Event()
    x, before, errors = torch.rand(2, 3, 6, 6), patched(), {}

    def first() -> None:
        model = Between(lambda: (first_in.set(), second_in.wait(0.3)))  # until the second is in as well, if it ever comes in
        errors["first"] = full_gradients(model, x, 0).completeness_error.max()
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        errors["second"] = full_gradients(Between(lambda: (second_in.set(), first_out.wait(10))), x, 0).completeness_error.max()

    threads = [Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(now is then for now, then in zip(patched(), before, strict=True))
    assert max(errors["first"], errors["second"]) < 1e-4  # float32


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_of_other_threads_go_on_being_checkpoints(use_reentrant: bool) -> None:
    runs: list[Tensor] = []

    def train() -> None:
        z = torch.ones(3, requires_grad=True)
        checkpoints.checkpoint(lambda z: (runs.append(z), z.exp())[1], z, use_reentrant=use_reentrant).sum().backward()

    def in_another_thread() -> None:
        thread = Thread(target=train)
        thread.start()
        thread.join()

    full_gradients(Between(in_another_thread), torch.rand(2, 3, 6, 6), 0)
    assert len(runs) == 2  # once more in the backward pass


# --- contexts --------------------------------------------------------------------------------------------------------------------


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
    keep = Call.keep_overwritten
    monkeypatch.setattr(Call, "keep_overwritten", lambda call: (copied.append(call.name), keep(call))[1])

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
