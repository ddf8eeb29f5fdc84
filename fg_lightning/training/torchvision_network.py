"""Classifiers of torchvision and the 9-layer VGG, and functions that adapt them to other images and classes."""

from __future__ import annotations

import warnings
from itertools import takewhile
from typing import Any

import torch
import torchvision.models
from torch import nn
from torchvision.models import VGG, GoogLeNet, Inception3

from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import from_torchvision

VGG9 = "vgg9_bn"
"""Name of the 9-layer VGG with batch norm for CIFAR's images, which torchvision does not have."""


def vgg9() -> VGG:
    """The 8 convolutions of VGG-11 with batch norm and one linear layer, with random weights and 100 outputs.

    The source is the early code of Srinivas & Fleuret (github.com/idiap/fullgrad-saliency, vgg_cifar.py at commit de6cae5). Five
    poolings reduce 32 x 32 pixels to one place; for larger images, the mean over places is used.
    """
    network = torchvision.models.vgg11_bn()
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, 100)  # type: ignore[assignment]
    return network


def classifier(name: str, weights: str | None = None) -> nn.Module:
    """A classifier of torchvision without its auxiliary heads, so that its output is logits [N, K] in training, too.

    Args:
        name: name in `torchvision.models.list_models()`, or "vgg9_bn".
        weights: "DEFAULT", the name of another set of weights, or None for random weights. Default: None.

    Raises:
        CannotRun: if there is no such classifier or set of weights, or the weights cannot be downloaded.
    """
    if name == VGG9:
        if weights not in (None, "none"):
            raise CannotRun(f"{VGG9} has random weights only, not {weights!r}; leave out --model.weights")
        return vgg9()
    with warnings.catch_warnings():  # Inception and GoogLeNet announce a future change of their random weights
        warnings.filterwarnings("ignore", "The default weight initialization", FutureWarning)
        network = from_torchvision(name, weights or "none").model
    if isinstance(network, GoogLeNet):
        network.aux_logits, network.aux1, network.aux2 = False, None, None
    if isinstance(network, Inception3):
        network.aux_logits, network.AuxLogits = False, None
    return network


def outputs(network: nn.Module) -> int:
    """The number of classes of a classifier."""
    _, head = _head(network)
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels


def set_outputs(network: nn.Module, classes: int) -> None:
    """Replaces the last layer by an untrained one with `classes` outputs, if their number differs."""
    path, head = _head(network)
    bias = head.bias is not None
    if outputs(network) == classes:
        return
    if isinstance(head, nn.Linear):
        new: nn.Module = nn.Linear(head.in_features, classes, bias)
    else:
        new = nn.Conv2d(head.in_channels, classes, 1, bias=bias)  # SqueezeNet
    network.set_submodule(path, new.to(head.weight))


def channels(network: nn.Module) -> int:
    """The number of channels of a classifier's input."""
    return _stem(network)[1].in_channels


@torch.no_grad()
def set_channels(network: nn.Module, wanted: int) -> None:
    """Replaces the first convolution by one for images of `wanted` channels, if their number differs.

    It keeps the old weights. For one channel it sums them over the channels, so that a grey image gives the same output as before
    in all channels. For more channels it repeats them, scaled by old channels / new channels.
    """
    path, old = _stem(network)
    if old.in_channels == wanted:
        return
    new = _convolution_like(old, in_channels=wanted)
    order = torch.arange(wanted) % old.in_channels
    new.weight.copy_(old.weight.sum(1, keepdim=True) if wanted == 1 else old.weight[:, order] * old.in_channels / wanted)
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    network.set_submodule(path, new)
    if isinstance(network, GoogLeNet | Inception3):
        network.transform_input = False  # it needs three channels


def keep_resolution(network: nn.Module) -> None:
    """Keeps the resolution at the network's beginning, as is usual for CIFAR's 32 x 32 pixels (He et al. 2016, section 4.2).

    The first convolution gets stride 1 and a kernel of 3 x 3, and the max-pooling between it and the second is removed. Networks
    that begin with patches, such as ViT, stay unchanged.
    """
    path, old = _stem(network)
    if old.stride == (1, 1) or old.stride == old.kernel_size:
        return
    small = _convolution_like(old, kernel_size=3, stride=1, padding=1)
    if old.kernel_size == (3, 3):
        small.load_state_dict(old.state_dict())
    second = _convolutions(network)[1][1]
    before = list(takewhile(lambda found: found[1] is not second, network.named_modules()))
    network.set_submodule(path, small)
    for name, module in before:
        if isinstance(module, nn.MaxPool2d):
            network.set_submodule(name, nn.Identity())


def _convolution_like(old: nn.Conv2d, **changed: int) -> nn.Conv2d:
    same = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    given: dict[str, Any] = {name: getattr(old, name) for name in same} | changed
    return nn.Conv2d(**given, bias=old.bias is not None).to(old.weight)


def _stem(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """The path of the first convolution, and the convolution."""
    return _convolutions(network)[0]


def _head(network: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The path of the last layer with weights, and the layer."""
    return [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def _convolutions(network: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
