"""One forward and one backward pass of a model under the tape, which leave everything as it was.

The model runs in evaluation mode on constants, so that the backward pass goes to the input alone and nothing of the model is
touched.

full_gradients: a network's output as the exact sum of what its input and each of its biases contribute.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fg_lightning.fullgrad.bias_hooks import Term, Visitor
from fg_lightning.fullgrad.entry import SamplesMixed, as_tuple, check_images, one_by_one_if_mixed
from fg_lightning.fullgrad.linearization import Pointwise, computed, real_product
from fg_lightning.fullgrad.operation import is_free, map_tensors
from fg_lightning.fullgrad.preserve_model import as_the_model_takes, copied, undisturbed, unwrapped
from fg_lightning.fullgrad.readings import Reading, operations_of
from fg_lightning.fullgrad.tape import Tape
from fg_lightning.fullgrad.target import Selection, Target


@dataclass(frozen=True, slots=True)
class Recording:
    """What one run found, its biases and their gradients apart, which went to the visitor.

    Attributes:
        images: the input as the model saw it, [N, C, *S].
        output: the explained output, [N].
        input_gradient: its gradient at the input, [N, C, *S].
        terms: the biases that were met, in forward order; one whose output leads nowhere was met but never visited.
        missing_ops: operations whose bias could not be computed.
        fallback_ops: operations whose bias came from the general fallback.
    """

    images: Tensor
    output: Tensor
    input_gradient: Tensor
    terms: list[Term]
    missing_ops: list[str]
    fallback_ops: list[str]


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
        with closing(tape.bias_hooks):
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
            with tape.bias_hooks.on():
                (gradient,) = torch.autograd.grad(output.sum(), leaf, materialize_grads=True)
    output, gradient = (tensor.detach().as_subclass(Tensor) for tensor in (output, gradient))
    return Recording(leaf.detach(), output, gradient, tape.bias_hooks.terms, tape.missing_ops, tape.fallback_ops)


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


@dataclass(frozen=True)
class FullGradients:
    """The full-gradients of a batch, term by term (Srinivas & Fleuret 2019, with implicit biases).

    `output = input_term + sum of bias_terms + sum of implicit_terms + residual`, for every sample.

    Attributes:
        output: the explained output, [N].
        target: the classes explained, [N]; None where the output was selected by a function or there is one per sample.
        input_gradient: the output's gradient at the input, [N, C, *S].
        input_term: the inner product of input-gradient and input, [N].
        bias_terms: explicit biases (those of weights and constants) by qualified module name in forward order, [N] each.
        implicit_terms: implicit biases (those of non-linearities), likewise.
        missing_ops: operations that could not be linearised, so that their biases are missing from the sum.
        fallback_ops: operations without a rule, whose bias came from the general fallback.
        undrawn: operations with a bias term that lies nowhere on the image plane, as behind a global pooling, or where is not
            known; FullGrad leaves them out of the map.
        unbatched_by: the operation behind which the samples of the batch could not be told apart, so that each was run alone; None
            where they went together.
    """

    output: Float[Tensor, " n"]
    target: Int[Tensor, "n *d"] | None
    input_gradient: Float[Tensor, "n c *s"]
    input_term: Float[Tensor, " n"]
    bias_terms: dict[str, Float[Tensor, " n"]]
    implicit_terms: dict[str, Float[Tensor, " n"]]
    missing_ops: tuple[str, ...] = ()
    fallback_ops: tuple[str, ...] = ()
    undrawn: tuple[str, ...] = ()
    unbatched_by: str | None = None

    @property
    def residual(self) -> Float[Tensor, " n"]:
        """What the terms leave unexplained, signed: output - input term - all bias terms, [N]."""
        return self.output - self.input_term - _total(self.bias_terms, self.output) - _total(self.implicit_terms, self.output)

    @property
    def completeness_error(self) -> Float[Tensor, " n"]:
        """|residual| / |output|, [N]: zero up to rounding."""
        return self.residual.abs() / self.output.abs().clamp_min(torch.finfo(self.output.dtype).tiny)


def _total(terms: dict[str, Tensor], like: Tensor) -> Tensor:
    return torch.stack(list(terms.values())).sum(0) if terms else torch.zeros_like(like)


def full_gradients(
    model: nn.Module,
    images: Float[Tensor, "n c *s"],
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    reading: Reading = "exact",
    autocast: bool = False,
) -> FullGradients:
    """Decomposes a model's output, exactly, into what the input and every bias contribute.

    The model runs in evaluation mode and is left as it was: flags, gradients, hooks, buffers and random state.

    Args:
        model: any network of differentiable operations.
        images: [N, C, *S] with one, two or three spatial dimensions, floating-point, as the model takes them.
        target: the class to explain: one for all samples, one for each ([N] as list or tensor), a tuple of indices for a dense
            output; None for the predicted class; or a function from the model's output to [N].
        additional_forward_args: what the model's forward takes after the images, one value or a tuple; constants.
        reading: "exact", or "locally_affine" to hold the statistics of norms, attention weights and the gates of GELU and SiLU
            constant, so that transformers are complete with explicit biases alone (LibraGrad, Mehri et al. 2025).
        autocast: keep an active autocast; by default everything runs in the parameters' own precision, half precision in float32.

    Returns:
        The terms; see `FullGradients`.

    Raises:
        TypeError: if the images are not floating-point or the target is of no known kind.
        ValueError: if shapes or targets do not fit, the output is not finite, does not depend on the images, or mixes samples.
    """
    check_images(model, images)

    def decompose(images: Tensor, target: Target, arguments: tuple[Any, ...]) -> FullGradients:
        selection, sums = Selection(target, len(images)), TermSums(len(images))
        options: dict[str, Any] = {"additional_forward_args": arguments, "reading": reading, "autocast": autocast}
        recording = record(model, images, selection, sums.visit, **options)
        return sums.collected(recording, selection.target)

    arguments = as_tuple(additional_forward_args)
    return one_by_one_if_mixed(decompose, images, target, arguments, joined, lambda result: result.output)


class TermSums:
    """A visitor of the tape that sums every term to one number a sample."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._sums: dict[int, Tensor] = {}

    def visit(self, term: Term, bias: Tensor | Pointwise, gradient: Tensor) -> None:
        self._sums[id(term)] = term.layout.per_sample(real_product(gradient, computed(bias)), self._n)

    def collected(self, recording: Recording, target: Tensor | None) -> FullGradients:
        """The terms of a run in forward order, by module; a bias whose output leads nowhere counts nothing."""
        by_kind: dict[str, dict[str, Tensor]] = {"explicit": {}, "implicit": {}}
        axes = recording.images.ndim - 2
        for term in recording.terms:
            value = self._sums.get(id(term), torch.zeros_like(recording.output))
            sums = by_kind[term.kind]
            sums[term.module] = sums[term.module] + value if term.module in sums else value
        return FullGradients(
            output=recording.output,
            target=target,
            input_gradient=recording.input_gradient,
            input_term=(recording.input_gradient * recording.images).flatten(1).sum(1),
            bias_terms=by_kind["explicit"],
            implicit_terms=by_kind["implicit"],
            missing_ops=tuple(dict.fromkeys(recording.missing_ops)),
            fallback_ops=tuple(dict.fromkeys(recording.fallback_ops)),
            undrawn=tuple(dict.fromkeys(str(term) for term in recording.terms if not term.layout.on_plane(axes))),
        )


def joined(parts: list[FullGradients], unbatched_by: str | None = None) -> FullGradients:
    """Results of some samples each as the result of a batch, and why it was run in such parts."""
    unbatched_by = next((part.unbatched_by for part in parts if part.unbatched_by), unbatched_by)
    return replace(_merged(parts, torch.cat), unbatched_by=unbatched_by)


def averaged(parts: list[FullGradients]) -> FullGradients:
    """The mean, term by term, of results for the same target; complete where they are, since the sum of terms is linear."""
    untargeted = [replace(part, target=None) for part in parts]
    return replace(_merged(untargeted, lambda values: torch.stack(values).mean(0)), target=parts[0].target)


def _merged(parts: list[FullGradients], merge: Callable[[list[Tensor]], Tensor]) -> FullGradients:
    """Field by field, and of terms name by name; a module that a part was routed past has terms of 0 there."""

    def merged(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return merge(values)
        if values[0] is None or isinstance(values[0], str):
            return values[0]
        names = dict.fromkeys(name for value in values for name in value)
        if isinstance(values[0], tuple):
            return tuple(names)
        return {
            name: merge([value.get(name, torch.zeros_like(part.output)) for value, part in zip(values, parts, strict=True)])
            for name in names
        }

    return FullGradients(**{f.name: merged([getattr(part, f.name) for part in parts]) for f in fields(FullGradients)})
