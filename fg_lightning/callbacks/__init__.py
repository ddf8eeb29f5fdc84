"""Lightning callbacks. They are loaded when they are first used, because the entry point that attaches them must load fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fg_lightning.callbacks.fullgrad_monitor import FullGradMonitor as FullGradMonitor

__all__ = ["FullGradMonitor"]


def __getattr__(name: str) -> Any:
    if name != "FullGradMonitor":
        raise AttributeError(f"module 'fg_lightning.callbacks' has no attribute {name!r}")
    from fg_lightning.callbacks.fullgrad_monitor import FullGradMonitor

    return FullGradMonitor
