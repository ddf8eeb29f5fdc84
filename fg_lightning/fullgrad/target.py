"""Selects the number of a model's output that is explained, for every sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fg_lightning.fullgrad.torch_internals import unrecorded

Target = Union[None, int, Sequence[Any], npt.NDArray[Any], Tensor, Callable[[Any], Tensor]]
"""As in Captum: a class for all samples, one for each sample, a tuple of indices for dense outputs, None for the predicted class.
Or a function from the model's output to [N]."""


def target_rows(target: Target, start: int, stop: int) -> Target:
    """The target of samples start:stop of a batch: their rows if the target has one for each sample, else the target itself."""
    if isinstance(target, np.ndarray):
        target = torch.as_tensor(target)
    if isinstance(target, Tensor):
        return target[start:stop] if target.numel() > 1 else target
    return target[start:stop] if isinstance(target, Sequence) and not isinstance(target, (tuple, str)) else target


class TargetError(ValueError):
    """A target that does not fit the model's output."""


class Selection:
    """Selects the explained number of each sample from a model's output, [N].

    Args:
        target: the requested target, see `Target`.
        num_images: number of samples, N.

    Attributes:
        target: the explained classes, [N] (or [N, d] for tuples of d indices). None before the call, or if there was no choice.
        sizes: the shape of the model's output for one sample. None before the call, or if the target is a function.
    """

    def __init__(self, target: Target, num_images: int) -> None:
        self._requested = target
        self._n = num_images
        self.target: Tensor | None = None
        self.sizes: torch.Size | None = None

    def __call__(self, output: Any) -> Tensor:
        """The explained output of each sample, [N].

        Raises:
            TypeError: if there is no tensor in the output, or the target is of an unknown kind.
            TargetError: if the target does not fit the output.
            ValueError: if the output is not a batch of N, or not finite.
        """
        if callable(self._requested) and not isinstance(self._requested, Tensor):
            return self._check(self._requested(output))
        scores = main_output(output)
        if scores.ndim == 0 or scores.shape[0] != self._n:
            raise ValueError(
                f"the model's output has shape {tuple(scores.shape)} for {self._n} images, expected [{self._n}, ...]; "
                "images must have a batch dimension, [N, C, H, W] (add one with images[None])"
            )
        self.sizes = scores.shape[1:]
        if scores.ndim == 1:
            if self._requested is not None:
                check_indices(requested_indices(self._requested, self._n), scores.shape)
            return self._check(scores)
        indices = self._indices(scores)
        self.target = indices.squeeze(1)
        if scores.ndim == 2:
            return self._check(scores.gather(1, indices).squeeze(1))
        with unrecorded():
            strides = torch.tensor([math.prod(scores.shape[i + 1 :]) for i in range(1, scores.ndim)], device=scores.device)
        places = (indices * strides).sum(1, keepdim=True)
        return self._check(scores.flatten(1).gather(1, places).squeeze(1))

    def _indices(self, scores: Tensor) -> Tensor:
        """The requested indices, [N, d], with d the number of dimensions after the batch."""
        if self._requested is not None:
            indices = requested_indices(self._requested, self._n).to(scores.device)
            check_indices(indices, scores.shape)
            return indices
        if scores.ndim > 2:
            raise TargetError(
                f"the model's output is dense, of shape {tuple(scores.shape)}, and has no single predicted class; "
                f"pass target as a tuple of {scores.ndim - 1} indices or as a function from the output to [N]"
            )
        return scores.detach().argmax(1, keepdim=True)

    def _check(self, selected: Any) -> Tensor:
        """Checks that the selected output is one finite, real number for each sample, and returns it."""
        if not isinstance(selected, Tensor) or selected.shape != (self._n,):
            got = f"shape {tuple(selected.shape)}" if isinstance(selected, Tensor) else type(selected).__name__
            raise ValueError(f"the explained output must be one number for each of {self._n} samples, a tensor [N], but is {got}")
        if selected.is_complex():
            raise ValueError(
                f"the explained output must be real, but is {selected.dtype}; pass target as a function to real numbers, such as "
                "lambda output: output.abs()[:, 0]"
            )
        check_finite(selected)
        return selected


def requested_indices(requested: Any, num_images: int) -> Tensor:
    """A requested target as indices, [N, d], with d the number of indices for each sample.

    Raises:
        TypeError: if it is of an unknown kind.
    """
    if isinstance(requested, (np.ndarray, np.generic)):
        requested = torch.as_tensor(requested)
    if isinstance(requested, Tensor):
        if requested.is_floating_point() or requested.dtype is torch.bool:
            raise TypeError(f"target must hold class indices, integers, but is a tensor of {requested.dtype}")
        requested = requested.detach().long()
        requested = requested.clone() if requested.is_inference() else requested  # autograd has to keep it
        return requested.expand(num_images)[:, None] if requested.numel() == 1 else requested.reshape(len(requested), -1)
    if isinstance(requested, int) and not isinstance(requested, bool):
        return torch.full((num_images, 1), requested)
    if isinstance(requested, Sequence) and not isinstance(requested, str):
        rows = [requested] * num_images if isinstance(requested, tuple) else requested
        try:
            indices = torch.tensor([row if isinstance(row, (tuple, list)) else (row,) for row in rows])
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"target must be integers, one or a tuple for each sample, not {requested!r}") from error
        if indices.is_floating_point() or indices.dtype is torch.bool:
            raise TypeError(f"target must be integers, one or a tuple for each sample, not {requested!r}")
        return indices
    raise TypeError(f"target must be None, an int, a list, a tuple, a tensor or a function, not {type(requested).__name__}")


def check_indices(indices: Tensor, shape: torch.Size) -> None:
    """Checks that indices, [N, d], fit scores of this shape, [N, ...].

    Raises:
        TargetError: if they do not.
    """
    num_images, *sizes = shape
    with unrecorded():
        if not sizes:
            if bool(indices.any()):
                raise TargetError(
                    "the model's output is one number for each image, [N], so there is no target to choose; pass None"
                )
            return
        if indices.shape != (num_images, len(sizes)):
            given = f"{indices.shape[0]} targets of {indices.shape[1]} indices"
            raise TargetError(
                f"target gives {given}, but the output of shape {tuple(shape)} needs {len(sizes)} "
                f"{'index' if len(sizes) == 1 else 'indices'} for each of {num_images} samples"
            )
        if bool(((indices < 0) | (indices >= torch.tensor(sizes, device=indices.device))).any()):
            raise TargetError(
                f"target {indices.squeeze(1).tolist()} is out of range: the output has shape {tuple(shape)}, "
                f"so indices go from 0 to {', '.join(str(size - 1) for size in sizes)}"
            )


def check_finite(output: Tensor) -> None:
    """Checks an explained output, [N].

    Raises:
        ValueError: if it is not finite.
    """
    with unrecorded():
        if math.isfinite(output.detach().sum().item()):  # one operation for most outputs
            return
        bad = (~torch.isfinite(output)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the model's output is not finite for samples {bad}; a map of it would be meaningless; check the weights and the "
            "images"
        )


def main_output(output: Any) -> Tensor:
    """The scores in a model's output: the tensor itself, `logits` or `out` of a mapping or dataclass, or the first item of a tuple.

    A tensor without dimensions, such as a loss, is skipped if there is another one.

    Raises:
        TypeError: if there is no tensor there.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    items = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(items, (tuple, list)) and items:
        return main_output(next((item for item in items if not (isinstance(item, Tensor) and item.ndim == 0)), items[0]))
    raise TypeError(
        f"found no scores in the model's output of type {type(output).__name__}; "
        "pass target as a function from the output to a tensor [N]"
    )
