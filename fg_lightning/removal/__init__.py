"""Which pixels go, and what replaces them: shared by pixel perturbation and remove-and-retrain."""

from fg_lightning.removal.fills import Fill, Imputer, find_imputer
from fg_lightning.removal.linear_imputation import noisy_linear
from fg_lightning.removal.pixel_ranking import Order, ranks, removed, top_pixels

__all__ = ["Fill", "Imputer", "Order", "find_imputer", "noisy_linear", "ranks", "removed", "top_pixels"]
