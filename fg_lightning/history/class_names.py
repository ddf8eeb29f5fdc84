"""The names of a network's answers in captions, tables and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WRONG = "✗"
"""Marks a wrong prediction, in addition to a colour, which grey print does not show."""


@dataclass(frozen=True)
class ClassNames:
    """Names the answers of a network.

    Attributes:
        names: the names of the classes. A class without a name is shown as its number. Default: None, no names.
        are_classes: whether integers are classes, and not numbers. Default: True.
    """

    names: Sequence[str] | None = None
    are_classes: bool = True

    def name_of(self, answer: float | None) -> str:
        """The name of a class, which may be given as 1.0 for class 1. Other numbers, such as -100, are shown as numbers."""
        if answer is None:
            return ""
        if isinstance(answer, float) and not (self.are_classes and answer.is_integer()):
            return f"{answer:.4g}"
        answer = int(answer)
        if not self.are_classes or answer < 0 or not self.names or answer >= len(self.names):
            return str(answer)
        return self.names[answer]

    def answer(self, predicted: float | None, confidence: float | None, correct: float | None = None) -> str:
        """The prediction for an image, with its probability, such as "7 · 98 %" or, if it is wrong, "✗ 1 · 61 %".

        Args:
            predicted: the predicted class or number.
            confidence: the probability of that class, 0 to 1; None if there is none.
            correct: whether the class is the label. Default: None, for unknown.
        """
        words = [self.name_of(predicted), "" if confidence is None else f"{confidence:.0%}".replace("%", " %")]
        answer = " · ".join(word for word in words if word)
        return f"{WRONG} {answer}" if answer and correct is not None and not correct else answer

    def caption(
        self,
        label: float | None,
        explained: float | None,
        predicted: float | None,
        confidence: float | None,
        correct: float | None = None,
    ) -> str:
        """The explained class, and below it the prediction. One line if they are the same class."""
        title = self.name_of(label if explained is None else explained)
        if title and not self.are_classes and explained is None:
            title = f"label {title}"
        if None not in (label, explained) and label != explained:
            title = f"{title} (label {self.name_of(label)})"
        answer = "" if predicted is None else self.answer(predicted, confidence, correct)
        if self.are_classes and title and title == self.name_of(predicted):
            return answer
        return "\n".join(line for line in (title, answer and f"→ {answer}") if line)
