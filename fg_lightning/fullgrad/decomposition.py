"""full_gradients: a network's output as the exact sum of what its input and each of its biases contribute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fg_lightning.fullgrad.hearing import Term
from fg_lightning.fullgrad.linearisation import Pointwise, computed, real_product
from fg_lightning.fullgrad.readings import Reading
from fg_lightning.fullgrad.record import Recording, SamplesMixed, record
from fg_lightning.fullgrad.target import Selection, Target, target_of


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
        unaccounted: operations that could not be linearised, so that their biases are missing from the sum.
        linearised: operations without a rule, whose bias came from the general fallback.
        undrawn: operations with a bias term that lies nowhere on the image plane, as behind a global pooling, or where is not
            known; FullGrad leaves them out of the map.
        ran_alone: the operation behind which the samples of the batch could not be told apart, so that each was run alone; None
            where they went together.
    """

    output: Float[Tensor, " n"]
    target: Int[Tensor, "n *d"] | None
    input_gradient: Float[Tensor, "n c *s"]
    input_term: Float[Tensor, " n"]
    bias_terms: dict[str, Float[Tensor, " n"]]
    implicit_terms: dict[str, Float[Tensor, " n"]]
    unaccounted: tuple[str, ...] = ()
    linearised: tuple[str, ...] = ()
    undrawn: tuple[str, ...] = ()
    ran_alone: str | None = None

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
            unaccounted=tuple(dict.fromkeys(recording.unaccounted)),
            linearised=tuple(dict.fromkeys(recording.linearised)),
            undrawn=tuple(dict.fromkeys(named(term) for term in recording.terms if not term.layout.on_plane(axes))),
        )


def named(term: Term) -> str:
    return f"{term.operation} in {term.module or 'the model itself'}"


def joined(parts: list[FullGradients], ran_alone: str | None = None) -> FullGradients:
    """Results of some samples each as the result of a batch, and why it was run in such parts."""
    ran_alone = next((part.ran_alone for part in parts if part.ran_alone), ran_alone)
    return replace(_merged(parts, torch.cat), ran_alone=ran_alone)


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


# --- what every entry to the decomposition shares --------------------------------------------------------------------------------

Result = TypeVar("Result")


def check_images(model: nn.Module, images: Tensor) -> None:
    """
    Raises:
        TypeError: if the model is no module or the images are no floating-point tensor.
        ValueError: if the images have no batch dimension or there are none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("the operations of a TorchScript model cannot be seen; pass the model that it was made from")
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise ValueError("the model has lazy modules that do not know their sizes yet; run it once on a batch of images")
    if isinstance(images, Tensor) and images.is_complex():
        raise TypeError("images must be real; pass real and imaginary part as channels (torch.view_as_real)")
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, C, H, W], not {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating-point, not {images.dtype}: convert them as in training, e.g. images.float() / 255"
        )
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
        ValueError: if the model's output for a sample depends on the others, naming the operation.
    """
    try:
        return run(images, target, arguments)
    except SamplesMixed as mixed:
        n = len(images)
        mixes = f"the model mixes the samples of a batch, first in {mixed.operation}: "
        try:
            parts = [run(*rows_of(images, target, arguments, i, i + 1)) for i in range(n)]
        except Exception as error:
            if not hasattr(error, "_fg_in_forward"):
                raise
            raise ValueError(f"{mixes}it (or the target function) cannot be run on one image alone ({error})") from error
        alone = torch.cat([output_of(part) for part in parts])
        tolerance = 1e-3 if alone.dtype == torch.float32 else 1e-6
        if not torch.allclose(alone, mixed.output.to(alone.dtype), rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"{mixes}its output for an image depends on the other images (batch statistics in evaluation?). "
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


def averaged(parts: list[FullGradients]) -> FullGradients:
    """The mean, term by term, of results for the same target; complete where they are, since the sum of terms is linear."""
    untargeted = [replace(part, target=None) for part in parts]
    return replace(_merged(untargeted, lambda values: torch.stack(values).mean(0)), target=parts[0].target)
