"""Attribution methods to compare with FullGrad: Captum's methods, and controls that do not use the model."""

from fg_lightning.attribution.method import Factory, Method, Scores, channel_sum, method_from
from fg_lightning.attribution.registry import CONTROLS, METHODS, find_method

__all__ = ["CONTROLS", "METHODS", "Factory", "Method", "Scores", "channel_sum", "find_method", "method_from"]
