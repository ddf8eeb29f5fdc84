"""Sanity checks of maps: do the maps depend on what the network has learned, and on the class? (Adebayo et al. 2018)"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.metrics.drift import rank_correlation
from fg_lightning.metrics.parameter_randomization import randomize_parameters
from fg_lightning.recording.explainer import Explainer, device_of
from fg_lightning.recording.methods import FULLGRAD, Method

NO_CLASSES = "there is no other class"


@dataclass(frozen=True)
class SanityCheck:
    """How similar a method's maps are to maps that should differ: mean rank correlations over the probe.

    Attributes:
        randomized: correlation with the maps of a copy of the network in which all layers have random parameters; None if unknown.
        runner_up: correlation with the maps of the most probable class other than the explained one; None if unknown.
        why_not_randomized: the reason why `randomized` is unknown.
        why_not_runner_up: the reason why `runner_up` is unknown.
    """

    randomized: float | None = None
    runner_up: float | None = None
    why_not_randomized: str = ""
    why_not_runner_up: str = NO_CLASSES


def mean_rank_correlation(maps: Float[Tensor, "n 1 *s"], others: Float[Tensor, "n 1 *s"]) -> float:
    """Mean over the images of the rank correlation of two maps, without the pixels that are zero in both maps of an image.

    Zeros agree whatever the maps show: those of black pixels, for example, in maps that are multiplied by the image. Two maps that
    are zero everywhere count 0.
    """
    shown = (maps != 0) | (others != 0)
    pairs = [(own[is_shown], other[is_shown]) for own, other, is_shown in zip(maps, others, shown, strict=True)]
    return sum(float(rank_correlation(own[None, None], other[None, None])) for own, other in pairs if len(own)) / len(maps)


Explain = Callable[[nn.Module, "Tensor | None"], Mapping[str, Float[Tensor, "n 1 *s"]]]
"""(network, classes [N] or None for the explained classes) -> maps by method."""


def check_sanity(
    model: nn.Module, maps: Mapping[str, Float[Tensor, "n 1 *s"]], explain: Explain, runner_up: Tensor | None, seed: int = 0
) -> dict[str, SanityCheck]:
    """Explains the probe twice more: with random parameters, and for the next class.

    The network is not changed: a copy gets the random parameters. For a moment, the network needs twice its memory.

    Args:
        model: the trained network.
        maps: the maps of the network for the explained classes, [N, 1, *S], by method.
        explain: computes maps.
        runner_up: the most probable class of each image other than the explained one, [N]; None without classes.
        seed: seed of the random parameters. Default: 0.

    Returns:
        The checks by method. If the network cannot be copied or the copy cannot be explained, the check has the reason.
    """
    randomized, why_not_randomized = _try(lambda: explain(randomize_parameters(model, seed), None))
    others, why_not = _try(lambda: explain(model, runner_up)) if runner_up is not None else ({}, NO_CLASSES)
    checks = {}
    for method, own in maps.items():
        checks[method] = SanityCheck(
            _correlate(own, randomized.get(method)),
            _correlate(own, others.get(method)),
            why_not_randomized or "the method failed on random weights",
            why_not or "the method failed on the next class",
        )
    return checks


def explain_with(explainer: Explainer, methods: Mapping[str, Method]) -> Explain:
    """A function that computes the maps of FullGrad and of further methods on the probe of an explainer.

    Args:
        explainer: the explainer, after it has explained the network. It is not changed.
        methods: the further methods by key. Methods that fail are left out.
    """

    def explain(network: nn.Module, classes: Tensor | None) -> dict[str, Tensor]:
        other = copy.copy(explainer)
        if classes is not None:
            other.probe = replace(explainer.probe, labels=classes, others=())
        maps = {FULLGRAD: other.explain(network, device_of(network)).maps}
        for key, method in methods.items():
            with suppress(Exception):
                maps[key] = other.draw_maps(method, network, device_of(network))
        return maps

    return explain


def _try(explain: Callable[[], Mapping[str, Tensor]]) -> tuple[Mapping[str, Tensor], str]:
    """Maps by method; or no maps, and the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would be about a random network, which is not the user's
            return explain(), ""
    except Exception as error:  # a network that cannot be copied has one check less
        return {}, f"{type(error).__name__}: {error}"


def _correlate(maps: Tensor, others: Tensor | None) -> float | None:
    if others is None or others.shape != maps.shape or others.isnan().any():
        return None
    return mean_rank_correlation(maps, others)
