"""Metrics of saliency maps, as torchmetrics and as functions of one batch.

Total variation, which ROAR reports of its masks, is torchmetrics' own.
"""

from torchmetrics.functional.image import total_variation
from torchmetrics.image import TotalVariation

from fg_lightning.metrics.border_and_corners import border_mask, border_share, corner_masks, corner_shares
from fg_lightning.metrics.completeness import CompletenessError, completeness_error
from fg_lightning.metrics.concentration import Concentration, entropy, gini_index
from fg_lightning.metrics.drift import Drift, cosine_drift, rank_correlation
from fg_lightning.metrics.localization import PointingGame, RelevanceMass, pointing_game, relevance_mass
from fg_lightning.metrics.parameter_randomization import ParameterRandomization
from fg_lightning.metrics.perturbation import PixelPerturbation, pixel_perturbation

__all__ = [
    "CompletenessError",
    "Concentration",
    "Drift",
    "ParameterRandomization",
    "PixelPerturbation",
    "PointingGame",
    "RelevanceMass",
    "TotalVariation",
    "border_mask",
    "border_share",
    "completeness_error",
    "corner_masks",
    "corner_shares",
    "cosine_drift",
    "entropy",
    "gini_index",
    "pixel_perturbation",
    "pointing_game",
    "rank_correlation",
    "relevance_mass",
    "total_variation",
]
