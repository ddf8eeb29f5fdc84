"""Chooses the class that is explained: predicted, the label, a random one, or a given one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Union
from zlib import crc32

import numpy as np
import torch
from captum.attr import Attribution
from torch import Tensor, nn

from fg_lightning.errors import CannotRun
from fg_lightning.fullgrad.preserve_model import as_model_input, preserve_model
from fg_lightning.fullgrad.target import main_output
from fg_lightning.fullgrad.torch_internals import unwrap_model

Target = Union[Literal["predicted", "label", "random"], int]
"""A class by its number, or one of these:

- predicted: the class that the explained network predicts. Its masks give that prediction away.
- label: the right class. Its masks give the right answer away.
- random: a class drawn for every image from the seed, the same for all methods.
"""

NAMES = ("predicted", "label", "random")


def check_target(target: Any) -> None:
    """Raises ValueError if it is not a `Target`."""
    if isinstance(target, str) and target in NAMES:
        return
    if isinstance(target, bool) or not isinstance(target, int) or target < 0:
        raise ValueError(f"target must be one of {', '.join(NAMES)}, or the number of a class, from 0; not {target!r}")


def choose_classes(
    target: Target, labels: Tensor | None, model: nn.Module, images: Tensor, split: str, indices: Iterable[int], seed: int
) -> Tensor | int | None:
    """The explained class of each image, [N], or one number for all images. None: the predicted class.

    Args:
        target: the setting.
        labels: labels of the images, [N]. None if there are none.
        model: the network. Its output has a number for each class.
        images: input of the network, [N, C, *S].
        split: name of the split.
        indices: indices of the images in the split.
        seed: seed of the random classes.

    Raises:
        CannotRun: if the target is "label" without labels, or "random" without an output [N, K].
    """
    if target == "predicted" or isinstance(target, int):
        return None if isinstance(target, str) else target
    if target == "label":
        if labels is None:
            raise CannotRun(
                "target label needs labels, but no integers [N] were found behind the images in the batches; let the data set "
                "give the label after the image, or use target predicted"
            )
        return labels
    scores = main_output(compute_output(model, images))
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise CannotRun(
            "target random draws a class for each image, but the network's output is not one number for each class: it has "
            f"shape {list(scores.shape)} for {len(images)} images, expected [{len(images)}, K]; use target predicted"
        )
    return torch.tensor([draw_class(scores.shape[1], split, index, seed) for index in indices], device=images.device)


def draw_class(num_classes: int, split: str, index: int, seed: int) -> int:
    """A class for one image, each as likely as any other. It depends on the arguments alone."""
    return int(np.random.default_rng([seed, crc32(split.encode()), index]).integers(num_classes))


def compute_maps(attribution: Attribution, images: Tensor, classes: Tensor | int | None) -> Tensor:
    """A method's maps of images, in Lightning's inference mode, too: autograd cannot use its tensors, so they are copied."""
    with torch.inference_mode(False), torch.enable_grad():
        maps: Tensor = attribution.attribute(images.clone(), classes.clone() if isinstance(classes, Tensor) else classes)
    return maps.detach()


def compute_output(model: nn.Module, images: Tensor) -> Any:
    """A network's output, in evaluation mode."""
    with preserve_model(model, images.device), torch.no_grad():
        network = unwrap_model(model)
        return network(as_model_input(images, network).clone())
