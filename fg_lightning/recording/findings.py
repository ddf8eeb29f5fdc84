"""Findings: measured facts about a run that the user should know. Each has a number and a threshold.

`docs/findings.md` reports how often each finding occurs in healthy training runs and in runs that went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from jaxtyping import Float
from torch import Tensor

from fg_lightning.history.records import Explanation
from fg_lightning.metrics.border_and_corners import border_mask, corner_masks
from fg_lightning.metrics.localization import pointing_game
from fg_lightning.recording.sanity_checks import SanityCheck, mean_rank_correlation

MIN_IMAGES = 8
"""Shares of fewer images are not measured: they are too uncertain to be facts about the network."""

MIN_ACCURACY = 0.5
"""Least accuracy to check corners and border. Their thresholds were measured on classifiers that had learned their task."""

MIN_SIDE = 8
"""Least side in pixels to check corners and border. The corners of smaller images are single pixels."""

PAGE = "findings.html"
"""The page of the manual that explains findings."""

COLUMNS = ("snapshot", "finding", "method", "value", "threshold", "message", "advice", "page")
"""The columns of `findings.csv`."""


@dataclass(frozen=True)
class Finding:
    """A measured fact about a run.

    Attributes:
        name: name of the rule, such as "corner".
        method: key of the method whose maps it is about; empty if it is about the decomposition.
        value: the measured value.
        threshold: a value of at least this size is a finding.
        message: a sentence with the measured fact.
        advice: what the user should do.
        page: the section of the manual that explains it.
        snapshot: index of the snapshot at which it was measured.
    """

    name: str
    method: str
    value: float
    threshold: float
    message: str
    advice: str
    page: str
    snapshot: int

    def cells(self) -> tuple[Union[str, float], ...]:
        """The row of `findings.csv`."""
        value, threshold = f"{self.value:.6g}", f"{self.threshold:.6g}"
        return self.snapshot, self.name, self.method, value, threshold, self.message, self.advice, self.page

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the finding: it is the same in all snapshots."""
        return self.name, self.method


@dataclass(frozen=True, eq=False)
class Observations:
    """The data of a run at one snapshot to which the rules apply.

    Attributes:
        snapshot: index of the snapshot.
        explanation: of the snapshot.
        is_trained: whether the network was trained before this snapshot.
        untrained: the maps of the untrained network by method, without those that are lost.
        drift: mean cosine distance of FullGrad's maps to those of the snapshot before; None if it is unknown.
        checks: the sanity checks by method; empty before training ends.
        unchecked: the reason why there are no sanity checks.
        accuracy: share of the images whose predicted class is their label; None if it is unknown.
    """

    snapshot: int
    explanation: Explanation
    is_trained: bool = True
    untrained: Mapping[str, Float[Tensor, "n 1 *s"]] = field(default_factory=dict)
    drift: float | None = None
    checks: Mapping[str, SanityCheck] = field(default_factory=dict)
    unchecked: str = "they are checked when training ends"
    accuracy: float | None = None

    @property
    def maps(self) -> dict[str, Tensor]:
        """The maps of every method, FullGrad's first."""
        return {"fullgrad": self.explanation.maps, **self.explanation.method_maps}


class Measurement(NamedTuple):
    """
    Attributes:
        value: the number that is compared with the threshold.
        words: the message of a finding.
    """

    value: float
    words: str


Measured = Union[Measurement, str]
"""A measurement, or the reason why there is none."""


@dataclass(frozen=True)
class Rule:
    """Reports a finding if a measured value reaches a threshold.

    Attributes:
        name: name of the finding, and of its section in the manual.
        about: name of the check in the summary.
        threshold: a value of at least this size is a finding.
        measure: (observations, method) -> the measurement, or the reason why there is none.
        advice: what the user should do.
        is_of_maps: whether each method is checked by itself. If not, the rule is checked once.
        is_last: whether the rule is checked only when training ends.
    """

    name: str
    about: str
    threshold: float
    measure: Callable[[Observations, str], Measured]
    advice: str
    is_of_maps: bool = True
    is_last: bool = False

    def check(self, observations: Observations, method: str) -> Finding | str | None:
        """A finding; None if the value is too small; or the reason why there is no value."""
        measured = self.measure(observations, method)
        if isinstance(measured, str):
            return measured
        if not measured.value >= self.threshold:
            return None
        page = f"{PAGE}#{self.name.replace('_', '-')}"
        return Finding(self.name, method, measured.value, self.threshold, measured.words, self.advice, page, observations.snapshot)


@dataclass(frozen=True)
class Result:
    """
    Attributes:
        findings: in the order of the rules.
        checked: names of the checks that were made.
        unchecked: name of each check that was not made -> the reason.
    """

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    unchecked: Mapping[str, str]


def find(observations: Observations, *, is_last: bool = False) -> Result:
    """Applies every rule to the observations.

    Args:
        observations: of one snapshot.
        is_last: whether training has ended, so that all rules apply. Default: False.
    """
    findings: list[Finding] = []
    checked: list[str] = []
    unchecked: dict[str, str] = {}
    for rule in RULES:
        if rule.is_last and not is_last:
            continue
        for method in observations.maps if rule.is_of_maps else [""]:
            found = rule.check(observations, method)
            if isinstance(found, str):
                unchecked.setdefault(rule.about, found)
                continue
            if rule.about not in checked:
                checked.append(rule.about)
            if found is not None:
                findings.append(found)
    is_in_corner = {finding.method for finding in findings if finding.name == "corner"}  # a corner is a part of the border
    findings = [finding for finding in findings if finding.name != "border" or finding.method not in is_in_corner]
    return Result(tuple(findings), tuple(checked), {about: why for about, why in unchecked.items() if about not in checked})


# --- measurements


def measure_incompleteness(observations: Observations, method: str = "") -> Measured:
    """The share of the outputs that the terms miss: sum of |f - sum of all terms| over sum of |f|."""
    terms = observations.explanation.terms
    output = terms["output"].double()
    total = float(output.abs().sum())
    if total == 0:
        return "the output is zero"
    missed = (output - sum(terms[f"{kind}_term"].double() for kind in ("input", "bias", "implicit"))).abs().sum()
    return Measurement(float(missed) / total, f"The terms miss {float(missed) / total:.1%} of the output")


def measure_missing_operations(observations: Observations, method: str = "") -> Measured:
    """The number of operations whose bias is missing from the sum."""
    missing = observations.explanation.missing_ops
    return Measurement(
        len(missing), f"{len(missing)} operation{'s have' if len(missing) != 1 else ' has'} no bias: {_list(missing)}"
    )


def measure_lost_operations(observations: Observations, method: str = "") -> Measured:
    """The share of biased operations whose place in the image is unknown. Operations behind the last plane do not count."""
    drawn, lost = observations.explanation.num_drawn, len(observations.explanation.lost_ops)
    if drawn + lost == 0:
        return "no bias lies on the image plane"
    words = f"{lost} of {drawn + lost} operations with a bias are not on the map: {_list(observations.explanation.lost_ops)}"
    return Measurement(lost / (drawn + lost), words)


def measure_corner(observations: Observations, method: str) -> Measured:
    """The share of images whose map is highest in one and the same corner."""
    maps = observations.maps[method].abs()
    reason = _why_not_plane(maps, observations.explanation.num_inputs) or _why_untrained(observations)
    if reason:
        return reason
    shares = {name: _share_of_peaks(maps, mask) for name, mask in corner_masks(maps.shape[2:]).items()}
    corner = max(shares, key=lambda name: shares[name])
    where = corner.replace("_", " ")
    return Measurement(shares[corner], f"{_count(shares[corner], maps)} are highest in the {where} corner")


def measure_border(observations: Observations, method: str) -> Measured:
    """The share of images whose map is highest in the outer tenth."""
    maps = observations.maps[method].abs()
    reason = _why_not_plane(maps, observations.explanation.num_inputs) or _why_untrained(observations)
    if reason:
        return reason
    mask = border_mask(maps.shape[2:])
    assert mask is not None
    share = _share_of_peaks(maps, mask)
    return Measurement(share, f"{_count(share, maps)} are highest at the border of the image")


def measure_jump(observations: Observations, method: str = "") -> Measured:
    """Mean cosine distance of FullGrad's maps to those of the snapshot before."""
    if observations.drift is None:
        return "there is no snapshot before"
    if (observations.explanation.maps < 0).any():
        return "the maps are signed"
    before = "the last ones is {:.2f}"
    if observations.snapshot == 1 and observations.untrained:  # counts, too: a training that diverges at once has no other jump
        before = "those of the untrained network is {:.2f}; a healthy training can reach this, too, in its first snapshot"
    return Measurement(observations.drift, f"The maps jumped: their mean cosine distance to {before.format(observations.drift)}")


def measure_similarity_to_untrained(observations: Observations, method: str) -> Measured:
    """Mean rank correlation of the maps with those of the untrained network."""
    if method not in observations.untrained:
        return "the maps of the untrained network are not known"
    if not observations.is_trained:
        return "the network is untrained"
    maps, untrained = observations.maps[method], observations.untrained[method]
    if maps.shape != untrained.shape:
        return "the maps of the untrained network are of other images"
    value = mean_rank_correlation(maps, untrained)
    return Measurement(
        value, f"The maps hardly differ from those of the untrained network: their mean rank correlation is {value:.3f}"
    )


def measure_similarity_to_random(observations: Observations, method: str) -> Measured:
    """Mean rank correlation of the maps with those of a network with random weights."""
    check = observations.checks.get(method)
    if check is None or check.randomized is None:
        return observations.unchecked if check is None else check.why_not_randomized
    value = check.randomized
    return Measurement(value, f"The maps hardly differ from those of random weights: their mean rank correlation is {value:.3f}")


def measure_similarity_to_runner_up(observations: Observations, method: str) -> Measured:
    """Mean rank correlation of the maps with those of the most probable other class."""
    check = observations.checks.get(method)
    if check is None or check.runner_up is None:
        return observations.unchecked if check is None else check.why_not_runner_up
    value = check.runner_up
    return Measurement(value, f"The maps hardly differ from those of the next class: their mean rank correlation is {value:.3f}")


def _share_of_peaks(maps: Tensor, mask: Tensor) -> float:
    return float(pointing_game(maps, mask.to(maps.device).expand_as(maps)).double().mean())


def _why_not_plane(maps: Tensor, num_inputs: int) -> str:
    """The reason why the corners of maps have no meaning; empty if they have one."""
    if maps.ndim != 4:
        return "the images are not planes"
    if num_inputs > 1:
        return "several image inputs lie side by side"
    if min(maps.shape[2:]) < MIN_SIDE:
        return f"the images have fewer than {MIN_SIDE} pixels a side"
    return "" if len(maps) >= MIN_IMAGES else f"{len(maps)} images are too few; {MIN_IMAGES} are needed"


def _why_untrained(observations: Observations) -> str:
    """The reason why a network has learned too little for corners and border to be checked; empty if it has learned enough."""
    if not observations.is_trained:
        return "the network is untrained"
    if observations.accuracy is None:
        return "there are no labels to compare the predicted classes with"
    is_wrong = observations.accuracy < MIN_ACCURACY
    return f"fewer than {MIN_ACCURACY:.0%} of the images are predicted correctly" if is_wrong else ""


def _count(share: float, maps: Tensor) -> str:
    """The number of maps in a share, as text. It may be a fraction, because several pixels of a map may be the highest."""
    return f"{share * len(maps):.3g} of {len(maps)} maps"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


RULES = (
    Rule(
        "incomplete",
        "the sum of the terms",
        0.01,
        measure_incompleteness,
        "Do not rely on the maps. FullGrad's warning names the operation that is not complete, if it is known",
        is_of_maps=False,
    ),
    Rule(
        "missing_operations",
        "missing operations",
        1,
        measure_missing_operations,
        "The maps lack what these operations add. Write them with operations of torch, or with an autograd.Function that can be "
        "differentiated twice",
        is_of_maps=False,
    ),
    Rule(
        "lost_operations",
        "lost operations",
        0.5,
        measure_lost_operations,
        "The maps show the smaller part of the network. Pass FullGrad a function, layout=..., for the places of these operations",
        is_of_maps=False,
    ),
    Rule(
        "corner",
        "the corners",
        0.3,
        measure_corner,
        "Look there for a mark that tells the class, such as a watermark or a timestamp. Cover this corner of the validation "
        "images and see whether the accuracy falls",
    ),
    Rule(
        "border",
        "the border",
        0.75,
        measure_border,
        "Look for a frame, padding or a crop that differs between classes. Cover the border of the validation images and see "
        "whether the accuracy falls",
    ),
    Rule(
        "jumped",
        "jumps of FullGrad's maps",
        0.5,
        measure_jump,
        "Look at the loss around this snapshot. If it rose, the learning rate may be too high",
        is_of_maps=False,
    ),
    Rule(
        "like_untrained",
        "the untrained network",
        0.95,
        measure_similarity_to_untrained,
        "Training has hardly changed what is explained. Check the loss, the learning rate and which layers are frozen",
        is_last=True,
    ),
    Rule(
        "like_random_weights",
        "random weights",
        0.9,
        measure_similarity_to_random,
        "Do not read these maps as what the network has learned: they show the image. Use another method",
        is_last=True,
    ),
    Rule(
        "not_class_specific",
        "the next class",
        0.99,
        measure_similarity_to_runner_up,
        "Do not read these maps as evidence for one class. Explain the difference of two scores by target=function, or use another "
        "method",
        is_last=True,
    ),
)
"""All rules, in the order in which their findings are shown."""
