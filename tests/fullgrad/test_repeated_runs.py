"""Recorded operations that are repeated: the same maps, and the model's own code whenever it may do something else."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from fg_lightning import FullGrad, SimpleFullGrad
from fg_lightning.fullgrad import repeated_runs, saliency
from fg_lightning.fullgrad.target import TargetError
from tests.helpers.model_state import assert_unchanged, state_of
from tests.helpers.moving_networks import images as small_images
from tests.helpers.moving_networks import network
from tests.helpers.random_networks import randomised
from tests.test_undisturbed import NETWORKS

CALLS = 7
OWN = 5  # runs of the model's own code: calls 1, 2 and 4, and two that are recorded


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by an item whenever the model's own code runs."""
    found: list[int] = []
    run = saliency.run_forward_backward

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.append(1)
        return run(*args, **kwargs)

    monkeypatch.setattr(saliency, "run_forward_backward", counted)
    return found


class Small(nn.Module):
    """A network with a part that is tried."""

    def __init__(self, part: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.part = part or nn.ReLU()
        self.slope = 1.0
        self.factors = [1.0, 2.0]
        randomised(self)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        y = self.part(self.norm(self.stem(x))) * self.slope * self.factors[0]
        y = y if weights is None else y * weights[:, None, None, None]
        return self.head(y.mean((2, 3)))


def drawn(seed: int, n: int = 3) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def recorded(model: nn.Module, **settings: Any) -> FullGrad:
    """A method whose next call is repeated."""
    method = FullGrad(model, graphed=True, **settings)
    for seed in range(4):
        method.attribute(drawn(seed), 1)
    return method


def expected(model: nn.Module, images: Tensor, target: Any = 1, **settings: Any) -> Tensor:
    return FullGrad(model, **settings).attribute(images, target)


def test_repetitions_give_the_same_maps_and_no_code_runs(runs: list[int]) -> None:
    model = Small()
    method = recorded(model)
    num_runs = len(runs)
    maps = {seed: method.attribute(drawn(seed), 1) for seed in (10, 11, 12)}
    assert num_runs == OWN
    assert len(runs) == num_runs
    for seed, map_ in maps.items():
        assert torch.equal(map_, expected(model, drawn(seed)))
        assert not map_.is_inference()
    method.attribute(drawn(13), 1)  # the eighth call
    assert len(runs) == num_runs + len(maps) + 1


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_model_is_left_as_it_was_and_explained_as_before(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    methods = FullGrad(model, graphed=True), FullGrad(model)
    x = drawn(0)
    before = state_of(model, x)
    for seed in range(CALLS):
        images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        map_, of_code = (method.attribute(images, 1) for method in methods)
        torch.testing.assert_close(map_, of_code, rtol=0, atol=1e-6 * float(of_code.abs().max()))
    assert_unchanged(before, state_of(model, x))


@pytest.mark.parametrize("name", ["windows", "window attention", "transformer layer", "einsum", "cat of channels"])
def test_operations_of_many_kinds_are_repeated(name: str, runs: list[int]) -> None:
    model = network(name)
    method = FullGrad(model, graphed=True)
    for seed in range(CALLS):
        images = small_images() + torch.randn(small_images().shape, generator=torch.Generator().manual_seed(seed))
        map_ = method.attribute(images, 0)
        num_runs = len(runs)
        torch.testing.assert_close(map_, expected(model, images, 0), rtol=0, atol=1e-6 * float(map_.abs().max()))
        del runs[num_runs:]
    assert len(runs) == OWN


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "efficientnet_b0", "swin_t", "vit_b_32", "shufflenet_v2_x0_5"]
)
def test_networks_of_torchvision_are_repeated(name: str, runs: list[int]) -> None:
    torch.manual_seed(0)
    side = {"image_size": 64} if name.startswith("vit") else {}
    model = randomised(get_model(name, weights=None, **side))
    method = FullGrad(model, graphed=True)
    maps = [method.attribute(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)), 1) for seed in range(CALLS)]
    assert len(runs) == OWN
    for seed in range(4, CALLS):
        of_code = expected(model, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
        torch.testing.assert_close(maps[seed], of_code, rtol=0, atol=1e-6 * float(of_code.max()))


# --- what may change between calls ------------------------------------------------------------------------------------------------


def in_place(model: Small) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.mul_(2)


def other_memory(model: Small) -> None:
    model.stem.weight.data = model.stem.weight.data * 2
    model.head.bias.data = model.head.bias.data + 1


def of_a_checkpoint(model: Small) -> None:
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})


SimpleCounter = type("SimpleCounter", (), {"__module__": "elsewhere", "__init__": lambda self, n: setattr(self, "numerator", n)})


class WithVariable(nn.Module):
    """Its function has a variable, as torchmetrics' wrappers have."""

    def __init__(self) -> None:
        super().__init__()
        factor = 1.0

        def change(value: float) -> None:
            nonlocal factor
            factor = value

        self.change = change
        self.function = lambda y: y.relu() + factor
        self.other = SimpleCounter(1)

    def forward(self, y: Tensor) -> Tensor:
        return self.function(y) + self.other.numerator


class Doubled(WithVariable):
    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y) * y


CHANGES: dict[str, Callable[[Small], object]] = {
    "weights in place": in_place,
    "weights in other memory": other_memory,
    "weights of a checkpoint": of_a_checkpoint,
    "a parameter": lambda model: setattr(model.head, "weight", nn.Parameter(model.head.weight * 3)),
    "a buffer": lambda model: setattr(model.norm, "running_mean", torch.ones(6)),
    "a module": lambda model: setattr(model, "part", nn.GELU()),
    "a number": lambda model: setattr(model, "slope", 2.5),
    "a list": lambda model: model.factors.__setitem__(0, 7.0),
    "a module's option": lambda model: setattr(model.stem, "padding", (1, 1)),
    "a method": lambda model: setattr(model, "forward", lambda x: model.head(model.stem(x).mean((2, 3)))),
    "a function's variable": lambda model: model.part.change(-3.0),
    "a class": lambda model: setattr(model.part, "__class__", Doubled),
    "an object of another package": lambda model: setattr(model.part.other, "numerator", 3),
    "a hook": lambda model: model.part.register_forward_hook(lambda module, args, output: output * 2),
    "the precision": lambda model: model.double(),
    "the order in memory": lambda model: model.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_explained_as_it_is_now(change: str, runs: list[int]) -> None:
    model = Small(WithVariable())
    method = recorded(model)
    num_runs = len(runs)
    before = method.attribute(drawn(20), 1)
    assert len(runs) == num_runs
    CHANGES[change](model)
    for seed in range(20, 20 + CALLS):
        torch.testing.assert_close(method.attribute(drawn(seed), 1), expected(model, drawn(seed)))
    if change != "the order in memory":
        assert not torch.equal(before, method.attribute(drawn(20), 1))


def test_settings_of_the_method_may_change() -> None:
    model = Small(nn.SiLU())
    method = recorded(model)
    method.psi = saliency.find_psi("signed")
    torch.testing.assert_close(method.attribute(drawn(5), 1), expected(model, drawn(5), psi="signed"))
    method.reading = "locally_affine"
    torch.testing.assert_close(method.attribute(drawn(6), 1), expected(model, drawn(6), psi="signed", reading="locally_affine"))


@pytest.mark.parametrize("target", [None, 2, [0, 3, 1], torch.tensor([1, 1, 3]), np.array([3, 2, 1])])
def test_each_call_has_its_own_target(target: Any, runs: list[int]) -> None:
    model = Small()
    method = FullGrad(model, graphed=True)
    for seed in range(4):
        method.attribute(drawn(seed), target)
    num_runs = len(runs)
    other = None if target is None else [3, 0, 2]
    map_ = method.attribute(drawn(7), other)
    assert len(runs) == num_runs
    assert torch.equal(map_, expected(model, drawn(7), other))


def test_errors_stay_the_same() -> None:
    method = recorded(Small())
    with pytest.raises(TargetError, match=r"target \[9, 9, 9\] is out of range"):
        method.attribute(drawn(5), 9)
    with pytest.raises(TypeError, match="target must be"):
        method.attribute(drawn(5), "cat")
    with pytest.raises(ValueError, match=r"not finite for samples \[1\]"):
        method.attribute(drawn(5).index_fill(0, torch.tensor([1]), torch.nan), 1)


def test_batches_of_other_kinds_have_recordings_of_their_own() -> None:
    model = Small()
    method = FullGrad(model, graphed=True)
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "plain": lambda x: x,
        "channels last": lambda x: x.to(memory_format=torch.channels_last),
        "with gaps": lambda x: torch.cat([x, x], 1)[:, :3],
        "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
        "in the middle": lambda x: torch.cat([x, x, x])[3:6],
        "larger": lambda x: torch.cat([x, x], 2),
        "two": lambda x: x[:2],
        "double": lambda x: x.double(),
        "inference": lambda x: torch.inference_mode()(lambda: x * 1)(),
    }
    for seed in range(CALLS):
        for name, change in kinds.items():
            images = change(drawn(seed))
            torch.testing.assert_close(method.attribute(images, 1), expected(model, images), msg=name)


def test_additional_arguments_and_several_images_are_inputs(runs: list[int]) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = Small()

        def forward(self, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
            return self.one(a, weights) + self.one(b)

    model = Pair()
    method = FullGrad(model, graphed=True)
    for seed in range(CALLS):
        arguments = (drawn(seed), drawn(seed + 50)), 1, torch.rand(3, generator=torch.Generator().manual_seed(seed))
        maps = method.attribute(*arguments)
        num_runs = len(runs)
        for map_, of_code in zip(maps, FullGrad(model).attribute(*arguments), strict=True):
            torch.testing.assert_close(map_, of_code)
        del runs[num_runs:]
    assert len(runs) == OWN


def test_versions_of_fullgrad_are_repeated(runs: list[int]) -> None:
    model = Small(nn.SiLU())
    for method, of_code in (
        (SimpleFullGrad(model, graphed=True), SimpleFullGrad(model)),
        (FullGrad(model, implicit=False, psi="positive", graphed=True), FullGrad(model, implicit=False, psi="positive")),
    ):
        runs.clear()
        maps = [method.attribute(drawn(seed), 1) for seed in range(CALLS)]
        assert len(runs) == OWN
        for seed, map_ in enumerate(maps):
            assert torch.equal(map_, of_code.attribute(drawn(seed), 1))


def test_autocast_is_recorded_below_it() -> None:
    model = Small()
    with torch.autocast("cpu", torch.bfloat16):
        method = recorded(model, autocast=True)
        map_, of_code = method.attribute(drawn(5), 1), expected(model, drawn(5), autocast=True)
    assert torch.equal(map_, of_code)
    torch.testing.assert_close(method.attribute(drawn(5), 1), expected(model, drawn(5)))


class AlwaysDropping(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y * nn.functional.dropout(torch.ones_like(y), 0.5)


def test_random_numbers_of_torch_are_drawn_anew_and_the_state_stays(runs: list[int]) -> None:
    model = Small(AlwaysDropping())
    method = recorded(model)
    for seed in (1, 2):
        num_runs = len(runs)
        torch.manual_seed(seed)
        map_ = method.attribute(drawn(5), 1)
        assert len(runs) == num_runs
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(1))
        torch.manual_seed(seed)
        torch.testing.assert_close(map_, expected(model, drawn(5)))


def test_a_copy_and_a_pickle_have_no_recordings() -> None:
    method = recorded(Small())
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert torch.equal(other.attribute(drawn(5), 1), method.attribute(drawn(5), 1))
        assert other.model is not method.model


# --- what is not repeated ---------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y * 2 if float(y.mean()) > 0 else y


class ByNumPy(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y * float(y.detach().numpy().max())


class ByArray(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y * torch.from_numpy(y.detach().numpy().copy()).abs()


class ByList(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y * y.flatten().tolist()[0]


class ByPython(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y if random.random() < 0.5 else y * 2


class ByWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2))

    def forward(self, y: Tensor) -> Tensor:
        return y * self.weights.tolist()[0]


GENERATOR = torch.Generator()


class ByGenerator(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y + torch.randn(y.shape[1:], generator=GENERATOR.manual_seed(1))


class ByMask(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y / y[y > 0].max()


class ByIterator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        numbers = count()
        self.function = lambda y: y * (1 + next(numbers) % 1)

    def forward(self, y: Tensor) -> Tensor:
        return self.function(y)


OWN_CODE = [Branching, ByNumPy, ByArray, ByList, ByWeights, ByGenerator, ByPython, ByMask, ByIterator]


@pytest.mark.parametrize("part", OWN_CODE)
def test_code_that_reads_more_than_its_inputs_runs_at_every_call(part: type[nn.Module], runs: list[int]) -> None:
    model = Small(part())
    method = FullGrad(model, graphed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of incomplete terms
        for seed in range(CALLS):
            num_runs = len(runs)
            random.seed(seed)
            map_ = method.attribute(drawn(seed, 1), 1)
            assert len(runs) > num_runs
            random.seed(seed)
            assert torch.equal(map_, expected(model, drawn(seed, 1)))


class Selector:
    """A target whose variable changes."""

    index = 0

    def __call__(self, output: Tensor) -> Tensor:
        return output[:, self.index]


class Cut(nn.Module):
    """A network whose argument says how many columns count."""

    def __init__(self) -> None:
        super().__init__()
        self.own = Small()

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        if number.is_sparse_csr:
            return self.own(x, number.to_dense().sum(1))
        return self.own(x[..., : number.tolist()[0]])


def test_arguments_that_python_reads_are_read_at_every_call() -> None:
    model = Cut()
    method = FullGrad(model, graphed=True)
    for number in (8, 8, 8, 8, 5, 6):
        arguments = drawn(0), 1, torch.tensor([number])
        assert torch.equal(method.attribute(*arguments), FullGrad(model).attribute(*arguments))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_arguments_without_strides_are_no_error() -> None:
    model = Cut()
    arguments = drawn(0), 1, torch.eye(3).to_sparse_csr()
    assert torch.equal(FullGrad(model, graphed=True).attribute(*arguments), FullGrad(model).attribute(*arguments))


def test_checks_inside_an_operation_stay() -> None:
    class Inverted(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return torch.linalg.inv(y)

    method = recorded(Small(Inverted()).double())
    with torch.no_grad():
        method.model.stem.weight.zero_()
    with pytest.raises(RuntimeError, match="singular"):
        method.attribute(drawn(5).double(), 1)


def test_no_source_of_a_recording_stays_in_memory() -> None:
    from torch.fx.graph_module import _loader

    before = len(_loader.eval_cache)
    recorded(Small()).attribute(drawn(5), 1)
    assert len(_loader.eval_cache) == before


def test_threads_keep_the_random_state(runs: list[int]) -> None:
    model = Small(nn.Sequential(nn.ReLU(), AlwaysDropping()))
    method = recorded(model)
    num_runs, before = len(runs), torch.get_rng_state()
    threads = [Thread(target=lambda: [method.attribute(drawn(5), 1) for _ in range(20)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) < num_runs + 10
    assert torch.equal(before, torch.get_rng_state())


def test_functions_of_the_user_run_at_every_call(runs: list[int]) -> None:
    model, selector = Small(), Selector()
    method = FullGrad(model, graphed=True)
    for seed in range(CALLS):
        selector.index = seed % 3
        assert torch.equal(method.attribute(drawn(seed), selector), expected(model, drawn(seed), seed % 3))
    for settings in ({"psi": lambda term: term.sum(1)}, {"layout": lambda term, tensor: None}):
        runs.clear()
        method = FullGrad(model, graphed=True, **settings)
        for seed in range(CALLS):
            method.attribute(drawn(seed), 1)
        assert len(runs) == CALLS


def test_hooks_of_the_user_run_at_every_call(caplog: pytest.LogCaptureFixture) -> None:
    model, seen = Small(), []
    model.part.register_forward_hook(lambda module, args, output: seen.append(1))
    method = FullGrad(model, graphed=True)
    with caplog.at_level("INFO"):
        for seed in range(CALLS):
            method.attribute(drawn(seed), 1)
    assert len(seen) == CALLS
    assert [record.message for record in caplog.records] == [
        "FullGrad does not repeat runs of this network: it has hooks, whose effects a repetition would leave out"
    ]


def test_an_error_before_the_recordings_does_not_end_them(runs: list[int]) -> None:
    method = FullGrad(Small(), graphed=True)
    for target in (9, 1, 9, 1, 1, 1):
        with pytest.raises(TargetError) if target == 9 else nullcontext():
            method.attribute(drawn(0), target)
    num_runs = len(runs)
    method.attribute(drawn(1), 1)  # the seventh call
    assert len(runs) == num_runs


FACTOR = [1.0]


class Global(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y * FACTOR[0]


@pytest.fixture
def factor() -> Iterator[list[float]]:
    yield FACTOR
    FACTOR[0] = 1.0


def test_a_change_outside_the_model_is_found_at_the_next_check(factor: list[float], runs: list[int]) -> None:
    model = Small(Global())
    method = recorded(model)
    factor[0] = 3.0
    for seed in (5, 6, 7):
        method.attribute(drawn(seed), 1)
    num_runs = len(runs)
    with pytest.warns(UserWarning, match="own code now gives other maps.*graphed=True"):
        map_ = method.attribute(drawn(8), 1)
    assert torch.equal(map_, expected(model, drawn(8)))
    for seed in (9, 10):
        for n in (3, 2):  # another kind of batch, too
            assert torch.equal(method.attribute(drawn(seed, n), 1), expected(model, drawn(seed, n)))
    assert len(runs) > num_runs + 4


def test_no_more_kinds_are_remembered_than_stated() -> None:
    method = FullGrad(Small(), graphed=True)
    for n in range(1, 2 * repeated_runs.MAX_KINDS):
        method.attribute(drawn(0, n), 1)
    assert len(method._repeated._runs) == repeated_runs.MAX_KINDS


def test_large_batches_on_a_cpu_are_not_recorded(monkeypatch: pytest.MonkeyPatch, runs: list[int]) -> None:
    monkeypatch.setattr("fg_lightning.fullgrad.term_map.BLOCK", 128)
    method = FullGrad(Small(), graphed=True)
    for seed in range(CALLS):
        method.attribute(drawn(seed), 1)
    assert len(runs) == CALLS


def test_a_mode_of_the_user_meets_every_operation() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    method = recorded(Small())
    with FlopCounterMode(display=False) as counter:
        method.attribute(drawn(5), 1)
    assert "Small.stem" in counter.get_flop_counts() or counter.get_total_flops() > 0
