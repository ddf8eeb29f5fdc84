"""Chooses pixels to remove and fills them, for pixel perturbation and for remove-and-retrain."""

from fg_lightning.removal.fills import Fill, FillFunction, find_fill
from fg_lightning.removal.noisy_linear_fill import noisy_linear
from fg_lightning.removal.pixel_ranking import Order, ranks, removal_mask, top_pixels

__all__ = ["Fill", "FillFunction", "Order", "find_fill", "noisy_linear", "ranks", "removal_mask", "top_pixels"]
