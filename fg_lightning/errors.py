"""Errors that tell the user what to change."""

from __future__ import annotations

from collections.abc import Sequence


class CannotRun(ValueError):
    """The request cannot be carried out, or not in this environment. The message gives the reason and what to do.

    The commands of `fg-lightning` print the message and exit.
    """


class StoreError(CannotRun):
    """A saliency store does not hold what was expected. The message gives what was found and what to do."""


class RandomImages(CannotRun):
    """A data set returns another image each time for the same index, so that stored maps do not fit its images."""


class UnfitData(CannotRun, TypeError):
    """The pixels of this data cannot be removed: it is a stream, its images have an unknown mode, or samples have no image."""


class Diverged(ArithmeticError):
    """The training loss is no longer finite."""


def list_briefly(items: Sequence[object], at_most: int = 8) -> str:
    """The first items, separated by commas, and the number of further items.

    Args:
        items: to name in a message.
        at_most: number of items that are named. Default: 8.
    """
    return ", ".join(map(str, items[:at_most])) + (f" and {len(items) - at_most} more" if len(items) > at_most else "")
