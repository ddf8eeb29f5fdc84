"""What the network says of a batch, in words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fg_lightning.errors import CannotRun
from fg_lightning.explain.network import Network
from fg_lightning.fullgrad.target import main_output
from fg_lightning.fullgrad.undisturbed import as_the_model_takes, undisturbed


@dataclass(frozen=True)
class Prediction:
    """
    Attributes:
        target: the classes that are explained, [N]; None where the network has one output for each image.
        captions: for each image what was predicted and, if that is another class, what is explained, in a line each.
        rows: for each image the same by column of a table.
    """

    target: Tensor | None
    captions: list[str]
    rows: list[dict[str, object]]


def predict(network: Network, images: Tensor, target: int | None) -> Prediction:
    """
    Args:
        network: what is explained; it is left as it was.
        images: [N, C, H, W].
        target: the class to explain; None for the predicted one.

    Raises:
        CannotRun: if the network does not take these images, or what it gives are no scores of classes, or not finite.
    """
    try:
        with undisturbed(network.model, images.device), torch.no_grad():
            scores = main_output(network.model(as_the_model_takes(images, network.model).clone()))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise CannotRun(
            f"the network fails on images of shape {list(images.shape)}: {error}\n"
            "--size, --mean, --std or --transform say how pictures become what it takes (one mean: grey pictures)"
        ) from error
    if not scores.isfinite().all():
        raise CannotRun(
            "the network's output is not finite (NaN or infinity), so that there is nothing to explain; check its weights"
        )
    if scores.shape == images.shape[:1] or scores.shape == (len(images), 1):
        if target:
            raise CannotRun(f"there is no class {target}: the network has a single output for each image; leave out --target")
        rows: list[dict[str, object]] = [{"output": float(score)} for score in scores.flatten()]
        targets = None if scores.ndim == 1 else scores.new_zeros(len(images), dtype=torch.long)
        return Prediction(targets, [f"output {row['output']:.3g}" for row in rows], rows)
    if scores.ndim != 2 or len(scores) != len(images):
        raise CannotRun(f"the network must give a score for each class, [{len(images)}, K], but gives {list(scores.shape)}")
    if target is not None and not 0 <= target < scores.shape[1]:
        raise CannotRun(f"there is no class {target}: the network has {scores.shape[1]} outputs, 0 to {scores.shape[1] - 1}")
    probabilities = scores.softmax(1)
    predicted = scores.argmax(1)
    targets = predicted if target is None else torch.full_like(predicted, target)
    captions, rows = [], []
    for own, first, explained in zip(probabilities, predicted.tolist(), targets.tolist(), strict=True):
        kinds = {"predicted": first} if first == explained else {"predicted": first, "explained": explained}
        captions.append("\n".join(f"{network.class_name(index)} {float(own[index]):.0%}" for index in kinds.values()))
        row: dict[str, object] = {}
        for kind, index in (("predicted", first), ("explained", explained)):
            row |= {kind: index, f"{kind}_class": network.class_name(index), f"{kind}_probability": f"{float(own[index]):.4f}"}
        rows.append(row)
    return Prediction(targets, captions, rows)
