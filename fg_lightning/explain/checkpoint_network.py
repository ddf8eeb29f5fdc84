"""Loads the network of each checkpoint of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Union

import torch
import torchvision.models
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fg_lightning.checkpoints import one_line
from fg_lightning.errors import CannotRun, list_briefly
from fg_lightning.explain.load_network import import_object
from fg_lightning.recording.checkpoint_series import HUGGING_FACE, find_weights, read_weights_file

IMAGENET_CLASSES = 1000
"""Default number of outputs of torchvision's classifiers."""


class CheckpointNetwork:
    """Loads the networks of checkpoints.

    A LightningModule is loaded by its own `load_from_checkpoint`, with the hyperparameters in the checkpoint, and a network of
    transformers by its `from_pretrained`. Any other network is built once, and gets the weights of each checkpoint. Nothing is
    trained, and no code in a checkpoint runs.

    Args:
        model: name of a classifier of torchvision; import path of a network, of its class or of a function that builds it; or such
            a class or function.
        prefix: text before the network's parameter names in the checkpoints. Default: detected.

    Raises:
        CannotRun: if there is no such network.
    """

    def __init__(self, model: Union[str, Callable[[], nn.Module]], prefix: str | None = None) -> None:
        self.name = model if isinstance(model, str) else getattr(model, "__name__", str(model))
        self._prefix = prefix
        self._network: nn.Module | None = None
        self._options: dict[str, Any] = {}
        self._class: type[LightningModule] | None = None
        self._build: Callable[[], nn.Module] | None = None
        if isinstance(model, str) and ("." in model or ":" in model):
            model = import_object(model)
        if isinstance(model, str):
            names = torchvision.models.list_models(module=torchvision.models)
            if model not in names:
                raise CannotRun(
                    f"torchvision has no classifier {model!r}; give your own network by its import path, --model my_module.Net"
                )
        elif isinstance(model, nn.Module):
            self._network = model
        else:
            kind = next((value for value in _parts(model) if isinstance(value, type)), None)
            if kind is not None and issubclass(kind, LightningModule):
                self._class, self.name = kind, kind.__name__
                self._options = _chosen_options(kind, getattr(model, "keywords", {}))
            elif not callable(model):
                raise CannotRun(f"{self.name} is {type(model).__name__}, but a network, its class or a function is needed")
            self._build = model

    def load(self, path: Path) -> nn.Module:
        """The network of a checkpoint, on the CPU. It may be the same object as for the previous checkpoint, with other weights.

        Raises:
            CannotRun: if the file cannot be read, or does not hold the network.
        """
        content = read_weights_file(path)
        try:
            if self._class is not None and "pytorch-lightning_version" in content:
                return self._load_lightning(self._class, path, content)
            pretrained = self._build if isinstance(self._build, type) and hasattr(self._build, "from_pretrained") else None
            if self._network is None and pretrained is None:
                self._network = self._build_network(content)
            if pretrained is None and hasattr(self._network, "from_pretrained"):
                pretrained = type(self._network)
            if pretrained is not None and path.name in HUGGING_FACE and (path.parent / "config.json").is_file():
                return _load_pretrained(pretrained, path.parent)
            if self._network is None:
                self._network = self._build_network(content)
            self._network.load_state_dict(find_weights(content, self._network.state_dict(), self._prefix))
            return self._network
        except CannotRun as error:
            raise CannotRun(f"{path.name} cannot be loaded into {self.name}: {error}") from error
        except Exception as error:  # an error of the user's class, or weights of other shapes
            raise CannotRun(f"{path.name} cannot be loaded into {self.name}: {one_line(error)}") from error

    def _load_lightning(self, kind: type[LightningModule], path: Path, content: Mapping[str, Any]) -> nn.Module:
        kept = content.get("hyper_parameters") or {}
        options = {name: value for name, (value, is_default) in self._options.items() if not (is_default and name in kept)}
        module: nn.Module = kind.load_from_checkpoint(path, map_location="cpu", **options)  # checked by `load`
        return module

    def _build_network(self, content: Mapping[str, Any]) -> nn.Module:
        network = self._build() if self._build is not None else _build_torchvision(self.name, content, self._prefix)
        if not isinstance(network, nn.Module):
            raise CannotRun(f"it gives {type(network).__name__}, but a torch.nn.Module is needed")
        return network


def _load_pretrained(kind: Any, folder: Path) -> nn.Module:
    """The network in a folder of Hugging Face's Trainer. The weights' names there may differ from those in the network.

    Raises:
        CannotRun: if weights are missing: transformers would initialize them at random.
    """
    network, facts = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    missing = sorted(facts["missing_keys"])
    if missing:
        raise CannotRun(
            f"it lacks {len(missing)} of the network's weights ({list_briefly(missing, 3)}); it may belong to another network"
        )
    assert isinstance(network, nn.Module)
    return network


def _parts(model: Any) -> list[Any]:
    """A class, or the parts of a partial of one, as the command line makes it from `--model my.Net --model.width 8`."""
    return [model, *model.args, *_parts(model.func)] if isinstance(model, partial) else [model]


def _chosen_options(kind: type, options: Mapping[str, Any]) -> dict[str, tuple[Any, bool]]:
    """Options, and whether each is the class's default. The hyperparameters of a checkpoint override defaults."""
    defaults = {name: parameter.default for name, parameter in signature(kind).parameters.items()}
    return {name: (value, defaults.get(name, Parameter.empty) == value) for name, value in options.items()}


def _build_torchvision(name: str, content: Mapping[str, Any], prefix: str | None) -> nn.Module:
    """A classifier of torchvision with as many outputs as in a checkpoint."""
    with torch.device("meta"):
        usual = torchvision.models.get_model(name, weights=None).state_dict()
    weights = find_weights(content, usual, prefix)
    heads = {len(weights[key]) for key, value in usual.items() if _is_head(value, weights[key])}
    options = {"num_classes": heads.pop()} if len(heads) == 1 else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return network


def _is_head(usual: Tensor, own: Tensor) -> bool:
    """Whether a weight differs from torchvision's only by its number of outputs."""
    return usual.ndim > 0 and usual.ndim == own.ndim and len(usual) == IMAGENET_CLASSES and usual.shape[1:] == own.shape[1:]
