"""What methods show of networks that live on a mark: the table and its summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fg_lightning.roar.results import holm, mean_and_interval, paired_p, write_csv

Network = Literal["planted", "control"]
"""Trained with the mark of the label, or with marks of random classes."""

NETWORKS: tuple[Network, ...] = ("planted", "control")

NETWORK_NAMES = {"planted": "trained with the mark", "control": "trained with random marks"}

METRICS = {"pointing_game": "pointing game", "relevance_mass": "relevance mass"}

IMAGE_GROUPS = ("all", "following")
"""Which images a mean is over: all that were explained, or those on which the prediction follows the mark."""

LEAST_FALL = 1 / 3
"""A network lives on the mark if its accuracy falls by this or more with the mark of another class."""

TABLE_COLUMNS = "network seed lives_on_mark method images metric value reason".split()

SUMMARY_COLUMNS = (
    "method images metric planted planted_interval_95 control control_interval_95 difference difference_interval_95 p_holm "
    "num_networks"
).split()

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """
    Attributes:
        network: "planted" or "control".
        seed: of its training.
        accuracies: on the test images, by mark: label, shuffled, random.
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
        """The accuracy with the mark of the label less that with the mark of another class."""
        return self.accuracies["label"] - self.accuracies["shuffled"]

    @property
    def lives_on_mark(self) -> bool:
        return self.fall >= LEAST_FALL


@dataclass(frozen=True, eq=False)
class Explanation:
    """
    Attributes:
        network: "planted" or "control".
        seed: of its training.
        method: by name.
        values: for every metric, a number for each explained image. Empty if the method failed.
        reason: why it failed. Empty if it did not.
    """

    network: Network
    seed: int
    method: str
    values: dict[str, list[float]] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Score:
    """What a method shows of the networks that live on the mark, and of the controls of the same seeds.

    Attributes:
        method: its name.
        images: "all" or "following".
        metric: "pointing_game" or "relevance_mass".
        planted: mean over the networks that live on the mark.
        planted_interval: half of its 95 % confidence interval over the networks, by Student's t. NaN for one network.
        control: the same of the networks that were trained with random marks, for the same images.
        control_interval: half of its interval.
        difference: mean of planted - control, paired by seed.
        difference_interval: half of its interval.
        p_holm: two-sided, of a t-test that the difference is 0, adjusted for the number of methods (Holm 1979). NaN for one
            network, or if the differences do not vary.
        num_networks: how many of either kind.
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
    """How much more of a method's maps lies on the mark than of another's, on the networks that live on it.

    Attributes:
        method: its name.
        other: the other's name.
        mean: of the differences, paired by network.
        interval: half of its 95 % confidence interval over the networks, by Student's t. NaN for one network.
        p_holm: two-sided, of a paired t-test, adjusted for the number of other methods (Holm 1979). NaN for one network, or if the
            differences do not vary.
    """

    method: str
    other: str
    mean: float
    interval: float
    p_holm: float


class PlantedResults:
    """All that was measured. Its repr is a summary.

    Args:
        networks: that have been trained.
        explanations: that have been computed, in the order of the table.
        area: the share of an image's pixels that count as the mark's: what a map gets that knows nothing.
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
        """Those that were trained with the mark of the label."""
        return [network for network in self.networks if network.network == "planted"]

    @property
    def seeds(self) -> list[int]:
        """Of the networks that live on the mark. Scores are of these."""
        return [network.seed for network in self.planted_networks if network.lives_on_mark]

    @property
    def verdict(self) -> str:
        """Whether the networks live on the mark, in a sentence."""
        num_trained, num_living = len(self.planted_networks), len(self.seeds)
        labels, shuffled = (
            np.mean([network.accuracies[mark] for network in self.planted_networks] or [np.nan]) for mark in ("label", "shuffled")
        )
        fall = f"accuracy {labels:.3f} with the mark of the label, {shuffled:.3f} with the mark of another class"
        if not num_living:
            return (
                f"none of {num_trained} networks lives on the mark ({fall}; it has to fall by a third, {LEAST_FALL:.3f}), so that "
                "nothing is known of where they look, and no result is stated"
            )
        rest = "" if num_living == num_trained else "; the others are left out"
        return f"{num_living} of {num_trained} networks live on the mark ({fall}){rest}"

    def scores(self, metric: str = "pointing_game", images: str = "all") -> list[Score]:
        """Every method, the highest first. Empty if no network lives on the mark."""
        scores = [score for method in self.methods if (score := self._score(method, metric, images)) is not None]
        adjusted = holm([score.p_holm for score in scores])
        scores = [replace(score, p_holm=p) for score, p in zip(scores, adjusted, strict=True)]
        return sorted(scores, key=lambda score: -np.nan_to_num(score.planted, nan=-1))

    def differences(self, method: str, metric: str = "pointing_game", images: str = "all") -> list[Difference]:
        """A method against every other, the largest difference first. Empty if no network lives on the mark.

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
        """A row for every network, seed, method, group of images and metric; accuracies have no method."""
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
        """A row for every method, group of images and metric. Only headings if no network lives on the mark."""
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
        """The mean over the images of each network that lives on the mark, or of its control, [num_networks]; NaN if unknown."""
        found = (self._explanations.get((network, seed, method)) for seed in self.seeds)
        return np.array([np.nan if e is None else self._mean(e, metric, images) for e in found])

    def _mean(self, explanation: Explanation, metric: str, images: str) -> float:
        values = np.array(explanation.values.get(metric, []))
        if images == "following":  # the control is asked for the same images
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
