"""What is raised where a person has to change something.

What is raised where a person has to change something.
"""


class CannotRun(ValueError):
    """What was asked for cannot be done, or not here; the message says why and what to do.

    The commands of `fg-lightning` print it as one sentence and stop.
    """


class StoreError(CannotRun):
    """A saliency store is not what it is taken for; the message says what was found and what to do."""


class RandomImages(CannotRun):
    """A data set gives another image each time for the same index, so that no map belongs to it."""


class UnfitData(CannotRun, TypeError):
    """Data of a kind whose pixels cannot be removed: a stream, images of an unknown mode, samples without an image."""


class Diverged(ArithmeticError):
    """A training's loss is no longer finite."""
