"""Sentences on the results of an experiment. P-values, adjusted by Holm's method, decide them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fg_lightning.attribution import CONTROLS
from fg_lightning.roar.results import ROARResults, Score, mean_of_known

ALPHA = 0.05
"""A method differs from random if its p-value, adjusted by Holm, is below this."""

MARGIN = 0.1
"""Masks give the class away if they alone are this much more accurate than random's masks, or twice as accurate."""

MAX_NAMES = 4
"""Largest number of methods without a difference that a sentence names."""


def list_findings(results: ROARResults) -> list[str]:
    """Findings of an experiment: sentences on the methods compared with random, the fills, the masks and the explained class.

    Args:
        results: results of the experiment.

    Returns:
        The sentences, in this order. Empty if there is nothing to compare.
    """
    return [*describe_scores(results), *describe_fills(results), *describe_masks(results), *describe_target(results)]


def describe_scores(results: ROARResults) -> list[str]:
    """Which methods are better than random, which are worse, and which show no difference, for each fill."""
    scores = results.scores()
    if not scores:
        return []
    count = len(results.networks if results.interval_over == "networks" else results.seeds)
    if count == 1:
        more = "" if results.mode == "road" else "; to get them, repeat with --num_networks or --num_seeds"
        return [f"There are no p-values, because every curve was measured once{more}."]
    if results.interval_over == "networks":
        covered = f"P-values and intervals cover {count} explained networks, so both their maps and the retraining."
    else:
        covered = f"P-values and intervals cover retraining with {count} seeds, but not the maps: one network was explained."
    sentences = [f"A method differs from random here if its p-value, adjusted by Holm, is below {ALPHA:g}. {covered}"]
    for fill in results.fills:
        groups = {kind: [s for s in scores if s.fill == fill and verdict(s) == kind] for kind in ("better", "worse", "")}
        better, worse = (_join(f"{s.method} ({s.area:+.3f})" for s in groups[kind]) for kind in ("better", "worse"))
        told = [f"better than random: {better}" if better else "no method is better than random"]
        told += [f"worse: {worse}" if worse else "none is worse"]
        if groups[""]:
            told += [f"no difference is shown for {_name_or_count(groups[''], bool(better or worse))}"]
        where = f"With fill {fill}, " if len(results.fills) > 1 else ""
        sentence = f"{where}{'; '.join(told)}.{_compare_with_controls(groups['better'])}"
        sentences.append(sentence[0].upper() + sentence[1:])
    return sentences


def verdict(score: Score) -> str:
    """ "better" or "worse" than random, or empty if no difference is shown."""
    if not score.p_holm < ALPHA:  # NaN: there is no p-value
        return ""
    return "better" if score.area > 0 else "worse"


def describe_fills(results: ROARResults) -> list[str]:
    """Methods that are better than random with some fills only."""
    groups: dict[tuple[str, ...], list[str]] = {}
    scores = results.scores()
    for method in results.methods:
        verdicts = tuple(
            verdict(score) for fill in results.fills for score in scores if (score.method, score.fill) == (method, fill)
        )
        if "better" in verdicts and set(verdicts) != {"better"}:
            groups.setdefault(verdicts, []).append(method)
    kinds = {"better than random with": "better", "worse with": "worse", "no difference is shown with": ""}
    sentences = []
    for verdicts, methods in groups.items():
        fills = {words: [f for f, v in zip(results.fills, verdicts, strict=True) if v == kind] for words, kind in kinds.items()}
        told = "; ".join(f"{words} {_join(own)}" for words, own in fills.items() if own)
        sentences.append(f"The fill decides about {_join(methods)}: {told}.")
    return sentences


def describe_masks(results: ROARResults) -> list[str]:
    """The accuracy of networks that see the masks alone, compared with random's masks."""
    if results.mode == "road":
        return []
    if not results.has_controls:
        return ["How much the masks alone give away was not measured: the controls were turned off (no_controls)."]
    leaks = find_leaks(results)
    highest = np.nanmax(mean_of_known(results.masks_accuracies("random"), 0), initial=0.0)
    if not leaks:
        most = np.nanmax([results.masks_accuracies(method) for method in results.methods], initial=0.0)
        return [f"No method's masks give the class away: alone they reach at most {most:.2f}, and random's {highest:.2f}."]
    reached = _join(f"{method} {accuracy:.2f}" for method, accuracy in leaks.items())
    return [
        f"These masks give the class away. Networks trained on the masks alone, without an image, reach these accuracies: "
        f"{reached}; random {highest:.2f}. Each is the highest of all fractions. If the fill shows which pixels are gone, the "
        "curves of these methods can stay this high, whatever the pixels held."
    ]


def find_leaks(results: ROARResults) -> dict[str, float]:
    """Methods whose masks alone give the class away, see MARGIN, and the highest accuracy that they reach.

    Random's masks do not depend on the image, so their accuracy estimates chance.
    """
    if "random" not in results.methods:
        return {}
    random = mean_of_known(results.masks_accuracies("random"), 0)
    leaks = {}
    for method in results.methods:
        reached = mean_of_known(results.masks_accuracies(method), 0)
        found = np.flatnonzero(reached > random + np.minimum(random, MARGIN * results.unit))  # NaN compares as False
        if len(found):
            leaks[method] = float(reached[found].max())
    return dict(sorted(leaks.items(), key=lambda item: -item[1]))


def describe_target(results: ROARResults) -> list[str]:
    """What masks of the explained class can give away, and what they gave away in this experiment."""
    reached = {m: np.nan_to_num(mean_of_known(results.masks_accuracies(m), 0)).max() for m in results.methods if m not in CONTROLS}
    if not results.has_controls or not reached:
        return []
    method = max(reached, key=lambda method: reached[method])
    numbers = f"Here masks alone reach up to {reached[method]:.2f} ({method})"
    intact = _intact_accuracy(results)
    beside = f", beside {intact:.2f} with intact images." if intact is not None else "."
    explained = {
        "predicted": "The predicted class is explained: masks of it can show the explained network's answer to the network that is "
        "trained on them.",
        "label": "The label is explained: masks of it can give the right answer itself away.",
        "random": "A class drawn at random for each image is explained: its masks are made without the prediction and the label. "
        "They can only give away what masks of every class show, such as an outline.",
    }
    of_one = f"Class {results.target} is explained for all images: its masks can show which images are of it."
    return [f"{explained.get(str(results.target), of_one)} {numbers}{beside}"]


def _intact_accuracy(results: ROARResults) -> float | None:
    """The mean accuracy with all pixels."""
    intact = 1.0 if results.mode == "kar" else 0.0
    known = [r.accuracy for r in results.results if r.cell.fraction == intact and r.accuracy is not None]
    return float(np.mean(known)) if known else None


def _compare_with_controls(better: Sequence[Score]) -> str:
    """Names the methods whose area is not larger than a control's."""
    best = max((s for s in better if s.method in CONTROLS), key=lambda s: s.area, default=None)
    behind = [s.method for s in better if best and s.method not in CONTROLS and s.area <= best.area]
    if best is None or not behind:
        return ""
    return f" The control {best.method}, which does not use the network, has a larger area than {_join(behind)}."


def _name_or_count(scores: Sequence[Score], is_rest: bool) -> str:
    if len(scores) <= MAX_NAMES:
        return _join(score.method for score in scores)
    return f"the other {len(scores)}" if is_rest else f"any of the {len(scores)}"


def _join(words: Iterable[str]) -> str:
    """Words with commas between them, and "and" before the last."""
    *first, last = [*words] or [""]
    return f"{', '.join(first)} and {last}" if first else last
