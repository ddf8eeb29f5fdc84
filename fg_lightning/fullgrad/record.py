"""One forward and one backward pass of a model under the tape, which leave everything as it was.

The model runs in evaluation mode on constants, so that the backward pass goes to the input alone and nothing of the model is
touched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fg_lightning.fullgrad.call import is_free, map_tensors
from fg_lightning.fullgrad.hearing import Term, Visitor
from fg_lightning.fullgrad.readings import Reading, operations_of
from fg_lightning.fullgrad.tape import Tape
from fg_lightning.fullgrad.undisturbed import as_the_model_takes, copied, undisturbed, unwrapped


@dataclass(frozen=True, slots=True)
class Recording:
    """What one run found, its biases and their gradients apart, which went to the visitor.

    Attributes:
        images: the input as the model saw it, [N, C, *S].
        output: the explained output, [N].
        input_gradient: its gradient at the input, [N, C, *S].
        terms: the biases that were met, in forward order; one whose output leads nowhere was met but never visited.
        unaccounted: operations whose bias could not be computed.
        linearised: operations whose bias came from the general fallback.
    """

    images: Tensor
    output: Tensor
    input_gradient: Tensor
    terms: list[Term]
    unaccounted: list[str]
    linearised: list[str]


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


def record(
    model: nn.Module,
    images: Tensor,
    select: Callable[[Any], Tensor],
    visitor: Visitor,
    *,
    additional_forward_args: tuple[Any, ...] = (),
    reading: Reading = "exact",
    autocast: bool = False,
) -> Recording:
    """One forward and one backward pass of `model`, in evaluation mode, with every bias handed to `visitor`.

    The model, its buffers, the images and the random state are left as they were, also when it raises.

    Args:
        model: any module.
        images: [N, C, *S], floating-point.
        select: from the model's output to the numbers to explain, [N].
        visitor: called in the backward pass, last operation first.
        additional_forward_args: what the model's forward takes after the images; constants.
        reading: which function is decomposed, see readings.py.
        autocast: keep the autocast that is active around the call; otherwise everything runs in the parameters' own precision.

    Raises:
        SamplesMixed: where the samples of a batch of several cannot be told apart.
        ValueError: if the selected output does not depend on the images.
    """
    with undisturbed(model, images.device, autocast=autocast):
        model = unwrapped(model)
        leaf = as_the_model_takes(images, model).requires_grad_()
        names = {id(module): name for name, module in model.named_modules()}
        tape = Tape(x := leaf.clone(), visitor, names, operations_of(reading))
        with closing(tape.hearing):
            inputs = (x, *map_tensors(copied, additional_forward_args))
            with tape.following_modules(), tape.meeting_what_torch_hides(), tape:
                output = _explained(model, inputs, select)
            if not output.requires_grad or is_free(output):
                raise ValueError(
                    "the model's output does not depend on the images, so there is nothing to decompose; "
                    "does its forward detach them, use torch.inference_mode(), or return a class index? A quantised model has no "
                    "gradients; pass the one that it was converted from."
                )
            if mixed_by := tape.mixed_on_the_way_to(output):
                raise SamplesMixed(mixed_by, output.detach())
            with tape.hearing.on():
                (gradient,) = torch.autograd.grad(output.sum(), leaf, materialize_grads=True)
    output, gradient = (tensor.detach().as_subclass(Tensor) for tensor in (output, gradient))
    return Recording(leaf.detach(), output, gradient, tape.hearing.terms, tape.unaccounted, tape.linearised)


def _explained(model: nn.Module, inputs: tuple[Any, ...], select: Callable[[Any], Tensor]) -> Tensor:
    """The selected output, [N]; an error of the model or of `select` is marked as theirs."""
    try:
        return select(_called(model, inputs))
    except Exception as error:
        error._fg_in_forward = True  # type: ignore[attr-defined]
        raise


def _called(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The model's output.

    Raises:
        ValueError: if a planar network fails on what may be a single image, or a forward converts to half precision itself.
    """
    try:
        return model(*inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        shape = tuple(inputs[0].shape)
        if len(shape) == 3 and any(isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) for m in model.modules()):
            raise ValueError(
                f"the model failed on images of shape {shape}, read as [N, C, L]; "
                f"a single image needs a batch dimension, images[None] ({error})"
            ) from error
        is_about_half = isinstance(error, RuntimeError) and any(dtype in str(error) for dtype in ("BFloat16", "Half"))
        if is_about_half and not torch.is_autocast_enabled(inputs[0].device.type):
            raise ValueError(
                "the forward converts to half precision itself, but weights in half precision are explained in float32; "
                f"explain a copy of the model without that conversion ({error})"
            ) from error
        raise
