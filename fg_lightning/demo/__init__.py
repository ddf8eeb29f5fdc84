"""The demo: a small residual network on real digits, watched while it trains.

The names below are imported when they are first used, so that the demo's options can be listed without importing Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fg_lightning.demo.digits import DigitClassifier as DigitClassifier
    from fg_lightning.demo.digits import DigitsDataModule as DigitsDataModule
    from fg_lightning.demo.digits import load_digits as load_digits

__all__ = ["DigitClassifier", "DigitsDataModule", "load_digits"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fg_lightning.demo' has no attribute {name!r}")
    return getattr(import_module("fg_lightning.demo.digits"), name)
