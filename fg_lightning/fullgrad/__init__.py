"""The full-gradient representation (Srinivas & Fleuret, NeurIPS 2019): the decomposition and the maps drawn from it."""

from fg_lightning.fullgrad.bias_hooks import Term, TermVisitor
from fg_lightning.fullgrad.decomposition import FullGradients, full_gradients
from fg_lightning.fullgrad.linearization import Bias, Deferred, Pointwise, linearize, reads_overwritten
from fg_lightning.fullgrad.operation import Operation
from fg_lightning.fullgrad.operations import OPERATIONS, Rules
from fg_lightning.fullgrad.postprocess import PSI, Psi
from fg_lightning.fullgrad.readings import Reading
from fg_lightning.fullgrad.saliency import FullGrad, SimpleFullGrad, SmoothFullGrad
from fg_lightning.fullgrad.target import Target, TargetError, main_output
from fg_lightning.fullgrad.term_map import UserLayout

__all__ = [
    "OPERATIONS",
    "PSI",
    "Bias",
    "Deferred",
    "FullGrad",
    "FullGradients",
    "Operation",
    "Pointwise",
    "Psi",
    "Reading",
    "Rules",
    "SimpleFullGrad",
    "SmoothFullGrad",
    "Target",
    "TargetError",
    "Term",
    "TermVisitor",
    "UserLayout",
    "full_gradients",
    "linearize",
    "main_output",
    "reads_overwritten",
]
