"""Remove and retrain: does a network miss the pixels that a method calls relevant?"""

from fg_lightning.errors import CannotRun, RandomImages, StoreError, UnfitData
from fg_lightning.removal import top_pixels
from fg_lightning.roar.datamodule import ROARDataModule
from fg_lightning.roar.experiment import ROARExperiment
from fg_lightning.roar.store import SaliencyStore

__all__ = [
    "CannotRun",
    "ROARDataModule",
    "ROARExperiment",
    "RandomImages",
    "SaliencyStore",
    "StoreError",
    "UnfitData",
    "top_pixels",
]
