"""Remove and retrain: does a network need the pixels that a method ranks first?"""

from fg_lightning.errors import CannotRun, RandomImages, StoreError, UnfitData
from fg_lightning.removal import top_pixels
from fg_lightning.roar.accuracy_curves import accuracy_curves
from fg_lightning.roar.config import ROARConfig
from fg_lightning.roar.datamodule import ROARDataModule
from fg_lightning.roar.engines import Engine, LocalEngine, RayEngine
from fg_lightning.roar.experiment import ROARExperiment
from fg_lightning.roar.findings import list_findings
from fg_lightning.roar.latex_table import latex_table
from fg_lightning.roar.results import ROARResults
from fg_lightning.roar.saliency_store import SaliencyStore

__all__ = [
    "CannotRun",
    "Engine",
    "LocalEngine",
    "ROARConfig",
    "ROARDataModule",
    "ROARExperiment",
    "ROARResults",
    "RandomImages",
    "RayEngine",
    "SaliencyStore",
    "StoreError",
    "UnfitData",
    "accuracy_curves",
    "latex_table",
    "list_findings",
    "top_pixels",
]
