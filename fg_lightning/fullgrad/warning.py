"""What FullGrad warns of, once for each network: terms that do not add up, and terms that it cannot draw."""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fg_lightning.fullgrad.decomposition import FullGradients

INCOMPLETE = 0.01
"""The completeness error from which a map is warned of; ten times that under autocast, which rounds to 8 or 11 bits."""

_ROUNDING = 1000
"""Rounding errors of a sum of all terms, in units of its precision: what of a residual is no more than that says nothing."""

_warned: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def warn_once(model: nn.Module, about: str, message: str) -> None:
    """Once for each network, as Python's own filter would, were it not reset by whoever catches warnings."""
    said = _warned.setdefault(model, set())
    if about not in said:
        said.add(about)
        warnings.warn(message, stacklevel=2)


def warn_if_incomplete(model: nn.Module, terms: FullGradients, *, is_rounded: bool = False) -> None:
    """Warn where the terms do not add up to the output, naming the operation if it is known.

    Args:
        model: whose terms they are.
        terms: the terms of some images.
        is_rounded: whether they were computed in half precision.
    """
    error = terms.completeness_error
    counts = ~(terms.residual.abs() <= _ROUNDING * torch.finfo(terms.output.dtype).eps * _magnitude(terms))
    limit = INCOMPLETE * (10 if is_rounded else 1)
    if not bool((counts & ~(error <= limit)).any()):
        return
    worst = float(error.nan_to_num(nan=torch.inf).max())
    found = f"miss {worst:.0%} of" if worst < 100 else "do not add up to"
    warn_once(
        model,
        "incomplete",
        f"FullGrad's terms {found} the output of this network, so that its maps are not complete: {_reason(terms)}",
    )


def _reason(terms: FullGradients) -> str:
    is_finite = terms.input_gradient.flatten(1).isfinite().all(1) & _magnitude(terms).isfinite()
    if not bool(is_finite.all()):
        number = int((~is_finite).sum())
        return (
            f"the gradients of {number} of {len(is_finite)} images are not finite. That of a root or a norm at 0 is "
            "not, nor that of torch.where if one of its branches is not, for example; a small number under the root helps there."
        )
    if terms.missing_ops:
        return (
            f"nothing is known of {', '.join(terms.missing_ops[:3])}. Write that with operations that autograd can differentiate "
            "(without .data, detach(), NumPy or TorchScript), or read the maps with that in mind."
        )
    if terms.fallback_ops:
        return (
            f"perhaps the backward pass of {', '.join(terms.fallback_ops[:3])} is not its derivative, or draws random numbers. "
            "Look at completeness_error of `full_gradients`."
        )
    return "no operation is known to be at fault. Compare with float64, model.double(): if it stays, the package has a fault."


def _magnitude(terms: FullGradients) -> Tensor:
    """The sum of the magnitudes of all terms, [N]."""
    parts = [terms.output, terms.input_term, *terms.bias_terms.values(), *terms.implicit_terms.values()]
    return torch.stack(parts).abs().sum(0)
