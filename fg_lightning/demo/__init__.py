"""The demo: a small residual network on real digits, watched while it trains."""

from fg_lightning.demo.data import DigitsDataModule
from fg_lightning.demo.model import DigitClassifier

__all__ = ["DigitClassifier", "DigitsDataModule"]
