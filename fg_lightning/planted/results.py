"""Scores of methods on networks that rely on a mark: the table and its summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fg_lightning.roar.results import holm, mean_and_interval, paired_p, write_csv

Network = Literal["planted", "control"]
"""Kind of a network: trained with the mark of the label, or with marks of random classes."""

NETWORKS: tuple[Network, ...] = ("planted", "control")

NETWORK_NAMES = {"planted": "trained with the mark", "control": "trained with random marks"}

METRICS = {"pointing_game": "pointing game", "relevance_mass": "relevance mass"}

IMAGE_GROUPS = ("all", "following")
"""The images of a mean: all explained images, or those whose prediction follows the mark."""

LEAST_FALL = 1 / 3
"""A network relies on the mark if its accuracy falls by this or more with the mark of another class."""

TABLE_COLUMNS = "network seed lives_on_mark method images metric value reason".split()

SUMMARY_COLUMNS = (
    "method images metric planted planted_interval_95 control control_interval_95 difference difference_interval_95 p_holm "
    "num_networks"
).split()

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A trained network and its tests.

    Attributes:
        network: "planted" or "control".
        seed: seed of its training.
        accuracies: accuracy on the test images, by mark: label, shuffled, random.
        follows: for every explained image, whether the prediction changes with the mark of another class.
        weights: hash of the file of its weights.
    """

    network: Network
    seed: int
    accuracies: dict[str, float]
    follows: list[bool]
    weights: str

    @property
    def fall(self) -> float:
        """The accuracy with the mark of the label, minus the accuracy with the mark of another class."""
        return self.accuracies["label"] - self.accuracies["shuffled"]

    @property
    def lives_on_mark(self) -> bool:
        return self.fall >= LEAST_FALL


@dataclass(frozen=True, eq=False)
class Explanation:
    """The scores of a method on one network.

    Attributes:
        network: "planted" or "control".
        seed: seed of its training.
        method: name of the method.
        values: for every metric, a number for each explained image. Empty if the method failed.
        reason: why the method failed. Empty if it did not.
    """

    network: Network
    seed: int
    method: str
    values: dict[str, list[float]] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Score:
    """The scores of a method on the networks that rely on the mark, and on the controls of the same seeds.

    Attributes:
        method: name of the method.
        images: "all" or "following".
        metric: "pointing_game" or "relevance_mass".
        planted: mean over the networks that rely on the mark.
        planted_interval: half of its 95 % confidence interval over the networks, by Student's t. NaN for one network.
        control: mean over the networks that were trained with random marks, on the same images.
        control_interval: half of its interval.
        difference: mean of planted - control, paired by seed.
        difference_interval: half of its interval.
        p_holm: two-sided p-value of a t-test that the difference is 0, adjusted for the number of methods (Holm 1979). NaN for one
            network, or if the differences do not vary.
        num_networks: number of networks of each kind.
    """

    method: str
    images: str
    metric: str
    planted: float
    planted_interval: float
    control: float
    control_interval: float
    difference: float
    difference_interval: float
    p_holm: float
    num_networks: int


@dataclass(frozen=True)
class Difference:
    """The difference between the scores of two methods, on the networks that rely on the mark.

    Attributes:
        method: name of the method.
        other: name of the other method.
        mean: mean of the differences method - other, paired by network.
        interval: half of its 95 % confidence interval over the networks, by Student's t. NaN for one network.
        p_holm: two-sided p-value of a paired t-test, adjusted for the number of other methods (Holm 1979). NaN for one network, or
            if the differences do not vary.
    """

    method: str
    other: str
    mean: float
    interval: float
    p_holm: float


class PlantedResults:
    """The results of an experiment with planted shortcuts. Its repr is a summary.

    Args:
        networks: the trained networks.
        explanations: the scores of methods on networks, in the order of the table.
        area: share of the pixels that belong to the mark, 0 to 1. A map without information scores this.
    """

    def __init__(self, networks: Sequence[TrainedNetwork], explanations: Sequence[Explanation], area: float) -> None:
        self.networks = list(networks)
        self.explanations = list(explanations)
        self.area = area
        self._networks = {(network.network, network.seed): network for network in networks}
        self._explanations = {(e.network, e.seed, e.method): e for e in explanations}
        self.methods = list(dict.fromkeys(e.method for e in explanations))

    def __repr__(self) -> str:
        lines = [f"  {s.method:24} {s.planted:.3f} ± {s.planted_interval:.3f}, control {s.control:.3f}" for s in self.scores()]
        return "\n".join([f"PlantedResults({self.verdict})", *lines])

    @property
    def failures(self) -> list[Explanation]:
        return [explanation for explanation in self.explanations if explanation.reason]

    @property
    def planted_networks(self) -> list[TrainedNetwork]:
        """The networks that were trained with the mark of the label."""
        return [network for network in self.networks if network.network == "planted"]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the networks that rely on the mark. Scores use only these."""
        return [network.seed for network in self.planted_networks if network.lives_on_mark]

    @property
    def verdict(self) -> str:
        """A sentence on whether the networks rely on the mark."""
        num_trained, num_living = len(self.planted_networks), len(self.seeds)
        labels, shuffled = (
            np.mean([network.accuracies[mark] for network in self.planted_networks] or [np.nan]) for mark in ("label", "shuffled")
        )
        fall = f"accuracy {labels:.3f} with the mark of the label, {shuffled:.3f} with the mark of another class"
        if not num_living:
            return (
                f"none of {num_trained} networks relies on the mark ({fall}; it must fall by a third, {LEAST_FALL:.3f}), so it is "
                "unknown which pixels they use, and there are no scores"
            )
        rest = "" if num_living == num_trained else "; scores leave out the others"
        return f"{num_living} of {num_trained} networks rely on the mark ({fall}){rest}"

    def scores(self, metric: str = "pointing_game", images: str = "all") -> list[Score]:
        """The score of every method, the highest first. Empty if no network relies on the mark.

        Args:
            metric: "pointing_game" or "relevance_mass". Default: "pointing_game".
            images: "all", or "following": the images whose prediction follows the mark. Default: "all".
        """
        scores = [score for method in self.methods if (score := self._score(method, metric, images)) is not None]
        adjusted = holm([score.p_holm for score in scores])
        scores = [replace(score, p_holm=p) for score, p in zip(scores, adjusted, strict=True)]
        return sorted(scores, key=lambda score: -np.nan_to_num(score.planted, nan=-1))

    def differences(self, method: str, metric: str = "pointing_game", images: str = "all") -> list[Difference]:
        """The differences between a method and every other, the largest first. Empty if no network relies on the mark.

        Args:
            method: name of the method.
            metric: as in `scores`.
            images: as in `scores`.

        Raises:
            ValueError: if there is no such method.
        """
        if method not in self.methods:
            raise ValueError(f"method must be one of {', '.join(self.methods)}, not {method!r}")
        own = self.by_seed("planted", method, metric, images)
        others = [other for other in self.methods if other != method] if len(own) else []
        pairs = [own - self.by_seed("planted", other, metric, images) for other in others]
        adjusted = holm([paired_p(values[~np.isnan(values)]) for values in pairs])
        found = list[Difference]()
        for other, values, p in zip(others, pairs, adjusted, strict=True):
            (mean,), (half,) = (v.tolist() for v in mean_and_interval(values[:, None]))
            found.append(Difference(method, other, mean, half, p))
        return sorted(found, key=lambda difference: -np.nan_to_num(difference.mean, nan=-1))

    def write_table(self, path: Path) -> None:
        """Writes a row for every network, seed, method, group of images and metric. Accuracies have no method."""
        rows: list[list[Any]] = []
        for network in self.networks:
            begin = [network.network, network.seed, network.lives_on_mark]
            rows += [[*begin, "", "", f"accuracy_{mark}", f"{value:.6f}", ""] for mark, value in network.accuracies.items()]
        for e in self.explanations:
            cell: list[Any] = [e.network, e.seed, self._networks[e.network, e.seed].lives_on_mark, e.method]
            if e.reason:
                rows.append([*cell, "", "", "", e.reason])
            for metric in METRICS if not e.reason else ():
                for images in IMAGE_GROUPS:
                    value = self._mean(e, metric, images)
                    rows.append([*cell, images, metric, "" if np.isnan(value) else f"{value:.6f}", ""])
        write_csv(path, TABLE_COLUMNS, rows)

    def write_summary(self, path: Path) -> None:
        """Writes a row for every method, group of images and metric. Only headings if no network relies on the mark."""
        rows = [
            [
                "" if isinstance(v, float) and np.isnan(v) else f"{v:.6g}" if isinstance(v, float) else v
                for v in vars(score).values()
            ]
            for metric in METRICS
            for images in IMAGE_GROUPS
            for score in self.scores(metric, images)
        ]
        write_csv(path, SUMMARY_COLUMNS, rows)

    def by_seed(self, network: Network, method: str, metric: str, images: str = "all") -> Values:
        """The mean over the images, for each network that relies on the mark or for its control, [num_networks]; NaN if unknown."""
        found = (self._explanations.get((network, seed, method)) for seed in self.seeds)
        return np.array([np.nan if e is None else self._mean(e, metric, images) for e in found])

    def _mean(self, explanation: Explanation, metric: str, images: str) -> float:
        values = np.array(explanation.values.get(metric, []))
        if images == "following":  # the control uses the same images
            living = self._networks.get(("planted", explanation.seed))
            values = values[np.array(living.follows, bool)] if living is not None and len(values) else values[:0]
        return float(values.mean()) if len(values) else float("nan")

    def _score(self, method: str, metric: str, images: str) -> Score | None:
        planted, control = (self.by_seed(network, method, metric, images) for network in NETWORKS)
        if not len(planted) or np.isnan(planted).all():
            return None
        numbers = dict[str, Any]()
        for name, values in {"planted": planted, "control": control, "difference": planted - control}.items():
            (numbers[name],), (numbers[f"{name}_interval"],) = (v.tolist() for v in mean_and_interval(values[:, None]))
        known = (planted - control)[~np.isnan(planted - control)]
        return Score(method, images, metric, p_holm=paired_p(known), num_networks=int((~np.isnan(planted)).sum()), **numbers)
