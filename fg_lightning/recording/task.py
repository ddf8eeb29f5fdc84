"""The task: which number of the output is explained for each image, and how the output is read as an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Union

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fg_lightning.fullgrad import main_output
from fg_lightning.history.records import Answers

ProbeTarget = Union[None, int, Sequence[int], Tensor, Callable[[Any], Tensor]]
"""What to explain: None for the label, a class for all images or one for each, or a function from the output to [N]."""


class Task:
    """One kind of output. This class is for regression: one number for each image, or several whose mean is explained.

    Labels have a row for each image and may be of any kind. They are None if there are none.

    Attributes:
        name: the name by which the user may choose the task.
        words: describes the output in messages.
        has_classes: whether integers in its answers are classes.
    """

    name = "number"
    words = "a number, or several whose mean is explained"
    has_classes = False

    def fix_labels(self, output: Any, labels: Tensor | None) -> Tensor | None:
        """Fixes the explained labels, so that maps can be compared over time. The prediction replaces labels that do not fit.

        Labels that are fixed already are returned unchanged.
        """
        return labels

    def score(self, output: Any, labels: Tensor | None) -> Float[Tensor, " n"]:
        """The numbers to explain, [N], given fixed labels."""
        return main_output(output).flatten(1).mean(1) if main_output(output).ndim > 1 else main_output(output)

    def answers(self, output: Any, labels: Tensor | None) -> Answers:
        """The explained and the predicted class or number of each image, given fixed labels."""
        return Answers(predicted=self.score(output, labels))

    def misfit(self, output: Any, labels: Tensor | None) -> str | None:
        """A message about labels that do not fit the output; None if they fit."""
        return None

    def num_classes(self, output: Any) -> int | None:
        """Number of classes that the output distinguishes; None if it has no classes."""
        return None


class Entry(Task):
    """[N, K] of numbers that are not classes: the entry that the user chose."""

    def score(self, output: Any, labels: Tensor | None) -> Tensor:
        assert labels is not None
        scores = main_output(output)
        return scores.gather(1, labels.to(scores.device).long()[:, None]).squeeze(1)

    def misfit(self, output: Any, labels: Tensor | None) -> str | None:
        return Classes().misfit(output, labels)


class Binary(Task):
    """[N] or [N, 1]: the logit of class 1."""

    name = "logit"
    words = "the logit of class 1"
    has_classes = True

    def answers(self, output: Any, labels: Tensor | None) -> Answers:
        probability = self.probability(self.score(output, labels))
        return Answers(None, (probability > 0.5).long(), torch.maximum(probability, 1 - probability))

    def num_classes(self, output: Any) -> int:
        return 2

    def probability(self, score: Tensor) -> Tensor:
        """The probability of class 1, [N]."""
        return score.sigmoid()


class Probability(Binary):
    """[N] or [N, 1]: the probability of class 1."""

    words = "the probability of class 1"

    def probability(self, score: Tensor) -> Tensor:
        return score.clamp(0, 1)


class Classes(Task):
    """[N, K]: the score of the labelled class, or of the first if there are several."""

    name = "classes"
    words = "scores of classes"
    has_classes = True

    def fix_labels(self, output: Any, labels: Tensor | None) -> Tensor:
        scores = main_output(output).detach()
        predicted = scores.argmax(1)
        if labels is None:
            return predicted
        labels = labels.to(scores.device)  # the last layer may be elsewhere than the first
        if labels.shape == scores.shape:
            return torch.where(labels.amax(1) > 0, labels.float().argmax(1), predicted)
        return torch.where(fits_classes(labels, scores), labels.long(), predicted)

    def score(self, output: Any, labels: Tensor | None) -> Tensor:
        return main_output(output).gather(1, self.fix_labels(output, labels)[:, None]).squeeze(1)

    def answers(self, output: Any, labels: Tensor | None) -> Answers:
        scores = main_output(output)
        confidence, predicted = self.probabilities(scores).max(1)
        return Answers(labels, predicted, confidence, self._runner_up(scores.detach(), self.fix_labels(output, labels)))

    def _runner_up(self, scores: Tensor, explained: Tensor) -> Tensor | None:
        """The class with the highest score other than the explained one, [N]; None if there is no other."""
        return scores.scatter(1, explained[:, None], -torch.inf).argmax(1) if scores.shape[1] > 1 else None

    def misfit(self, output: Any, labels: Tensor | None) -> str | None:
        scores = main_output(output)
        if labels is None or labels.ndim != 1 or bool(fits_classes(labels, scores).all()):
            return None
        return f"labels {labels.tolist()} are out of range: the output has shape {tuple(scores.shape)}"

    def num_classes(self, output: Any) -> int:
        return main_output(output).shape[1]

    def probabilities(self, scores: Tensor) -> Tensor:
        """Softmax, unless the scores are probabilities already."""
        are_probabilities = (scores >= 0).all() and torch.allclose(scores.sum(1), scores.new_ones(()), atol=1e-3)
        return scores if are_probabilities else scores.softmax(1)


class SeveralClasses(Classes):
    """[N, K] if an image may have several classes."""

    name = "labels"
    words = "scores of classes, of which an image may have several"

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()


class SeveralProbabilities(SeveralClasses):
    """[N, K] of probabilities, if an image may have several classes."""

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.clamp(0, 1)


class Regions(Task):
    """[N, K, *S]: the mean score of a class over its region of the label map.

    The class is the one with the largest region, except class 0, by convention the background. Without another class it is class 0.
    A single score is that of class 1. An image without the class is explained as a whole.
    """

    name = "regions"
    words = "scores of a class for every place"
    has_classes = True

    def fix_labels(self, output: Any, labels: Tensor | None) -> Tensor:
        scores = main_output(output).detach()
        if labels is None:
            return _predicted_map(scores)
        labels = labels.to(scores.device)
        if labels.ndim == 1:
            return labels.reshape(-1, *(1,) * (scores.ndim - 2)).expand(len(scores), *scores.shape[2:])
        if labels.ndim == scores.ndim:
            labels = labels.float().argmax(1) if labels.shape[1] > 1 else labels[:, 0]
        if labels.shape[1:] == scores.shape[2:]:
            return labels.long()
        return F.interpolate(labels[:, None].float(), scores.shape[2:], mode="nearest-exact")[:, 0].long()

    def score(self, output: Any, labels: Tensor | None) -> Tensor:
        scores, maps = main_output(output), self.fix_labels(output, labels)
        classes = self._largest(maps, scores)
        channel = (classes - 1 if scores.shape[1] == 1 else classes).clamp_min(0)
        chosen = scores.gather(1, channel.reshape(-1, *(1,) * (scores.ndim - 1)).expand(-1, 1, *scores.shape[2:])).flatten(1)
        region = (maps.flatten(1) == classes[:, None]).to(scores.dtype)
        region = torch.where(region.any(1, keepdim=True), region, 1)
        return (chosen * region).sum(1) / region.sum(1)

    def answers(self, output: Any, labels: Tensor | None) -> Answers:
        scores = main_output(output)
        return Answers(self._largest(self.fix_labels(output, labels), scores), self._largest(_predicted_map(scores), scores))

    def misfit(self, output: Any, labels: Tensor | None) -> str | None:
        return None if labels is None or labels.ndim > 1 else Classes().misfit(output, labels)

    def num_classes(self, output: Any) -> int:
        return max(main_output(output).shape[1], 2)

    def _largest(self, maps: Tensor, scores: Tensor) -> Tensor:
        """The class of the largest region of each map, [N]."""
        areas = torch.stack([(maps == k).flatten(1).sum(1) for k in range(1, max(scores.shape[1], 2))], 1)
        return torch.where(areas.amax(1) > 0, areas.argmax(1) + 1, 0)


class Chosen(Task):
    """Explains the result, [N], of the user's function of the output."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self.function = function

    def score(self, output: Any, labels: Tensor | None) -> Tensor:
        return self.function(output)

    def answers(self, output: Any, labels: Tensor | None) -> Answers:
        return Answers()


TASKS: dict[str, type[Task]] = {
    task.__name__: task for task in (Task, Entry, Binary, Probability, Classes, SeveralClasses, SeveralProbabilities, Regions)
}
"""Tasks by their names in checkpoints and `probe.json`."""

CHOICES: dict[str, type[Task]] = {task.name: task for task in (Classes, SeveralClasses, Binary, Regions, Task)}
"""Tasks by the names that the user may choose."""


def check_target(target: Any) -> None:
    """
    Raises:
        TypeError: if a target is of another kind than `ProbeTarget`.
    """
    is_class = isinstance(target, int) and not isinstance(target, bool)
    if not (target is None or callable(target) or is_class or isinstance(target, (list, tuple, Tensor))):
        raise TypeError(f"target must be a class, a list of them or a function of the output, not {target!r}")


def check_task(task: Any, target: Any = None) -> None:
    """
    Raises:
        TypeError: if a task is not a name.
        ValueError: if there is no task of that name, or the target is a function, so that the task has no effect.
    """
    if task is None:
        return
    names = ", ".join(f'"{name}"' for name in CHOICES)
    if not isinstance(task, str):
        raise TypeError(f"task must be one of {names}, not {task!r}")
    if task not in CHOICES:
        raise ValueError(f"there is no task {task!r}; choose one of {names}")
    if callable(target) and not isinstance(target, Tensor):
        raise ValueError(f"task={task!r} has no effect, because the target is a function of the output; leave one of them out")


def fits_classes(labels: Tensor, scores: Tensor) -> Tensor:
    """Whether each label is one of the K classes of scores [N, K, ...]. The result has the shape of the labels."""
    return (labels >= 0) & (labels < scores.shape[1])


def is_zero_or_one(labels: Tensor) -> bool:
    """Whether all labels are 0 or 1."""
    return bool(((labels == 0) | (labels == 1)).all())


def _predicted_map(scores: Tensor) -> Tensor:
    """The class of the highest score at each place, [N, *S]. For a single score: 1 where it is positive, else 0."""
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
