"""A look: what the monitor found at one moment of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fg_lightning.fullgrad import FullGradients


@dataclass(frozen=True)
class Look:
    """Maps and numbers of one moment.

    Attributes:
        epoch: how many epochs the network had been trained for; 0 is the untrained one.
        step: Lightning's global step.
        maps: saliency maps of the probe, [N, 1, *S], on the CPU.
        targets: the classes explained, [N]; None where there was no choice.
        numbers: what is logged, by key.
    """

    epoch: int
    step: int
    maps: Float[Tensor, "n 1 *s"]
    targets: Tensor | None
    numbers: dict[str, float]


def numbers_of(terms: FullGradients, maps: Tensor, previous: Tensor | None) -> dict[str, float]:
    """The scalars of a look, by the keys under which they are logged.

    Args:
        terms: the probe's full-gradients.
        maps: its maps, [N, 1, *S].
        previous: the maps of the look before, None for the first.

    Returns:
        The completeness error, its mean and maximum over the probe; the shares of the output that the input, the explicit and the
        implicit biases explain, which add up to 1 but for that error; and the drift, the mean cosine distance (0 to 1 for maps
        that are nowhere negative) to the maps before. What is not defined, such as shares of an output that is zero, is left out.
    """
    numbers = {
        "fullgrad/completeness_error": terms.completeness_error.mean(),
        "fullgrad/completeness_error_max": terms.completeness_error.max(),
        "fullgrad/input_share": _share(terms, [terms.input_term]),
        "fullgrad/bias_share": _share(terms, list(terms.bias_terms.values())),
        "fullgrad/implicit_share": _share(terms, list(terms.implicit_terms.values())),
    }
    if previous is not None:
        numbers["fullgrad/drift"] = 1 - F.cosine_similarity(maps.flatten(1), previous.flatten(1)).mean()
    return {key: float(value) for key, value in numbers.items() if not value.isnan()}


def _share(terms: FullGradients, kind: list[Tensor]) -> Tensor:
    """sum over samples of sign(f) term / sum of |f|: a mean of the terms' shares that no output near zero can blow up."""
    if not kind:
        return torch.zeros(())
    total = torch.stack(kind).sum(0)
    return (terms.output.sign() * total).sum() / terms.output.abs().sum()
