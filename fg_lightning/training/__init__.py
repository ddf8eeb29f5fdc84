"""Training without code: a classifier with any network of torchvision, and datamodules for common data."""

from fg_lightning.training.classifier import ImageClassifier
from fg_lightning.training.image_folder import ImageFolderDataModule
from fg_lightning.training.torchvision_datasets import TorchvisionDataModule

__all__ = ["ImageClassifier", "ImageFolderDataModule", "TorchvisionDataModule"]
