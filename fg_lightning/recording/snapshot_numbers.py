"""The numbers of a snapshot: how complete its terms are, how they divide the output, and how its maps are spread and change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fg_lightning.history.records import MAP_NUMBERS, TERM_NUMBERS, Explanation
from fg_lightning.metrics.border_and_corners import border_mask, border_share, corner_masks, corner_shares
from fg_lightning.metrics.concentration import gini_index
from fg_lightning.metrics.drift import cosine_drift
from fg_lightning.metrics.localization import pointing_game, relevance_mass


def snapshot_numbers(
    explanation: Explanation, previous: Tensor | None, untrained: Tensor | None, masks: Tensor | None = None
) -> dict[str, float]:
    """The numbers of a snapshot, by log key; see `NUMBERS`.

    Args:
        explanation: of the snapshot.
        previous: the maps of the snapshot before, [N, 1, *S]; None for the first snapshot.
        untrained: the maps of the untrained network, [N, 1, *S]; None if they are unknown.
        masks: where the network should look, bool [N, 1, *S]. Default: None, for unknown.

    Returns:
        The numbers that are defined. If the terms are complete, the three shares add up to 1.
    """
    kinds = {"input": "input_share", "explicit": "bias_share", "implicit": "implicit_share"}
    error = explanation.terms["completeness_error"]
    numbers = {"completeness_error": error.mean(), "completeness_error_max": error.max()}
    if all(layer.share is not None for layer in explanation.layers):
        for kind, key in kinds.items():
            numbers[key] = torch.tensor([layer.share for layer in explanation.layers if layer.kind == kind]).sum()
    of_terms = {f"fullgrad/{key}": float(numbers[key]) for key in TERM_NUMBERS if key in numbers and not numbers[key].isnan()}
    is_one = explanation.num_inputs == 1
    return of_terms | map_numbers(explanation.maps, previous, untrained, "fullgrad", masks, has_border=is_one)


def map_numbers(
    maps: Float[Tensor, "n 1 *s"],
    previous: Tensor | None,
    untrained: Tensor | None,
    method: str,
    masks: Bool[Tensor, "n 1 *s"] | None = None,
    *,
    has_border: bool = True,
) -> dict[str, float]:
    """The numbers of the maps of one method, by log key; see `MAP_NUMBERS`.

    Args:
        maps: of the snapshot.
        previous: the maps of the snapshot before, [N, 1, *S]; None for the first snapshot.
        untrained: the maps of the untrained network, [N, 1, *S]; None if they are unknown.
        method: key of the method; each log key begins with it.
        masks: where the network should look, bool [N, 1, *S]. Images with an empty mask are left out. Default: None, for unknown.
        has_border: whether to measure border and corners. They have no meaning if images are side by side. Default: True.

    Returns:
        The numbers that are defined. A distance is in 0..1 for maps without negative values. Shares are of the magnitude of a map.
        Maps that are zero everywhere count only in the distances.
    """
    numbers: dict[str, Tensor] = {}
    for key, earlier in (("drift", previous), ("drift_from_untrained", untrained)):
        if earlier is not None and not earlier.isnan().any():  # lost maps are NaN
            numbers[key] = cosine_drift(maps, earlier).mean()
    is_nonzero = maps.flatten(1).any(1)
    magnitudes = maps.abs()[is_nonzero]
    masks = None if masks is None else masks[is_nonzero.to(masks.device)]
    numbers["concentration"] = gini_index(magnitudes).mean()
    if has_border and border_mask(maps.shape[2:]) is not None:
        numbers["border_share"] = border_share(magnitudes).mean()
    corners = corner_shares(magnitudes) if has_border else {}
    numbers |= {f"{corner}_share": shares.mean() for corner, shares in corners.items()}
    if masks is not None and masks.any():
        has_mask = masks.flatten(1).any(1)
        numbers["relevance_mass"] = relevance_mass(magnitudes[has_mask], masks[has_mask]).mean()
        numbers["pointing_game"] = pointing_game(magnitudes[has_mask], masks[has_mask]).mean()
    return {f"{method}/{key}": float(numbers[key]) for key in MAP_NUMBERS if key in numbers and not numbers[key].isnan()}


def chance_numbers(
    size: Sequence[int], masks: Bool[Tensor, "n 1 *s"] | None = None, *, has_border: bool = True
) -> dict[str, float]:
    """The numbers of a flat map, to compare with: the share of the area that border, corners and masks have.

    Args:
        size: size of the maps in pixels, one to three numbers.
        masks: see `map_numbers`.
        has_border: see `map_numbers`.

    Returns:
        Name in `MAP_NUMBERS` -> number, for the numbers that the maps have.
    """
    border = border_mask(size) if has_border else None
    areas = {} if border is None else {"border_share": border}
    areas |= {f"{corner}_share": mask for corner, mask in (corner_masks(size) if has_border else {}).items()}
    chance = {name: float(mask.float().mean()) for name, mask in areas.items()}
    if masks is not None and masks.any():
        share = float(masks[masks.flatten(1).any(1)].float().mean())
        chance |= {"relevance_mass": share, "pointing_game": share}
    return chance
