"""What is raised where a person has to change something."""


class CannotExplain(ValueError):
    """There is nothing to explain, or no way to; the message says why and what to do."""
