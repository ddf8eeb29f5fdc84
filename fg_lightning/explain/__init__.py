"""Explains the user's own pictures with several methods: overlays, a table and perturbation curves."""

from fg_lightning.explain.load_network import Network, find_network
from fg_lightning.explain.perturbation_curves import PerturbationCurves, PerturbationScore
from fg_lightning.explain.session import Session

__all__ = ["Network", "PerturbationCurves", "PerturbationScore", "Session", "find_network"]
