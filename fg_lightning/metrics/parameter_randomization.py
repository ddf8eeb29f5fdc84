"""Parameter randomization: does a map depend on what the network has learned? (Adebayo et al. 2018)"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.attribution import Factory, find_method
from fg_lightning.fullgrad.preserve_model import as_model_input, preserve_model
from fg_lightning.fullgrad.target import Selection, Target
from fg_lightning.metrics.drift import rank_correlation
from fg_lightning.metrics.sample_mean_metric import SampleMeanMetric

Mode = Literal["cascading", "independent"]


class ParameterRandomization(SampleMeanMetric):
    """Rank correlation of each map with that of a network whose layers have random parameters (Adebayo et al. 2018, section 4).

    A map that hardly changes shows the image, not what the network has learned. A layer is a module with parameters of its own. Its
    `reset_parameters` randomizes it; without this method, the values of each parameter are shuffled. The layers come in the reverse
    order of their registration, which is usually from the output to the input.

    `update(images, target=None)` explains images. `compute()` returns a dict from the name of a layer to the mean correlation, from
    the output on. Each layer costs one explanation of the images; "independent" also costs a copy of the network.

    Args:
        model: the trained network. It is not changed.
        method: a name in `fg_lightning.attribution.METHODS`, or a factory. Default: "fullgrad".
        mode: "cascading" randomizes a layer and all layers that come before it in this order, "independent" only one layer.
            Default: "cascading".
        seed: seed of the random parameters. The global random state is not changed. Default: 0.
        **settings: settings of every torchmetrics metric, such as `sync_on_compute`.

    Raises:
        ValueError: if there is no such method or mode, or the model has no parameters.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> metric = ParameterRandomization(model, "gradient")
        >>> metric.update(torch.rand(2, 1, 8, 8))
        >>> list(metric.compute())
        ['3', '0']
    """

    def __init__(
        self,
        model: nn.Module,
        method: Union[str, Factory] = "fullgrad",
        *,
        mode: Mode = "cascading",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
        self.names = _layer_names(model)
        factory = find_method(method) if isinstance(method, str) else method
        super().__init__(method, mode, seed, **settings)
        self._model = [model]  # in a list, so that torch does not register it as a part of the metric
        self._factory = factory
        self._mode, self._seed = mode, seed

    def update(self, images: Float[Tensor, "n c *s"], target: Target = None) -> None:
        """Explains images and adds their correlations.

        Args:
            images: [N, C, *S], as the model takes them.
            target: as in `fg_lightning.FullGrad`. Default: None, the classes that the trained network predicts. The same classes
                are explained for the random networks.
        """
        (model,) = self._model
        if target is None:
            target = _predict(model, images)
        expected = self._factory(model).attribute(images, target)
        maps = (self._factory(other).attribute(images, target) for other in self._randomize(model))
        self._add(*[rank_correlation(expected, of_random) for of_random in maps])

    def _randomize(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yields the network with one more random layer each time, or with a single random layer."""
        changed = copy.deepcopy(model)
        for number, name in enumerate(self.names):
            changed = copy.deepcopy(model) if self._mode == "independent" else changed
            _randomize_layer(changed.get_submodule(name), self._seed + number)
            yield changed


def _predict(model: nn.Module, images: Tensor) -> Tensor | None:
    """The classes that a network predicts, [N]; None if its output has no classes to choose from."""
    selection = Selection(None, len(images))
    with preserve_model(model, images.device), torch.no_grad():
        selection(model(as_model_input(images, model)))
    return selection.target


def randomize_parameters(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of a network in which every layer has random parameters, as at the end of the cascade of `ParameterRandomization`.

    The network and the global random state are not changed.

    Args:
        model: any network that can be copied.
        seed: seed of the random parameters. Default: 0.

    Raises:
        ValueError: if the model has no parameters.

    Examples:
        >>> model = nn.Linear(3, 2)
        >>> torch.equal(randomize_parameters(model).weight, model.weight)
        False
    """
    changed = copy.deepcopy(model)
    for number, name in enumerate(_layer_names(model)):
        _randomize_layer(changed.get_submodule(name), seed + number)
    return changed


def _layer_names(model: nn.Module) -> tuple[str, ...]:
    """The modules with parameters of their own, from the output on.

    Raises:
        ValueError: if there are none.
    """
    names = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    if not names:
        raise ValueError("the model has no parameters, so there is nothing to randomize")
    return tuple(reversed(names))


def _randomize_layer(layer: nn.Module, seed: int) -> None:
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # `manual_seed` seeds all of them
    with torch.random.fork_rng(devices=gpus), torch.no_grad():
        torch.manual_seed(seed)
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
            return
        for parameter in layer.parameters(recurse=False):
            order = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
