"""Saliency maps of an image network while it trains, and tests of such maps.

The maps are made from full-gradients: terms that add up to the network's output. The names below are loaded when they are first
used, so that `import fg_lightning` is cheap.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fg_lightning.attribution import METHODS as METHODS
    from fg_lightning.callbacks import FullGradMonitor as FullGradMonitor
    from fg_lightning.fullgrad import FullGrad as FullGrad
    from fg_lightning.fullgrad import FullGradients as FullGradients
    from fg_lightning.fullgrad import SimpleFullGrad as SimpleFullGrad
    from fg_lightning.fullgrad import SmoothFullGrad as SmoothFullGrad
    from fg_lightning.fullgrad import full_gradients as full_gradients
    from fg_lightning.recording import FullGradRecorder as FullGradRecorder
    from fg_lightning.roar import ROARDataModule as ROARDataModule
    from fg_lightning.roar import ROARExperiment as ROARExperiment
    from fg_lightning.roar import SaliencyStore as SaliencyStore

_HOMES = {
    "FullGrad": "fullgrad",
    "FullGradMonitor": "callbacks",
    "FullGradRecorder": "recording",
    "FullGradients": "fullgrad",
    "METHODS": "attribution",
    "ROARDataModule": "roar",
    "ROARExperiment": "roar",
    "SaliencyStore": "roar",
    "SimpleFullGrad": "fullgrad",
    "SmoothFullGrad": "fullgrad",
    "full_gradients": "fullgrad",
}

__all__ = list(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fg_lightning' has no attribute {name!r}")
    return getattr(import_module(f"fg_lightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if os.environ.get("FG_LIGHTNING"):
    from fg_lightning.callbacks.attach import note_at_exit

    note_at_exit()
