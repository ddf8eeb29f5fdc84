"""The methods that FullGrad is compared with, all of one kind: Captum's, and controls that know nothing of the model."""

from fg_lightning.attribution.method import Factory, Method, Scores, method_from
from fg_lightning.attribution.registry import CONTROLS, METHODS, find_method

__all__ = ["CONTROLS", "METHODS", "Factory", "Method", "Scores", "find_method", "method_from"]
