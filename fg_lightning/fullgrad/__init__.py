"""The full-gradient representation (Srinivas & Fleuret, NeurIPS 2019): the decomposition and the maps drawn from it."""

from fg_lightning.fullgrad.bias_hooks import Term, TermVisitor
from fg_lightning.fullgrad.decomposition import FullGradients, full_gradients
from fg_lightning.fullgrad.postprocess import PSI, Psi
from fg_lightning.fullgrad.readings import Reading
from fg_lightning.fullgrad.saliency import FullGrad, SimpleFullGrad, SmoothFullGrad
from fg_lightning.fullgrad.target import Target, TargetError, main_output
from fg_lightning.fullgrad.term_map import UserLayout

__all__ = [
    "PSI",
    "FullGrad",
    "FullGradients",
    "Psi",
    "Reading",
    "SimpleFullGrad",
    "SmoothFullGrad",
    "Target",
    "TargetError",
    "Term",
    "TermVisitor",
    "UserLayout",
    "full_gradients",
    "main_output",
]
