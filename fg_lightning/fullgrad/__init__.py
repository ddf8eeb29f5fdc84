"""The full-gradient representation (Srinivas & Fleuret, NeurIPS 2019): the decomposition and the maps drawn from it."""

from fg_lightning.fullgrad.bias_hooks import Term
from fg_lightning.fullgrad.decomposition import FullGradients, full_gradients
from fg_lightning.fullgrad.saliency import FullGrad, SimpleFullGrad
from fg_lightning.fullgrad.smooth import SmoothFullGrad

__all__ = ["FullGrad", "FullGradients", "SimpleFullGrad", "SmoothFullGrad", "Term", "full_gradients"]
