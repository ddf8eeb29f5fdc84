"""Networks whose forwards change what they hold, and a table of all networks that must be left as they were."""

from __future__ import annotations

import random
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn
from torchmetrics import MeanMetric

from tests.helpers.holding_networks import (
    Calling,
    Cautious,
    Half,
    Lazy,
    Network,
    OfItsOwnClass,
    Parametrised,
    Recurrent,
    SharedWithALoss,
    Tied,
    TwoNames,
    Unregistered,
    WithHooksForWeights,
    WithLoRA,
)


class Buffers(Network):
    """Buffers that are not saved, None, counted up, replaced, filled in place, written through `.data`, or require gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temporary", torch.ones(5), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("replaced", torch.ones(5))
        self.register_buffer("data", torch.ones(5))
        self.register_buffer("trained", torch.ones(5, requires_grad=True))
        self.running = (torch.zeros(4), torch.ones(4))

    def features(self, x: Tensor) -> Tensor:
        y = super().features(x)
        F.batch_norm(y.detach(), *self.running, training=True)
        return y

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.temporary[0] = 2.0
        self.replaced = self.replaced * 2
        self.data.data.mul_(3)
        self.nothing = self.replaced
        return super().forward(x) * self.temporary * self.trained + self.data + self.nothing


class WritesToItsParameters(Network):
    """Weights that are clipped, normalised, filled in and replaced by the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(5, 64))
        self.table = nn.Embedding(3, 64, max_norm=0.5)
        self.scale = nn.Parameter(torch.ones(5))
        self.offset = nn.Parameter(torch.ones(5))
        self.through_numpy = nn.Parameter(torch.ones(5))

    def features(self, x: Tensor) -> Tensor:
        self.stem.weight.data.clamp_(-0.1, 0.1)
        torch.clamp(self.stem.bias.data, -0.01, 0.01, out=self.stem.bias.data)
        self.norm.weight.data = self.norm.weight.data.clamp_max(0.5)
        return super().features(x)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
            self.head.weight.view(-1)[3] = 7.0
            nn.init.zeros_(self.head.bias)
            torch._foreach_mul_([self.scale, self.offset], 2.0)
        self.through_numpy.detach().numpy()[0] = 5
        y = super().forward(x) + self.table(torch.tensor([0, 2])).sum()
        return (y + F.linear(self.features(x).flatten(1), self.prototypes)) * self.scale + self.offset * self.through_numpy


class Clipping(torch.autograd.Function):
    """A product with a weight that its forward clips."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        weight.data.clamp_(-0.05, 0.05)
        ctx.save_for_backward(weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (weight,) = ctx.saved_tensors
        return gradient * weight, gradient.sum(0)


class WritesInACustomFunction(Network):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return Clipping.apply(super().forward(x), self.scale)


class Binarised(Network):
    """Keeps real weights as an attribute of the parameter (BinaryNet)."""

    def features(self, x: Tensor) -> Tensor:
        if not hasattr(self.stem.weight, "org"):
            self.stem.weight.org = self.stem.weight.data.clone()
        self.stem.weight.data = self.stem.weight.org.sign()
        return super().features(x)


class BinarisedBefore(Binarised):
    def __init__(self) -> None:
        super().__init__()
        self.stem.weight.org = self.stem.weight.data.clone()

    def features(self, x: Tensor) -> Tensor:
        self.stem.weight.org.mul_(1.5)
        return super().features(x)


class Restless(Network):
    """Registers, deletes and replaces parameters, buffers, modules and hooks in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(5))
        self.last = nn.Parameter(torch.ones(5))
        self.register_buffer("table", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first
        del self.first
        self.first = nn.Parameter(first * 2)
        self.last = nn.Parameter(torch.zeros(5))
        self.new = nn.Parameter(torch.ones(5))
        self.register_buffer("new_buffer", torch.ones(5))
        del self.table
        self.table = torch.zeros(5)
        self.stem.bias = None
        self.stem.bias = nn.Parameter(torch.zeros(4))
        self.head.weight = self.head.weight
        self.head.weight.requires_grad_(False)
        self.extra = nn.Linear(5, 5)
        self.norm = nn.Sequential(nn.Identity(), self.norm)
        self.head.register_forward_hook(lambda module, args, output: output * 1)
        self.middle.training = True
        y = super().forward(x)
        del self.extra.bias
        return self.extra.weight.sum() * y * self.first + self.last + self.new


@dataclass
class State:
    count: int = 0
    cache: dict[str, Any] = field(default_factory=dict)


class Meter:
    """Somebody's own, no dataclass."""

    def __init__(self) -> None:
        self.total, self.history = torch.zeros(()), [torch.zeros(2)]


class Remembering(Network):
    """Keeps in plain attributes, objects and containers what it has computed, some of it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.meter, self.space = State(), Meter(), SimpleNamespace(weight=None)
        self.total, self.kept = torch.zeros(()), None
        self.pair = (torch.zeros(2), [torch.zeros(2)])
        self.nested = {"a": [{"b": torch.zeros(2)}]}
        self.metric = MeanMetric()
        self.metric.update(1.0)
        self.generator = torch.Generator().manual_seed(0)
        self.numpys = np.random.default_rng(0)

    @cached_property
    def doubled(self) -> Tensor:
        return self.head.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        self.state.count += 1
        self.state.cache["w"] = self.head.weight * 2
        self.space.weight = self.stem.weight + 1
        self.total += 1
        self.meter.total += 1
        self.meter.history[0].add_(1)
        self.meter.history.append(x)
        self.pair[0].add_(1)
        self.pair[1][0].add_(1)
        self.nested["a"][0]["b"].mul_(2).add_(1)
        self.nested["a"][0]["c"] = x
        self.metric.update(x.detach().mean())
        noise = torch.rand(5, generator=self.generator) + float(self.numpys.random()) + random.random() + np.random.rand()
        y = super().forward(x) + F.linear(self.features(x).flatten(1), self.doubled) + noise * 1e-3
        self.kept = y
        return y


class RememberedBefore(Remembering):
    """What it remembers has a history of its own, which leads to its parameters."""

    def __init__(self) -> None:
        super().__init__()
        _ = self.doubled
        self.space.weight = self.stem.weight * 2

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) + F.conv2d(x, self.space.weight)


class Bereft(Network):
    """Holds proxies of an object that is gone, as a LightningModule may of its Trainer, and of itself."""

    def __init__(self) -> None:
        super().__init__()
        vars(self)["gone"] = weakref.proxy(Meter())  # torch itself cannot be asked to set it
        self.all = [weakref.proxy(self)]

    def forward(self, x: Tensor) -> Tensor:
        self.gone = None
        return super().forward(x)


def with_gradients_of_inference() -> Network:
    with torch.inference_mode():
        return Network()


class AttributeDict(dict[str, Any]):
    """Keeps its items as attributes, too, as EasyDict does."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        setattr(self, key, value)


class Stack(list[Any]):
    def extend(self, items: Any) -> None:
        raise TypeError("a stack grows by append")


class Cache(OrderedDict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key, last=False)


class Counting(Network):
    """Counts in arrays and in containers of classes of their own, some of which hold its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter(forward=3)
        self.means = np.zeros(4)
        self.in_a_list = [np.ones(2)]
        self.options, self.stack, self.cache = AttributeDict(), Stack([self.head.bias]), Cache(a=1, b=2)
        self.options["weight"] = self.head.weight
        self.stack.top = self.head.bias
        self.options["scale"] = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.update(["forward", "other"])
        self.means += x.detach().mean().item()
        self.in_a_list[0][0] = 7
        self.cache["a"] = self.cache["c"] = x
        self.stack.append(x)
        self.options["seen"] = x
        y = F.linear(self.middle(self.features(x)).flatten(1), self.options.weight, self.stack[0])
        return y * self.options["scale"] + self.stack.top


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "modules under two names": TwoNames,
    "modules shared with a loss": SharedWithALoss,
    "tied parameters and buffers": Tied,
    "parametrisations": Parametrised,
    "weights computed by hooks": WithHooksForWeights,
    "lazy modules": Lazy,
    "LoRA, ParameterList, ParameterDict": WithLoRA,
    "modules that are not registered": Unregistered,
    "buffers of all kinds": Buffers,
    "parameters that are written to": WritesToItsParameters,
    "parameters that a custom function writes to": WritesInACustomFunction,
    "parameters that carry attributes": Binarised,
    "parameters that carry attributes from before": BinarisedBefore,
    "registered and deleted in the forward": Restless,
    "remembered": Remembering,
    "remembered from before": RememberedBefore,
    "recurrent": Recurrent,
    "functional calls": Calling,
    "tensors of a class of their own": OfItsOwnClass,
    "half precision": Half,
    "looks at its parameters": Cautious,
    "proxies of what is gone": Bereft,
    "arrays and containers of a class of their own": Counting,
    "inference tensors": with_gradients_of_inference,
    "DataParallel": lambda: nn.DataParallel(TwoNames()),
    "compiled": lambda: torch.compile(TwoNames()),
    "in a Fabric": lambda: Fabric(accelerator="cpu").setup(TwoNames()),
    "in a Sequential, twice": lambda: nn.Sequential(*[nn.Conv2d(3, 3, 1)] * 2, partial_module()),
}


def partial_module() -> nn.Module:
    """A network with a partial of its own parameters."""

    class Partial(Network):
        def __init__(self) -> None:
            super().__init__()
            self.last = partial(F.linear, weight=self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.features(x)).flatten(1))

    return Partial()
