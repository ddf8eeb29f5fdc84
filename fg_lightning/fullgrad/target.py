"""Selects the number of a model's output that is explained, for every sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
    """

    def __init__(self, target: Target, num_images: int) -> None:
        self._requested = target
        self._n = num_images
        self.target: Tensor | None = None

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
        if scores.ndim == 1:
            if self._requested is not None and bool(self._requested_indices().any()):
                raise TargetError(
                    "the model's output is one number for each image, [N], so there is no target to choose; pass None"
                )
            return self._check(scores)
        indices = self._indices(scores)
        self.target = indices.squeeze(1)
        strides = torch.tensor([math.prod(scores.shape[i + 1 :]) for i in range(1, scores.ndim)], device=scores.device)
        places = (indices * strides).sum(1, keepdim=True)
        return self._check(scores.flatten(1).gather(1, places).squeeze(1))

    def _indices(self, scores: Tensor) -> Tensor:
        """The requested indices, [N, d], with d the number of dimensions after the batch."""
        depth = scores.ndim - 1
        if self._requested is None:
            if depth > 1:
                raise TargetError(
                    f"the model's output is dense, of shape {tuple(scores.shape)}, and has no single predicted class; "
                    f"pass target as a tuple of {depth} indices or as a function from the output to [N]"
                )
            return scores.detach().argmax(1, keepdim=True)
        indices = self._requested_indices().to(scores.device)
        if indices.shape != (self._n, depth):
            given = f"{indices.shape[0]} targets of {indices.shape[1]} indices"
            raise TargetError(
                f"target gives {given}, but the output of shape {tuple(scores.shape)} needs {depth} "
                f"{'index' if depth == 1 else 'indices'} for each of {self._n} samples"
            )
        sizes = torch.tensor(scores.shape[1:], device=scores.device)
        if bool(((indices < 0) | (indices >= sizes)).any()):
            raise TargetError(
                f"target {indices.squeeze(1).tolist()} is out of range: the output has shape {tuple(scores.shape)}, "
                f"so indices go from 0 to {', '.join(str(size - 1) for size in scores.shape[1:])}"
            )
        return indices

    def _requested_indices(self) -> Tensor:
        requested = self._requested
        if isinstance(requested, (np.ndarray, np.generic)):
            requested = torch.as_tensor(requested)
        if isinstance(requested, Tensor):
            if requested.is_floating_point() or requested.dtype is torch.bool:
                raise TypeError(f"target must hold class indices, integers, but is a tensor of {requested.dtype}")
            requested = requested.detach().long()
            return requested.expand(self._n)[:, None] if requested.numel() == 1 else requested.reshape(len(requested), -1)
        if isinstance(requested, int) and not isinstance(requested, bool):
            return torch.full((self._n, 1), requested)
        if isinstance(requested, Sequence) and not isinstance(requested, str):
            rows = [requested] * self._n if isinstance(requested, tuple) else requested
            try:
                indices = torch.tensor([row if isinstance(row, (tuple, list)) else (row,) for row in rows])
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"target must be integers, one or a tuple for each sample, not {requested!r}") from error
            if indices.is_floating_point() or indices.dtype is torch.bool:
                raise TypeError(f"target must be integers, one or a tuple for each sample, not {requested!r}")
            return indices
        raise TypeError(f"target must be None, an int, a list, a tuple, a tensor or a function, not {type(requested).__name__}")

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
        if not bool(torch.isfinite(selected).all()):
            bad = (~torch.isfinite(selected)).nonzero().flatten().tolist()
            raise ValueError(
                f"the model's output is not finite for samples {bad}; a map of it would be meaningless; check the weights and the "
                "images"
            )
        return selected


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
