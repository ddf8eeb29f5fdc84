"""What a network says of an image, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassNames:
    """
    Attributes:
        names: of the classes, None where they have none.
        are_classes: whether integers are classes, and not numbers like any other.
    """

    names: Sequence[str] | None = None
    are_classes: bool = True

    def named(self, answer: float | None) -> str:
        """A class by its name, as 1.0 for class 1, too; another number as it is, also one that is no class, such as -100."""
        if answer is None:
            return ""
        if isinstance(answer, float) and not (self.are_classes and answer.is_integer()):
            return f"{answer:.4g}"
        answer = int(answer)
        if not self.are_classes or answer < 0 or (self.names and answer >= len(self.names)):
            return str(answer)
        return self.names[answer] if self.names else f"class {answer}"

    def answer(self, predicted: float | None, confidence: float | None) -> str:
        """What the network says of an image, and how surely."""
        return self.named(predicted) if confidence is None else f"{self.named(predicted)} {confidence:.0%}"

    def caption(self, label: float | None, explained: float | None, predicted: float | None, confidence: float | None) -> str:
        """What is explained, and below it what the network says of the image."""
        of = self.named(label if explained is None else explained)
        if of and not self.are_classes and explained is None:
            of = f"label {of}"
        if None not in (label, explained) and label != explained:
            of = f"{of} (label {self.named(label)})"
        says = "" if predicted is None else f"→ {self.answer(predicted, confidence)}"
        return "\n".join(line for line in (of, says) if line)
