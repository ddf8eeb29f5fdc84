"""What every entry to the decomposition shares: images that can be explained, and batches that must be run one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fg_lightning.fullgrad.target import Target, target_of

Result = TypeVar("Result")


class SamplesMixed(RuntimeError):
    """Behind some operation the samples of the batch could not be told apart.

    Attributes:
        operation: that operation and its module.
        output: the explained output of the whole batch, [N].
    """

    def __init__(self, operation: str, output: Tensor) -> None:
        super().__init__(operation)
        self.operation = operation
        self.output = output


def check_model(model: nn.Module) -> None:
    """
    Raises:
        TypeError: if the model is no module.
        ValueError: if it has lazy modules that have not been run.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("the model has lazy modules that do not know their sizes yet; run it once on a batch of images")


def check_images(model: nn.Module, images: Tensor) -> None:
    """
    Raises:
        TypeError: if the model is no module or the images are no floating-point tensor.
        ValueError: if the images have no batch dimension or there are none, something lies on the device "meta", or the model has
            lazy modules that have not been run.
    """
    check_model(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("the operations of a TorchScript model cannot be seen; pass the model that it was made from")
    if isinstance(images, Tensor) and images.is_complex():
        raise TypeError("images must be real; pass real and imaginary part as channels (torch.view_as_real)")
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, C, H, W], not {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating-point, not {images.dtype}: convert them as in training, e.g. images.float() / 255"
        )
    if images.is_meta or any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("images and model must hold values, but tensors on the device 'meta' have none; load them to a CPU or GPU")
    if not 3 <= images.ndim <= 5:
        raise ValueError(
            f"images must be [N, C, *S] with 1 to 3 spatial dimensions, but have shape {tuple(images.shape)}; "
            "a single image needs a batch dimension, images[None]"
        )
    if not len(images):
        raise ValueError("images must hold at least one image, but the batch is empty")


def as_tuple(arguments: Any) -> tuple[Any, ...]:
    """Captum's convention for additional forward arguments: None, one value, or a tuple."""
    return () if arguments is None else arguments if isinstance(arguments, tuple) else (arguments,)


def one_by_one_if_mixed(
    run: Callable[[Tensor, Target, tuple[Any, ...]], Result],
    images: Tensor,
    target: Target,
    arguments: tuple[Any, ...],
    join: Callable[[list[Result], str], Result],
    output_of: Callable[[Result], Tensor],
) -> Result:
    """Runs on the batch; where its samples cannot be told apart, on each alone, if the model gives each the same output alone.

    `join` gets the results of the samples and the operation that made them necessary.

    Raises:
        ValueError: if the model's output for a sample depends on the others, or it cannot be run on one; both name the operation.
    """
    try:
        return run(images, target, arguments)
    except SamplesMixed as mixed:
        n = len(images)
        try:
            parts = [run(*rows_of(images, target, arguments, i, i + 1)) for i in range(n)]
        except Exception as error:
            if not hasattr(error, "_fg_in_forward"):
                raise
            raise ValueError(
                f"the samples of a batch cannot be told apart behind {mixed.operation}, and the model (or the target function) "
                f"cannot be run on one image alone: {error}"
            ) from error
        alone = torch.cat([output_of(part) for part in parts])
        tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(alone.dtype, 5e-2)  # half precision under autocast
        if not torch.allclose(alone, mixed.output.to(alone.dtype), rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"the model mixes the samples of a batch, first in {mixed.operation}: its output for an image depends on the other "
                "images (batch statistics in evaluation?). "
                "Pass one image at a time to explain it alone."
            ) from mixed
        return join(parts, mixed.operation)


def rows_of(
    images: Tensor, target: Target, arguments: tuple[Any, ...], start: int, stop: int
) -> tuple[Tensor, Target, tuple[Any, ...]]:
    """Some images of a batch and what goes with them: of the additional arguments that have a row for each image, those rows."""
    n = len(images)
    rows = tuple(a[start:stop] if isinstance(a, Tensor) and a.ndim and len(a) == n else a for a in arguments)
    return images[start:stop], target_of(target, start, stop), rows
