"""What is raised where a person has to change something."""


class StoreError(ValueError):
    """A saliency store is not what it is taken for; the message says what was found and what to do."""


class RandomImages(ValueError):
    """A data set gives another image each time for the same index, so that no map belongs to it."""


class Diverged(ArithmeticError):
    """A training's loss is no longer finite."""
