"""The full-gradients: a network's output as the exact sum of the contributions of its input and its biases."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Union
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fg_lightning.fullgrad.bias_hooks import Term
from fg_lightning.fullgrad.forward_backward import Batch, OneOrSeveral, Run, run_alone_if_mixed, run_forward_backward
from fg_lightning.fullgrad.linearization import Pointwise, compute_bias, real_product
from fg_lightning.fullgrad.readings import Reading
from fg_lightning.fullgrad.target import Target


@dataclass(frozen=True, eq=False, repr=False)
class FullGradients:
    """The full-gradients of a batch, term by term (Srinivas & Fleuret 2019, with implicit biases).

    `output = input_term + sum of bias_terms + sum of implicit_terms + residual`, for every sample. Equality of results is identity.

    Attributes:
        output: the explained output, [N].
        target: the explained classes, [N]. None if a function selected the output, or the model gives one number for each sample.
        input_gradient: gradient of the output at the input, [N, C, *S]. A tuple for several image inputs.
        input_term: inner product of input-gradient and input, [N]. A tuple for several image inputs.
        bias_terms: terms of explicit biases (of weights and constants), [N] each, by qualified module name in forward order.
        implicit_terms: terms of implicit biases (of non-linearities), [N] each, by qualified module name in forward order. A module
            can be a key of both, such as a layer norm. The key of terms of the model itself is "".
        missing_ops: operations that could not be linearized. Their biases are missing from the sum.
        fallback_ops: operations without a rule, whose bias the general fallback computed.
        drawn: operations with a bias term on the image plane.
        undrawn: operations with a bias term that is not on the image plane, such as after a global pooling, or whose position there
            is unknown. FullGrad leaves these terms out of the map.
        lost: the undrawn operations whose position is unknown although the image plane has not ended before them.
        unbatched_by: the operation after which the samples of the batch could not be told apart, so that each was run alone. None
            if they were run together.
    """

    output: Float[Tensor, " n"]
    target: Int[Tensor, "n *d"] | None
    input_gradient: Union[Float[Tensor, "n c *s"], tuple[Float[Tensor, "n _ *_"], ...]]
    input_term: Union[Float[Tensor, " n"], tuple[Float[Tensor, " n"], ...]]
    bias_terms: dict[str, Float[Tensor, " n"]]
    implicit_terms: dict[str, Float[Tensor, " n"]]
    missing_ops: tuple[str, ...] = ()
    fallback_ops: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    undrawn: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    unbatched_by: str | None = None

    @property
    def residual(self) -> Float[Tensor, " n"]:
        """The part of the output that the terms do not explain, signed: output - input terms - all bias terms, [N]."""
        rest = self.output
        for input_term in as_several(self.input_term):
            rest = rest - input_term
        return rest - _total(self.bias_terms, self.output) - _total(self.implicit_terms, self.output)

    @property
    def completeness_error(self) -> Float[Tensor, " n"]:
        """|residual| / |output|, [N]: zero up to rounding if no term is missing.

        It cannot show a custom backward that is not the derivative. Check such a function with `torch.autograd.gradcheck`.
        """
        return self.residual.abs() / self.output.abs().clamp_min(torch.finfo(self.output.dtype).tiny)

    def __repr__(self) -> str:
        """A summary in a few lines."""
        count = f"{len(self.output)} image{'s' * (len(self.output) != 1)}"
        lines = [
            f"FullGradients of {count}: output {_shorten([f'{value:.4g}' for value in self.output.tolist()])}",
            f"terms: the input, {len(self.bias_terms)} explicit, {len(self.implicit_terms)} implicit; "
            f"largest completeness error {float(self.completeness_error.max()):.1e}",
        ]
        lines += [f"{name}: {_shorten(ops)}" for name in ("missing_ops", "fallback_ops", "undrawn") if (ops := getattr(self, name))]
        return "\n  ".join(lines + ([f"unbatched_by: {self.unbatched_by}"] if self.unbatched_by else []))

    @classmethod
    def concatenate(cls, parts: Sequence[FullGradients], unbatched_by: str | None = None) -> FullGradients:
        """The result of a batch from results of its images.

        Args:
            parts: results of parts of the batch, in its order.
            unbatched_by: the operation because of which the batch was not run together.
        """
        targets = [part.target for part in parts if part.target is not None]
        return _merge(parts, torch.cat, torch.cat(targets) if targets else None, unbatched_by)

    @classmethod
    def average(cls, parts: Sequence[FullGradients]) -> FullGradients:
        """The mean, term by term, of results for the same target. It is complete if all results are."""
        return _merge(parts, lambda values: torch.stack(values).mean(0), parts[0].target)


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _total(terms: dict[str, Tensor], like: Tensor) -> Tensor:
    return torch.stack(list(terms.values())).sum(0) if terms else torch.zeros_like(like)


def _merge(
    parts: Sequence[FullGradients],
    merge: Callable[[list[Tensor]], Tensor],
    target: Tensor | None,
    unbatched_by: str | None = None,
) -> FullGradients:
    """Merges results field by field."""
    return FullGradients(
        output=merge([part.output for part in parts]),
        target=target,
        input_gradient=_merge_inputs([part.input_gradient for part in parts], merge),
        input_term=_merge_inputs([part.input_term for part in parts], merge),
        bias_terms=_merge_terms([(part.bias_terms, part.output) for part in parts], merge),
        implicit_terms=_merge_terms([(part.implicit_terms, part.output) for part in parts], merge),
        missing_ops=_unique(op for part in parts for op in part.missing_ops),
        fallback_ops=_unique(op for part in parts for op in part.fallback_ops),
        drawn=_unique(op for part in parts for op in part.drawn),
        undrawn=_unique(op for part in parts for op in part.undrawn),
        lost=_unique(op for part in parts for op in part.lost),
        unbatched_by=next((part.unbatched_by for part in parts if part.unbatched_by), unbatched_by),
    )


def _merge_inputs(parts: list[OneOrSeveral], merge: Callable[[list[Tensor]], Tensor]) -> OneOrSeveral:
    """Merges values of one image input, or of each of several."""
    if isinstance(parts[0], Tensor):
        return merge([part for part in parts if isinstance(part, Tensor)])
    return tuple(merge(list(of_input)) for of_input in zip(*parts, strict=True))


def as_several(of_inputs: OneOrSeveral) -> tuple[Tensor, ...]:
    """The values of the image inputs as a tuple."""
    return of_inputs if isinstance(of_inputs, tuple) else (of_inputs,)


def one_or_several(of_inputs: Sequence[Tensor]) -> OneOrSeveral:
    """The tensor of a single image input, or the tuple for several."""
    return tuple(of_inputs) if len(of_inputs) > 1 else of_inputs[0]


def _merge_terms(parts: list[tuple[dict[str, Tensor], Tensor]], merge: Callable[[list[Tensor]], Tensor]) -> dict[str, Tensor]:
    """Merges terms by name, from (terms, output) of each part. If a part did not run a module, its term there is 0."""
    names = _unique(name for terms, _ in parts for name in terms)
    return {name: merge([terms.get(name, torch.zeros_like(output)) for terms, output in parts]) for name in names}


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def full_gradients(
    model: nn.Module,
    images: Union[Float[Tensor, "n c *s"], tuple[Float[Tensor, "n _ *_"], ...]],
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    reading: Reading = "exact",
    autocast: bool = False,
) -> FullGradients:
    """Decomposes a model's output exactly into the contributions of the input and of every bias.

    The model runs in evaluation mode. Its flags, gradients, hooks and buffers and the random state are restored.

    Args:
        model: any network of differentiable operations.
        images: input of the model, floating-point, [N, C, *S] with one, two or three spatial dimensions; or a tuple of such tensors
            for a model with several image inputs as its first arguments. Each has its own input term.
        target: class to explain: one for all samples; one for each sample, [N] as list or tensor; a tuple of indices for a dense
            output; or a function from the model's output to [N]. Default: the predicted class.
        additional_forward_args: further arguments of the model's forward after the images, one value or a tuple. They count as
            constants. Default: none.
        reading: "exact"; or "locally_affine", which holds the statistics of norms, attention weights and the gates of GELU and SiLU
            constant, so that transformers are complete with explicit biases alone (LibraGrad, Mehri et al. 2025). Default: "exact".
        autocast: whether to keep autocast, active around the call or entered by the forward. Default: False: everything runs in the
            precision of the parameters, and half precision in float32.

    Returns:
        The terms; see `FullGradients`.

    Raises:
        TypeError: if the images are not floating-point, or the target is of an unknown kind.
        ValueError: if shapes, the target or the reading are invalid, or the output is not finite, does not depend on the images, or
            mixes samples.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> list(full_gradients(model, torch.rand(2, 1, 8, 8), target=3).bias_terms)
        ['0', '3']
    """
    return decompose(model, Batch.of(model, images, target, additional_forward_args), reading=reading, autocast=autocast)


def decompose(model: nn.Module, batch: Batch, *, reading: Reading = "exact", autocast: bool = False) -> FullGradients:
    """`full_gradients` for a checked batch."""
    return run_alone_if_mixed(partial(_decompose_together, model, reading, autocast), batch)


def _decompose_together(model: nn.Module, reading: Reading, autocast: bool, batch: Batch) -> FullGradients:
    sums = TermSums(len(batch))
    return sums.collect(run_forward_backward(model, batch, [sums], reading=reading, autocast=autocast))


class TermSums:
    """A `TermVisitor` that sums every term to one number for each sample.

    Args:
        num_images: number of samples.
    """

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images
        self._sums: dict[int, Tensor] = {}

    def visit(self, term: Term, bias: Tensor | Pointwise, gradient: Tensor) -> None:
        value = compute_bias(bias)
        is_by_channel = 2 <= value.ndim == gradient.ndim - 1 and value.numel() == len(value) and not gradient.is_complex()
        if is_by_channel and term.layout.is_image(gradient.ndim - 2):  # [C, 1, ...]: one multiplication for each channel
            self._sums[id(term)] = (gradient.flatten(2).sum(2) * value.flatten()).sum(1)
        else:
            self._sums[id(term)] = term.layout.per_sample(real_product(gradient, value), self._num_images)

    def visit_input(self, images: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        pairs = zip(images, gradients, strict=True)
        self._gradients, self._input_terms = tuple(gradients), tuple((grad * own).flatten(1).sum(1) for own, grad in pairs)

    def collect(self, run: Run) -> FullGradients:
        """The terms of the run in forward order, by module. A bias whose output is not used counts as 0.

        The sums are brought to the device of the output, since a model may be on several.
        """
        device = run.output.device
        by_kind: dict[str, dict[str, Tensor]] = {"explicit": {}, "implicit": {}}
        num_axes = [gradient.ndim - 2 for gradient in self._gradients]
        are_drawn = [(t, any(t.lies_on(i, axes) for i, axes in enumerate(num_axes))) for t in run.terms]
        for term in run.terms:
            value = self._sums.get(id(term), torch.zeros_like(run.output)).to(device)
            sums = by_kind[term.kind]
            sums[term.module] = sums[term.module] + value if term.module in sums else value
        return FullGradients(
            output=run.output,
            target=run.target,
            input_gradient=one_or_several(self._gradients),
            input_term=one_or_several([of_input.to(device) for of_input in self._input_terms]),
            bias_terms=by_kind["explicit"],
            implicit_terms=by_kind["implicit"],
            missing_ops=_unique(run.missing_ops),
            fallback_ops=_unique(run.fallback_ops),
            drawn=_unique(str(t) for t, is_drawn in are_drawn if is_drawn),
            undrawn=_unique(str(t) for t, is_drawn in are_drawn if not is_drawn),
            lost=_unique(str(t) for t, is_drawn in are_drawn if not is_drawn and not t.layout.is_flat),
        )


INCOMPLETE = 0.01
"""FullGrad warns if the completeness error is larger than this. Under autocast, which rounds to 8 or 11 bits: ten times this."""

_ROUNDING = 1000
"""A residual of up to this many units of precision of the sum of all terms counts as rounding, without a warning."""

_warned: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


_num_runs: WeakKeyDictionary[nn.Module, Counter[Hashable]] = WeakKeyDictionary()


def is_check_due(model: nn.Module, kind: Hashable) -> bool:
    """Whether this run of a network is the first, second, fourth, eighth ... of its kind."""
    counts = _num_runs.setdefault(model, Counter())
    counts[kind] += 1
    return counts[kind].bit_count() == 1


def warn_once(model: nn.Module, about: str, message: str) -> None:
    """Warn once for each network and subject. Python's own filter is not enough: catching warnings resets it."""
    known = _warned.setdefault(model, set())
    if about not in known:
        known.add(about)
        warnings.warn(message, stacklevel=2)


def warn_if_incomplete(model: nn.Module, terms: FullGradients, *, is_rounded: bool = False) -> None:
    """Warn if the terms do not add up to the output, and name the operation that causes it if it is known.

    Args:
        model: the network of these terms.
        terms: the terms of some images.
        is_rounded: whether they were computed in half precision.
    """
    error = terms.completeness_error
    counts = ~(terms.residual.abs() <= _ROUNDING * torch.finfo(terms.output.dtype).eps * _magnitude(terms))
    limit = INCOMPLETE * (10 if is_rounded else 1)
    if not bool((counts & ~(error <= limit)).any()):
        return
    worst = float(error.nan_to_num(nan=torch.inf).max())
    share = f"miss {worst:.0%} of" if worst < 100 else "do not add up to"
    warn_once(
        model,
        "incomplete",
        f"FullGrad's terms {share} the output of this network, so that its maps are not complete: {_reason(terms)}",
    )


def _reason(terms: FullGradients) -> str:
    is_finite = _magnitude(terms).isfinite()
    for gradient in as_several(terms.input_gradient):
        is_finite = is_finite & gradient.flatten(1).isfinite().all(1)
    if not bool(is_finite.all()):
        num_infinite = int((~is_finite).sum())
        return (
            f"the gradients of {num_infinite} of {len(is_finite)} images are not finite. Common causes are a root or a norm at "
            "0, and torch.where with a branch that is not finite. For a root, add a small number under it."
        )
    if terms.missing_ops:
        return (
            f"the biases of {', '.join(terms.missing_ops[:3])} are unknown. Write it with operations that autograd can "
            "differentiate (without .data, detach(), NumPy or TorchScript), or consider that the maps lack these biases."
        )
    if terms.fallback_ops:
        return (
            f"the backward pass of {', '.join(terms.fallback_ops[:3])} may not be linear in the gradient, or may draw random "
            "numbers. Check completeness_error of `full_gradients`."
        )
    return "the cause is unknown. Repeat in float64, with model.double(): if the error stays, please report a bug of this package."


def _magnitude(terms: FullGradients) -> Tensor:
    """The sum of the magnitudes of all terms, [N]."""
    parts = [terms.output, *as_several(terms.input_term), *terms.bias_terms.values(), *terms.implicit_terms.values()]
    return torch.stack(parts).abs().sum(0)
