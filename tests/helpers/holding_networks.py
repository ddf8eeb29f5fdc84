"""Networks that hold their parameters and buffers in every way that people do."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune


class Middle(nn.Module):
    """Does nothing, or raises in the middle of a forward."""

    fail = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fail:
            raise KeyError("halfway")
        return x


class Network(nn.Module):
    """[N, 3, 6, 6] -> [N, 5]: a stem, the middle and a head; a subclass does more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.middle = Middle()
        self.head = nn.Linear(64, 5)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.2, 0.2)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.stem(x)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.features(x)).flatten(1))


class TwoNames(Network):
    """The backbone whole, and as a Sequential of its children; the head under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(self.stem, self.norm, nn.ReLU())
        self.body = nn.Sequential(*self.backbone.children())
        self.classifier = nn.ModuleDict({"head": self.head, "other": self.head})
        self.layers = nn.ModuleList([self.stem, self.norm, self.stem])

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier["head"](self.middle(self.features(x)).flatten(1))


class SharedWithALoss(Network):
    """A loss that holds the head, and through it the whole network in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.Module()
        self.loss.head = self.head
        self.loss.prototypes = self.head.weight
        self.loss.of = [self]


class Tied(Network):
    """Two modules with one weight; one buffer in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(3, 4, 3, bias=False)
        self.second.weight = self.stem.weight
        self.other_norm = nn.BatchNorm2d(4)
        self.other_norm.running_mean = self.norm.running_mean
        self.other_norm.register_buffer("weight_too", self.norm.weight)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.stem(x)).relu() + self.other_norm(self.second(x))


class Parametrised(Network):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.stem)
        parametrizations.spectral_norm(self.head)
        self.inner = parametrizations.orthogonal(nn.Linear(64, 64))
        self.again = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.middle(self.features(x)).flatten(1)))


class WithHooksForWeights(Network):
    """Weights that are attributes, computed before each forward."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(self.stem)
        nn.utils.spectral_norm(self.head)
        self.pruned = nn.Conv2d(4, 4, 1)
        prune.l1_unstructured(self.pruned, "weight", 0.5)
        prune.random_unstructured(self.pruned, "bias", 0.5)

    def features(self, x: Tensor) -> Tensor:
        return self.pruned(super().features(x))


class Lazy(Network):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(5)
        self(torch.rand(2, 3, 6, 6))


class LoRA(nn.Module):
    """A frozen linear layer with a low-rank addition, held twice."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.base_layer = base
        self.a, self.b = nn.ParameterDict({"default": torch.randn(2, base.in_features)}), nn.ParameterList([torch.zeros(5, 2)])
        self.active = ("default",)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a[self.active[0]].T @ self.b[0].T


class WithLoRA(Network):
    def __init__(self) -> None:
        super().__init__()
        self.head = LoRA(self.head)


class Unregistered(Network):
    """Modules and parameters that torch does not know: in lists, dictionaries, tuples, objects and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.in_list, self.in_dict = [nn.BatchNorm2d(4).eval()], {"a": {"b": nn.Conv2d(4, 4, 1)}}
        self.in_training = [nn.BatchNorm2d(4)]
        self.in_tuple = (nn.Linear(5, 5), nn.Parameter(torch.ones(5)))
        self.in_object = SimpleNamespace(norm=nn.BatchNorm1d(5).eval(), scale=nn.Parameter(torch.ones(5)))
        hidden = nn.BatchNorm1d(5).eval()
        self.function = lambda x: hidden(x)
        object.__setattr__(self, "hidden", [hidden])
        self.parameter_list = [self.head.weight, self.norm.weight]

    def features(self, x: Tensor) -> Tensor:
        y = super().features(x)
        self.in_training[0](y.detach())
        return self.in_dict["a"]["b"](self.in_list[0](y))

    def forward(self, x: Tensor) -> Tensor:
        self.in_list[0].num_batches_tracked.add_(1)
        y = super().forward(x) * self.parameter_list[0].sum()
        y = self.in_object.norm(self.in_tuple[0](y) * self.in_tuple[1]) * self.in_object.scale
        return self.function(y)


class Recurrent(Network):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(16, 8, bidirectional=True, batch_first=True)
        self.columns = nn.GRU(16, 16, batch_first=True)

    def features(self, x: Tensor) -> Tensor:
        return self.columns(self.rows(super().features(x).flatten(2))[0])[0].reshape(len(x), 4, 4, 4)


class Calling(Network):
    """Calls a part of itself on other parameters, under no_grad, and differentiates within its forward."""

    def features(self, x: Tensor) -> Tensor:
        fast = {name: p * 0.9 for name, p in self.stem.named_parameters()}
        with torch.no_grad():
            frozen = super().features(x)
        return frozen + torch.func.functional_call(self.stem, fast, (x,))


class Tagged(Tensor):
    """A tensor of a class of its own."""


class OfItsOwnClass(Network):
    def __init__(self) -> None:
        super().__init__()
        self.stem.weight = nn.Parameter(self.stem.weight.detach().as_subclass(Tagged))
        self.register_buffer("tagged", torch.ones(5).as_subclass(Tagged))

    def forward(self, x: Tensor) -> Tensor:
        self.tagged += 1
        return super().forward(x) + self.tagged.as_subclass(Tensor)


class Half(Network):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(16, 16, batch_first=True)
        self.shift = torch.ones(5, dtype=torch.float16)
        self.half()

    def features(self, x: Tensor) -> Tensor:
        return self.rows(super().features(x).flatten(2))[0].reshape(len(x), 4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


class Cautious(Network):
    """Looks at the kind of its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        assert all(isinstance(parameter, nn.Parameter) for parameter in self.parameters())
        assert parametrize.is_parametrized(self.stem) is False
        self.stem.weight = self.stem.weight
        return super().forward(x)
