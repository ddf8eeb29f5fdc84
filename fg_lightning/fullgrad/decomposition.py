"""full_gradients: a network's output as the exact sum of what its input and each of its biases contribute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fg_lightning.fullgrad.entry import as_tuple, check_images, one_by_one_if_mixed
from fg_lightning.fullgrad.hearing import Term
from fg_lightning.fullgrad.linearisation import Pointwise, computed, real_product
from fg_lightning.fullgrad.readings import Reading
from fg_lightning.fullgrad.record import Recording, record
from fg_lightning.fullgrad.target import Selection, Target


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
            undrawn=tuple(dict.fromkeys(str(term) for term in recording.terms if not term.layout.on_plane(axes))),
        )


def joined(parts: list[FullGradients], ran_alone: str | None = None) -> FullGradients:
    """Results of some samples each as the result of a batch, and why it was run in such parts."""
    ran_alone = next((part.ran_alone for part in parts if part.ran_alone), ran_alone)
    return replace(_merged(parts, torch.cat), ran_alone=ran_alone)


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
