"""Lightning callbacks."""

from fg_lightning.callbacks.fullgrad_monitor import FullGradMonitor

__all__ = ["FullGradMonitor"]
