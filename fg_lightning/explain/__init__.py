"""fg-lightning explain: overlays of a network's maps on a person's own pictures."""

from fg_lightning.errors import CannotRun
from fg_lightning.explain.run import explain

__all__ = ["CannotRun", "explain"]
