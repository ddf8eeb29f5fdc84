"""Errors that tell the user what to change."""

from __future__ import annotations

from collections.abc import Sequence


class CannotRun(ValueError):
    """What was asked for cannot be done, or not here. The message says why and what to do.

    The commands of `fg-lightning` print it as one sentence and stop.
    """


class StoreError(CannotRun):
    """A saliency store does not hold what it should. The message says what was found and what to do."""


class RandomImages(CannotRun):
    """A data set gives another image each time for the same index, so that no map belongs to it."""


class UnfitData(CannotRun, TypeError):
    """Data whose pixels cannot be removed: a stream, images of an unknown mode, samples without an image."""


class Diverged(ArithmeticError):
    """The loss of a training is no longer finite."""


def list_briefly(items: Sequence[object], at_most: int = 8) -> str:
    """The first items for a message, with commas between them, and how many more there are."""
    return ", ".join(map(str, items[:at_most])) + (f" and {len(items) - at_most} more" if len(items) > at_most else "")
