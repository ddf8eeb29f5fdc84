"""Planted truth: do saliency maps lie on a mark on which a network demonstrably relies?"""

from fg_lightning.planted.config import PlantedConfig
from fg_lightning.planted.datamodule import PlantedShortcut
from fg_lightning.planted.experiment import PlantedExperiment
from fg_lightning.planted.results import PlantedResults

__all__ = ["PlantedConfig", "PlantedExperiment", "PlantedResults", "PlantedShortcut"]
