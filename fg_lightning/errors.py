"""What is raised where a person has to change something."""


class CannotRun(ValueError):
    """What was asked for cannot be done, or not here; the message says why and what to do.

    The commands of `fg-lightning` print it as one sentence and stop.
    """
