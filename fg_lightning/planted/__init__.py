"""Planted truth: do saliency maps lie on a mark by which a network demonstrably tells the class?"""

from fg_lightning.planted.config import PlantedConfig
from fg_lightning.planted.datamodule import PlantedShortcut
from fg_lightning.planted.experiment import PlantedExperiment
from fg_lightning.planted.results import PlantedResults

__all__ = ["PlantedConfig", "PlantedExperiment", "PlantedResults", "PlantedShortcut"]
