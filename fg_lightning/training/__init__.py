"""Training without writing code: a classifier over any of torchvision's networks, and datamodules for the usual data."""

from fg_lightning.training.classifier import ImageClassifier
from fg_lightning.training.image_folder import ImageFolderDataModule
from fg_lightning.training.torchvision_datasets import TorchvisionDataModule

__all__ = ["ImageClassifier", "ImageFolderDataModule", "TorchvisionDataModule"]
