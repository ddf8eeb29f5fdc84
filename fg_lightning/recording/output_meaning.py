"""Decides what an output means: classes, several labels, a logit, regions or a number. Without labels and evidence: a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fg_lightning.fullgrad import TargetError
from fg_lightning.recording.output_evidence import Evidence
from fg_lightning.recording.task import (
    Binary,
    Classes,
    Probability,
    Regions,
    SeveralClasses,
    SeveralProbabilities,
    Task,
    fits_classes,
    is_zero_or_one,
)

LIKELY = 1e-2
"""Smallest probability of the highest label, if labels were drawn from as many classes as the output has entries."""

ENOUGH = 16
"""So many scores of every image, all in 0..1, are not in this range by accident."""

IGNORED = 255
"""By convention, this label is not a class. Labels below 0 are not classes either."""

YES_OR_NO = ("labels", "logits", "probabilities")
"""Kinds of losses and metrics for outputs whose entries are independent decisions."""

SHAPES = {"classes": "[N, K]", "labels": "[N, K]", "logit": "[N] or [N, 1]", "regions": "[N, K, *S]", "number": "[N, ...]"}
"""The shape of output that each task of the user needs."""


class Meaning(NamedTuple):
    """
    Attributes:
        task: what is explained.
        labels: index of the candidate for the labels that belongs to it; None if none does.
        assumed: a message about an assumption; None if the evidence decides.
    """

    task: Task
    labels: int | None
    assumed: str | None = None


def infer_task(
    scores: Tensor,
    images: Tensor,
    candidates: Sequence[Tensor],
    evidence: Evidence | None = None,
    *,
    of_all: Sequence[Tensor] | None = None,
) -> Meaning:
    """Infers what an output means from its shape, the possible labels and the evidence.

    Args:
        scores: the model's output, [N] or [N, ...].
        images: the model's input, [N, C, *S].
        candidates: possible labels, tensors of N rows, the likeliest first.
        evidence: of the module and its data. Default: none.
        of_all: the candidates of all images, if `candidates` is a part of them. Default: `candidates`.
    """
    evidence = evidence or Evidence()
    labels = LabelCandidates(scores, images, candidates, of_all or candidates)
    if math.prod(scores.shape[1:]) == 1:
        return _infer_from_number(scores, labels, evidence)
    return _infer_from_vector(scores, labels, evidence) if scores.ndim == 2 else _infer_from_plane(scores, labels, evidence)


def task_by_name(
    name: str, scores: Tensor, images: Tensor, candidates: Sequence[Tensor], evidence: Evidence | None = None
) -> Meaning:
    """The task that the user chose, with the labels that fit it.

    Raises:
        TargetError: if the output does not have the shape of the task.
    """
    labels, evidence = LabelCandidates(scores, images, candidates, candidates), evidence or Evidence()
    is_one, is_vector = math.prod(scores.shape[1:]) == 1, scores.ndim == 2
    has_shape = {"classes": is_vector and not is_one, "labels": is_vector, "logit": is_one, "regions": scores.ndim > 2}
    if not has_shape.get(name, True):
        raise TargetError(f'task="{name}" needs an output {SHAPES[name]}, but the output has shape {list(scores.shape)}')
    are_probabilities = _are_probabilities(scores, evidence)
    if name == "classes":
        return Meaning(Classes(), _first(labels.classes(), labels.matrix()))
    if name == "labels":
        task = SeveralProbabilities() if are_probabilities else SeveralClasses()
        return Meaning(task, _first(labels.matrix(), labels.classes()))
    if name == "logit":
        return Meaning(Probability() if are_probabilities else Binary(), labels.single())
    if name == "regions":
        return Meaning(Regions(), _first(labels.maps(), labels.classes()))
    return Meaning(Task(), 0 if candidates else None)


class LabelCandidates:
    """The candidates for the labels of an output.

    Each method returns the index of the likeliest candidate of one form, or None.

    Args:
        scores, images, candidates, of_all: see `infer_task`.
    """

    def __init__(self, scores: Tensor, images: Tensor, candidates: Sequence[Tensor], of_all: Sequence[Tensor]) -> None:
        self.scores = scores
        self.images = images
        self.candidates = candidates
        self.of_all = of_all

    def single(self) -> int | None:
        """One number for each image."""
        return self._first(lambda t: t.shape == (len(self.scores),))

    def classes(self) -> int | None:
        """One integer for each image. Preferred are candidates whose labels all fit classes of the output, then those with some."""
        n = len(self.scores)
        integers = [i for i, t in enumerate(self.candidates) if t.shape == (n,) and not t.is_floating_point()]
        fitting = [i for i in integers if bool(fits_classes(self.candidates[i], self.scores).any())]
        entirely = [i for i in fitting if bool((self.of_all[i] < self.scores.shape[1]).logical_or(self.of_all[i] == IGNORED).all())]
        return next(iter([*entirely, *fitting, *integers]), None)

    def matrix(self) -> int | None:
        """A tensor of the output's shape."""
        return self._first(lambda t: t.shape == self.scores.shape)

    def maps(self) -> int | None:
        """A class for every place, [N, *S] or [N, 1, *S], or 0 and 1 for every class and place, [N, K, *S]."""
        planes, many = (self.scores.shape[2:], self.images.shape[2:]), self.scores.shape[1]

        def fits(t: Tensor) -> bool:
            has_channels = t.ndim == self.scores.ndim
            if t.ndim < 2 or t.shape[2 if has_channels else 1 :] not in planes or (has_channels and t.shape[1] not in (1, many)):
                return False
            are_classes = many > 1 and not (has_channels and t.shape[1] == many) and not t.is_floating_point()
            return are_classes or is_zero_or_one(t)

        return self._first(fits)

    def spatial(self) -> int | None:
        """More than a vector for each image."""
        return self._first(lambda t: t.ndim > 2)

    def _first(self, fits: Callable[[Tensor], bool]) -> int | None:
        return next((i for i, labels in enumerate(self.candidates) if fits(labels)), None)


def _infer_from_number(scores: Tensor, labels: LabelCandidates, evidence: Evidence) -> Meaning:
    """[N] or [N, 1]."""
    which = labels.single()
    if which is None or not is_zero_or_one(labels.of_all[which]) or _are_of_more_classes(labels.of_all[which], evidence):
        return Meaning(Task(), which)
    if evidence.is_for("logits"):
        return Meaning(Binary(), which)
    if evidence.is_for("numbers", "embeddings") and not evidence.is_for("binary", "probabilities"):
        return Meaning(Task(), which)
    is_sure = evidence.is_for("binary", "probabilities")
    if _are_in_range(scores) and (is_sure or evidence.ends_in_sigmoid):
        task: Task = Probability()
    elif evidence.is_for("probabilities") or (bool((scores < 0).any()) and bool((scores > 0).any())):
        task = Binary()
    else:
        task, is_sure = Task(), False
    return Meaning(task, which) if is_sure else _guess(task, which, scores)


def _are_of_more_classes(labels: Tensor, evidence: Evidence) -> bool:
    """Whether integers that are 0 or 1 in the probe have other values elsewhere in the data. Booleans are uint8 here."""
    is_classes_task = not labels.is_floating_point() and labels.dtype is not torch.uint8
    return is_classes_task and bool(evidence.of_data) and min(evidence.of_data) > 2


def _infer_from_vector(scores: Tensor, labels: LabelCandidates, evidence: Evidence) -> Meaning:
    """[N, K]."""
    matrix, classes = labels.matrix(), labels.classes()
    if matrix is not None and (classes is None or not bool(fits_classes(labels.of_all[classes], scores).any())):
        return _infer_from_matrix(scores, labels, matrix, evidence)
    if classes is not None:
        return _classes_or_number(_classes_task(scores, evidence), scores, labels, classes, evidence)
    numbers = labels.single()
    return _infer_without_labels(Classes(), scores, evidence) if numbers is None else Meaning(Task(), numbers)


def _classes_task(scores: Tensor, evidence: Evidence) -> Task:
    """The task of scores with one label for each image. A loss for independent decisions may train each score by itself."""
    if not evidence.is_for("logits", "probabilities") or evidence.is_for("classes"):
        return Classes()
    return SeveralProbabilities() if _are_probabilities(scores, evidence) else SeveralClasses()


def _infer_from_matrix(scores: Tensor, labels: LabelCandidates, which: int, evidence: Evidence) -> Meaning:
    """[N, K] with labels of the same shape."""
    rows = labels.of_all[which].float()
    is_regression = evidence.is_for("numbers", "embeddings") and not evidence.is_for("classes", *YES_OR_NO)
    if is_regression or bool(((rows < 0) | (rows > 1)).any()):
        return Meaning(Task(), which)
    is_binary, is_yes_or_no = is_zero_or_one(rows), evidence.is_for(*YES_OR_NO)
    if torch.allclose(rows.sum(1), rows.new_ones(()), atol=1e-3) and not (is_binary and is_yes_or_no):
        return Meaning(Classes(), which)
    if is_binary or is_yes_or_no:
        return Meaning(SeveralProbabilities() if _are_probabilities(scores, evidence) else SeveralClasses(), which)
    return _guess(Task(), which, scores)


def _infer_from_plane(scores: Tensor, labels: LabelCandidates, evidence: Evidence) -> Meaning:
    """[N, K, *S], an image or tokens."""
    maps, others = labels.maps(), labels.spatial()
    if scores.ndim != labels.images.ndim or (maps is None and (scores.shape == labels.images.shape or others is not None)):
        return Meaning(Task(), others)
    if maps is None:
        return _infer_without_labels(Regions(), scores, evidence)
    if evidence.is_for("numbers") and not evidence.is_for("classes", "binary", *YES_OR_NO):
        return Meaning(Task(), maps)
    found = labels.of_all[maps]
    is_one_hot = found.ndim == scores.ndim and found.shape[1] == scores.shape[1]
    return (
        Meaning(Regions(), maps)
        if is_one_hot or scores.shape[1] == 1
        else _classes_or_number(Regions(), scores, labels, maps, evidence)
    )


def _infer_without_labels(task: Task, scores: Tensor, evidence: Evidence) -> Meaning:
    """A task of classes if the evidence names as many classes as the output has entries, else a number."""
    if evidence.is_for("numbers", "embeddings") and not evidence.is_for("classes", *YES_OR_NO):
        return Meaning(Task(), None)
    return Meaning(task, None) if evidence.knows(scores.shape[1]) else _guess(Task(), None, scores)


def _classes_or_number(task: Task, scores: Tensor, labels: LabelCandidates, which: int, evidence: Evidence) -> Meaning:
    """A task of classes if the output's entries are the classes of the labels, else a number."""
    found = labels.of_all[which]
    count = scores.shape[1]
    if found.ndim == 1 and found.unique().tolist() == list(range(1, count + 1)):
        note = f"labels go from 1 to {count}, but the classes of the output from 0 to {count - 1}"
        return Meaning(task, None, f"{note}, so the labels are ignored, and the class of the first prediction is explained")
    fitting = found[fits_classes(found, scores)]
    if found.ndim == 1 and bool((found == count).any()) and evidence.knows(count + 1):  # thresholds between ordered classes
        return _guess(Task(), which, scores)
    are_classes, is_sure = _are_classes(count, fitting if found.ndim == 1 else fitting.unique(), evidence)
    task = task if are_classes else Task()
    return Meaning(task, which) if is_sure else _guess(task, which, scores)


def _are_classes(count: int, labels: Tensor, evidence: Evidence) -> tuple[bool, bool]:
    """Whether `count` entries are the classes of labels that are all below `count`; and whether that is sure."""
    is_for_classes = evidence.is_for("classes", *YES_OR_NO)
    if evidence.is_for("numbers", "embeddings") and not is_for_classes:
        return False, not evidence.knows(count)
    is_compared = evidence.is_for("embeddings")
    if count in evidence.counts or count in evidence.of_data or (count in evidence.heads and not is_compared):
        return True, True
    if not len(labels):
        return False, not is_for_classes
    seen = int(labels.max()) + 1
    if is_compared:
        return seen == count, False
    if is_for_classes:
        is_known_to_be_other = bool(evidence.counts) and count > 1.25 * max(evidence.counts) + 1
        is_sure = not evidence.counts and not evidence.of_data and (seen / count) ** len(labels) >= LIKELY
        return not is_known_to_be_other and not evidence.has_head_behind(count, seen), is_sure or seen == count
    if evidence.counts or evidence.of_data:
        return False, True
    is_likely = (seen / count) ** len(labels) >= LIKELY
    return is_likely, not is_likely or seen == count


def _are_in_range(scores: Tensor) -> bool:
    return bool(((scores >= 0) & (scores <= 1)).all())


def _are_probabilities(scores: Tensor, evidence: Evidence) -> bool:
    """Whether scores are probabilities: in 0..1, not of a loss for logits, and confirmed by a loss, a sigmoid or their number."""
    if not _are_in_range(scores) or evidence.is_for("logits"):
        return False
    is_no_accident = math.prod(scores.shape[1:]) >= ENOUGH
    return evidence.is_for("probabilities") or evidence.ends_in_sigmoid or is_no_accident


def _guess(task: Task, which: int | None, scores: Tensor) -> Meaning:
    """A guess, with a message about it."""
    is_one = math.prod(scores.shape[1:]) == 1
    names = ("number", "logit") if is_one else ("number", "classes", "labels") if scores.ndim == 2 else ("number", "regions")
    others = " or ".join(f'"{name}"' for name in names if name != task.name)
    shape = ", ".join(["N", *map(str, scores.shape[1:])])
    return Meaning(
        task,
        which,
        f"labels, losses and metrics do not tell what the output [{shape}] is. It is assumed to be {task.words}. "
        f'Pass task="{task.name}" if that is right, else task={others}',
    )


def _first(*found: int | None) -> int | None:
    return next((which for which in found if which is not None), None)
