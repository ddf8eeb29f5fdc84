"""The numbers of a snapshot: how complete its terms are, how they divide the output, and how its maps look and move."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fg_lightning.history.records import MAP_NUMBERS, TERM_NUMBERS, Explanation
from fg_lightning.metrics.concentration import gini_index
from fg_lightning.metrics.drift import cosine_drift


def snapshot_numbers(explanation: Explanation, previous: Tensor | None, untrained: Tensor | None) -> dict[str, float]:
    """The numbers of a snapshot, by the keys under which they are logged; see `NUMBERS`.

    Args:
        explanation: of the snapshot.
        previous: the maps of the snapshot before, [N, 1, *S]; None for the first.
        untrained: the maps of the untrained network; None if they are not known.

    Returns:
        Those that are defined. The three shares and the completeness error add up to 1.
    """
    kinds = {"input": "input_share", "explicit": "bias_share", "implicit": "implicit_share"}
    error = explanation.terms["completeness_error"]
    numbers = {"completeness_error": error.mean(), "completeness_error_max": error.max()}
    if all(layer.share is not None for layer in explanation.layers):
        for kind, key in kinds.items():
            numbers[key] = torch.tensor([layer.share for layer in explanation.layers if layer.kind == kind]).sum()
    of_terms = {f"fullgrad/{key}": float(numbers[key]) for key in TERM_NUMBERS if key in numbers and not numbers[key].isnan()}
    return of_terms | map_numbers(explanation.maps, previous, untrained, "fullgrad")


def map_numbers(maps: Float[Tensor, "n 1 *s"], previous: Tensor | None, untrained: Tensor | None, method: str) -> dict[str, float]:
    """The numbers of the maps of one method, by the keys under which they are logged; see `MAP_NUMBERS`.

    Args:
        maps: of the snapshot.
        previous: the maps of the snapshot before, [N, 1, *S]; None for the first.
        untrained: the maps of the untrained network; None if they are not known.
        method: the method's key, which the names of the numbers begin with.

    Returns:
        Those that are defined. A distance is in 0..1 for maps without negative values.
    """
    numbers: dict[str, Tensor] = {}
    for key, earlier in (("drift", previous), ("drift_from_untrained", untrained)):
        if earlier is not None and not earlier.isnan().any():  # lost maps are NaN
            numbers[key] = cosine_drift(maps, earlier).mean()
    numbers["concentration"] = gini_index(maps.abs()).mean()
    return {f"{method}/{key}": float(numbers[key]) for key in MAP_NUMBERS if key in numbers and not numbers[key].isnan()}
