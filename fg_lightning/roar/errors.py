"""What is raised where a person has to change something."""

from fg_lightning.errors import CannotRun


class StoreError(CannotRun):
    """A saliency store is not what it is taken for; the message says what was found and what to do."""


class RandomImages(CannotRun):
    """A data set gives another image each time for the same index, so that no map belongs to it."""


class UnfitData(CannotRun, TypeError):
    """Data of a kind whose pixels cannot be removed: a stream, images of an unknown mode, samples without an image."""


class Diverged(ArithmeticError):
    """A training's loss is no longer finite."""
