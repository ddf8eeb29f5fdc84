"""A model, its input and the process are left as they were."""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.models import VisionTransformer

from fg_lightning import FullGrad, full_gradients
from tests.helpers.model_state import assert_unchanged, state_of

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
    model(x).sum().backward()  # by weights that no run has detached
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


@pytest.mark.parametrize("fail", [False, pytest.param(True, marks=pytest.mark.slow)])
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
@pytest.mark.parametrize("fail", [False, pytest.param(True, marks=pytest.mark.slow)])
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


def test_weights_are_not_copied() -> None:
    """A copy is for what an operation writes to; our own questions about memory must not count as a write."""
    network = VisionTransformer(8, 4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)
    FullGrad(network).attribute(torch.rand(1, 3, 8, 8), 0)
    with torch.profiler.profile() as recorded:
        FullGrad(network).attribute(torch.rand(1, 3, 8, 8), 0)
    copies = [event for event in recorded.events() if event.name == "aten::clone" and event.cpu_parent is None]
    assert len(copies) <= 1  # of the images


def test_a_sparse_buffer_is_none_that_is_copied_with_others() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([2.0]))
            self.register_buffer("sparse", torch.tensor([0.0, 3.0]).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * self.scale + self.sparse.to_dense().sum()

    model = Net()
    assert float(full_gradients(model, torch.rand(2, 1, 2, 2), 0).completeness_error.max()) < 1e-5
    assert model.sparse.is_sparse
