"""Maps of the user's own pictures, side by side: as overlays, a table and perturbation curves."""

from fg_lightning.explain.load_network import Network, find_network
from fg_lightning.explain.session import PerturbationCurves, Session

__all__ = ["Network", "PerturbationCurves", "Session", "find_network"]
