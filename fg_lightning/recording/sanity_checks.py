"""Sanity checks of maps: do they depend on what the network has learned, and on the class? (Adebayo et al. 2018)"""

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
    """What a method's maps have in common with maps that should differ, as mean rank correlations over the probe.

    Attributes:
        randomized: with the maps of a copy of the network whose layers all have random parameters; None if it could not be told.
        runner_up: with the maps of the class that is the most probable apart from the explained one; None if it could not be told.
        why_not_randomized: why that could not be told.
        why_not_runner_up: likewise.
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
"""(network, classes [N]; None for those that are explained) -> maps by method."""


def check_sanity(
    model: nn.Module, maps: Mapping[str, Float[Tensor, "n 1 *s"]], explain: Explain, runner_up: Tensor | None, seed: int = 0
) -> dict[str, SanityCheck]:
    """Explains the probe twice more: with random parameters, and for the next class.

    The network is not changed: a copy gets the random parameters, which takes its memory a second time for a moment.

    Args:
        model: the trained network.
        maps: of the network and the explained classes, by method.
        explain: computes maps.
        runner_up: the class of each image that is the most probable apart from the explained one, [N]; None without classes.
        seed: of the random parameters.

    Returns:
        By method. If the network cannot be copied or the copy cannot be explained, the check says why.
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
    """Computes the maps of FullGrad and of further methods, of the probe of an explainer, which stays as it is.

    Args:
        explainer: that has explained the network.
        methods: the further methods by key. Those that fail are left out.
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
    """Maps by method, or why there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a network that nobody trains
            return explain(), ""
    except Exception as error:  # a network that cannot be copied has one check less
        return {}, f"{type(error).__name__}: {error}"


def _correlate(maps: Tensor, others: Tensor | None) -> float | None:
    if others is None or others.shape != maps.shape or others.isnan().any():
        return None
    return mean_rank_correlation(maps, others)
