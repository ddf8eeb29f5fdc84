"""Records how saliency changes while a network trains, in any PyTorch loop. It does not use Lightning."""

from fg_lightning.recording.probe import NoProbe, Probe
from fg_lightning.recording.recorder import FullGradRecorder

__all__ = ["FullGradRecorder", "NoProbe", "Probe"]
