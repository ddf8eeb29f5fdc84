"""One forward and one backward pass of a model under the tape, which leave everything as it was.

The model runs in evaluation mode on constants: the backward pass goes to the input alone and changes nothing of the model.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, Union, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fg_lightning.fullgrad.bias_hooks import Term, TermVisitor
from fg_lightning.fullgrad.model_constants import ModelConstants
from fg_lightning.fullgrad.operation import map_tensors
from fg_lightning.fullgrad.preserve_model import as_model_input, copy_argument, preserve_model
from fg_lightning.fullgrad.readings import Reading, find_reading
from fg_lightning.fullgrad.tape import Tape
from fg_lightning.fullgrad.target import Selection, Target, target_rows
from fg_lightning.fullgrad.torch_internals import modules_by_name, registered_tensors, unwrap_model

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


OneOrSeveral = Union[Tensor, tuple[Tensor, ...]]
"""Images [N, C, *S]; a tuple of them for a model of several image inputs, as Captum has it."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Image inputs, each [N, C, *S], the target (see `Target`), and additional arguments of the model's forward."""

    images: tuple[Tensor, ...]
    target: Target = None
    arguments: tuple[Any, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, inputs: OneOrSeveral, target: Target, additional_forward_args: Any) -> Batch:
        """A batch for this model. Raises the errors of `check_images`."""
        images = inputs if isinstance(inputs, tuple) else (inputs,)
        for of_input in images or (None,):
            check_images(model, of_input)
        sizes = [len(of_input) for of_input in images]
        if len(set(sizes)) > 1:
            counts = ", ".join(map(str, sizes))
            raise ValueError(f"each image input must have one image for each sample, but they have {counts} images")
        return cls(images, target, as_tuple(additional_forward_args))

    def __len__(self) -> int:
        return len(self.images[0])

    def rows(self, start: int, stop: int) -> Batch:
        """The images from `start` to `stop`, with the same rows of targets and of arguments that have one row for each image."""
        arguments = tuple(a[start:stop] if isinstance(a, Tensor) and a.ndim and len(a) == len(self) else a for a in self.arguments)
        return Batch(tuple(image[start:stop] for image in self.images), target_rows(self.target, start, stop), arguments)


def as_tuple(arguments: Any) -> tuple[Any, ...]:
    """Additional forward arguments as Captum takes them: None, one value, or a tuple."""
    return () if arguments is None else arguments if isinstance(arguments, tuple) else (arguments,)


def check_model(model: nn.Module) -> list[Tensor]:
    """Checks that a model can be explained.

    Returns:
        The parameters and buffers.

    Raises:
        TypeError: if the model is not a module.
        ValueError: if it has lazy modules that were never run.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    tensors = registered_tensors(model)
    if any(map(is_lazy, tensors)):
        raise ValueError("the model has lazy modules that do not know their sizes yet; run it once on a batch of images")
    return tensors


def check_images(model: nn.Module, images: Any) -> None:
    """Checks that a model can be explained on these images.

    Raises:
        TypeError: if the model is not a module or is a TorchScript model, or the images are not a real floating-point tensor.
        ValueError: if the batch is empty or the images have no batch dimension, a tensor is on the device "meta", or the model has
            lazy modules that were never run.
    """
    tensors = check_model(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("the operations of a TorchScript model cannot be followed; pass the model that it was made from")
    if isinstance(images, Tensor) and images.is_complex():
        raise TypeError("images must be real; pass real and imaginary part as channels (torch.view_as_real)")
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, C, H, W], not {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating-point, not {images.dtype}: convert them as in training, e.g. images.float() / 255"
        )
    if images.is_meta or any(tensor.is_meta for tensor in tensors):
        raise ValueError("images and model must hold values, but tensors on the device 'meta' have none; load them to a CPU or GPU")
    if not 3 <= images.ndim <= 5:
        raise ValueError(
            f"images must be [N, C, *S] with 1 to 3 spatial dimensions, but have shape {tuple(images.shape)}; "
            "a single image needs a batch dimension, images[None]"
        )
    if not len(images):
        raise ValueError("images must hold at least one image, but the batch is empty")


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The result of a run without the values of the terms, which the visitors received.

    Attributes:
        output: the explained output, [N].
        target: the explained classes, [N] (or [N, d] for tuples of d indices); None if there was no choice.
        terms: the biases of the forward pass, in its order. The visitors do not receive a bias that the output does not depend on.
        missing_ops: operations whose bias could not be computed.
        fallback_ops: operations whose bias the general fallback computed.
        sizes: the shape of the model's output for one sample; None if the target is a function.
        constants: what the model held and what stood in for it.
        reads_values: whether the model turned values of tensors into Python's or NumPy's.
    """

    output: Tensor
    target: Tensor | None
    terms: list[Term]
    missing_ops: list[str]
    fallback_ops: list[str]
    sizes: torch.Size | None
    constants: ModelConstants
    reads_values: bool


class SamplesMixed(RuntimeError):
    """An operation mixed the samples of a batch. `output` is the explained output of the batch, [N]."""

    def __init__(self, operation: str, output: Tensor) -> None:
        super().__init__(operation)
        self.operation, self.output = operation, output


def _let_garbage_wait(run: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Runs a function without Python's garbage collector.

    A run creates so many objects that the collector would start several times and walk the whole process each time. They are all
    freed when the run ends.
    """

    @wraps(run)
    def waiting(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not gc.isenabled():
            return run(*args, **kwargs)
        gc.disable()
        try:
            return run(*args, **kwargs)
        finally:
            gc.enable()

    return waiting


@_let_garbage_wait
def run_forward_backward(
    model: nn.Module,
    batch: Batch,
    visitors: Sequence[TermVisitor],
    *,
    reading: Reading = "exact",
    autocast: bool = False,
    check_samples: bool = True,
) -> Run:
    """Runs one forward and one backward pass of `model` in evaluation mode. The visitors receive every term.

    The model, its buffers, the images and the random state do not change, even if an error is raised.

    Args:
        model: any module.
        batch: floating-point images that run together.
        visitors: receive the bias terms during the backward pass, last operation first, and then the input's term.
        reading: the function that is decomposed, see readings.py. Default: "exact".
        autocast: whether autocast stays active, around the call or in the forward. Default: False, all runs in the precision of the
            parameters.
        check_samples: whether to check that constants which the model makes of values do not mix samples. A model that makes some
            then runs once more, on two halves of the batch. Default: True.

    Raises:
        SamplesMixed: if the samples of a batch of several cannot be told apart, or if their outputs differ on half of the batch.
        TypeError: if the target is of an unknown kind.
        ValueError: if the target does not fit, or the explained output is not finite or does not depend on the images.
    """
    selection = Selection(batch.target, len(batch))
    with preserve_model(model, batch.images[0].device, autocast=autocast) as guard:
        model = unwrap_model(model)
        leaves = [as_model_input(images, model).requires_grad_() for images in batch.images]
        names = {id(module): name for name, module in modules_by_name(model).items()}
        tape = Tape(images := [leaf.clone() for leaf in leaves], visitors, names, find_reading(reading), guard)
        with closing(tape):
            inputs = (*images, *map_tensors(copy_argument, batch.arguments))
            with tape.meet_operations():
                output, made_constant, reads_values = _run_model(model, inputs, selection, tape)
            if not output.requires_grad or tape.is_free(output):
                raise ValueError(
                    "the model's output does not depend on the images, so there is nothing to decompose; "
                    "does its forward detach them, use torch.inference_mode(), or return a class index? A quantised model has no "
                    "gradients; pass the one that it was converted from."
                )
            if mixed_by := tape.find_mixing_operation(output):
                raise SamplesMixed(mixed_by, output.detach())
            with tape.bias_hooks.on():
                gradients = torch.autograd.grad(output.sum(), leaves, materialize_grads=True)
        # Only now, because the graph may hold buffers that the model writes to.
        if check_samples and made_constant and _depends_on_others(model, batch, selection, leaves, output.detach()):
            raise SamplesMixed(f"a constant made by {made_constant}", output.detach())
    output, *of_inputs = (tensor.detach().as_subclass(Tensor) for tensor in (output, *gradients))
    for visitor in visitors:
        visitor.visit_input([leaf.detach() for leaf in leaves], of_inputs)
    biases = tape.bias_hooks.terms, tape.missing_ops, tape.fallback_ops
    return Run(output, selection.target, *biases, selection.sizes, guard, reads_values)


def _run_model(
    model: nn.Module, inputs: tuple[Any, ...], select: Callable[[Any], Tensor], tape: Tape
) -> tuple[Tensor, str | None, bool]:
    """The explained output, [N], and the model's `Tape.first_constant` and `Tape.reads_values`, without those of the selection.

    Errors of the model or the target function get a mark.
    """
    try:
        result = _call_model(model, inputs)
        made_constant, reads_values = tape.first_constant, tape.reads_values
        return select(result), made_constant, reads_values
    except Exception as error:
        error._fg_in_forward = True  # type: ignore[attr-defined]
        raise


TOLERANCE = 0.01
"""Share of the batch's largest output by which a sample's may differ on half of the batch, since kernels then round differently."""


def _depends_on_others(model: nn.Module, batch: Batch, selection: Selection, images: Sequence[Tensor], output: Tensor) -> bool:
    """Whether the explained output of a sample changes if only half of the batch runs.

    False if that cannot be told: the model or the target function fails on half of the batch, or the model draws random numbers.
    """

    def run(rows: Batch) -> Tensor:
        select = Selection(rows.target, len(rows))
        return select(model(*rows.images, *map_tensors(copy_argument, rows.arguments))).to(output)

    def differs(other: Tensor) -> bool:
        return bool(((other - output).abs() > TOLERANCE * output.abs().max()).any())

    target = batch.target if selection.target is None else selection.target
    whole = Batch(tuple(map(copy_argument, images)), target, batch.arguments)
    half = (len(batch) + 1) // 2
    if half == len(batch):
        return False
    try:
        with torch.no_grad():
            halves = torch.cat([run(whole.rows(0, half)), run(whole.rows(half, len(batch)))])
            return differs(halves) and not differs(run(whole))
    except Exception:
        return False


def _call_model(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The model's output.

    Raises:
        ValueError: if a network for planes fails on what may be a single image, or its forward converts to half precision.
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
                "explain a copy of the model without that conversion or, if the forward enters autocast itself, pass autocast=True "
                f"to FullGrad or full_gradients ({error})"
            ) from error
        raise


OfBatch = TypeVar("OfBatch", bound="BatchResult")


@runtime_checkable
class BatchResult(Protocol):
    """The result of a batch. It has the explained output, [N], and can be concatenated from results of single images."""

    @property
    def output(self) -> Tensor: ...

    @classmethod
    def concatenate(cls: type[OfBatch], parts: Sequence[OfBatch], unbatched_by: str | None = None) -> OfBatch: ...


def run_alone_if_mixed(run: Callable[[Batch], OfBatch], batch: Batch) -> OfBatch:
    """Runs a batch. If the model mixes its samples, runs each image alone and checks that the output stays the same.

    Raises:
        ValueError: if the output for an image depends on the others, or the model cannot run on one image. The error names the
            operation that mixes.
    """
    try:
        return run(batch)
    except SamplesMixed as mixed:
        try:
            parts = [run(batch.rows(i, i + 1)) for i in range(len(batch))]
        except Exception as error:
            if not hasattr(error, "_fg_in_forward"):
                raise
            raise ValueError(
                f"the samples of a batch cannot be told apart behind {mixed.operation}, and the model (or the target function) "
                f"cannot run on one image alone: {error}"
            ) from error
        result = type(parts[0]).concatenate(parts, mixed.operation)
        tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(result.output.dtype, 5e-2)  # half precision under autocast
        if not torch.allclose(result.output, mixed.output.to(result.output.dtype), rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"the model mixes the samples of a batch, first in {mixed.operation}: its output for an image depends on the other "
                "images (batch statistics in evaluation?). "
                "To explain an image alone, pass one image at a time."
            ) from mixed
        return result
