"""How a probe is explained and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from fg_lightning.fullgrad.postprocess import Psi, find_psi
from fg_lightning.recording.explainer import Forward
from fg_lightning.recording.task import ProbeTarget, check_target, check_task
from fg_lightning.visualization.saliency_overlay import Normalization


@dataclass(frozen=True, eq=False)
class Settings:
    """How a probe is explained and shown; see `FullGradRecorder`.

    Raises:
        TypeError, ValueError: if an argument makes no sense.
    """

    psi: Union[str, Psi] = "absolute"
    target: ProbeTarget = None
    task: str | None = None
    forward: Forward | None = None
    normalization: Normalization | Sequence[Sequence[float]] | None = None
    class_names: Sequence[str] | None = None
    animation: bool = False

    def __post_init__(self) -> None:
        find_psi(self.psi)
        check_target(self.target)
        check_task(self.task, self.target)
        names, normalization = self.class_names, self.normalization
        if self.forward is not None and not callable(self.forward):
            raise TypeError(f"forward must be a function of the module and a batch, not {self.forward!r}")
        if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
            raise TypeError(f"class_names must be a list of names, not {names!r}")
        if normalization is not None and not isinstance(normalization, Normalization):
            try:
                mean, std = (tuple(float(number) for number in numbers) for numbers in normalization)
            except (TypeError, ValueError):
                raise ValueError(f"normalization must be (mean, std), numbers for the channels, not {normalization!r}") from None
            object.__setattr__(self, "normalization", Normalization(mean, std))
        if not isinstance(self.animation, bool):
            raise TypeError(f"animation must be True or False, not {self.animation!r}")

    def identity(self) -> dict[str, str]:
        """The settings that must be the same for maps to be comparable, in words."""
        chosen = {"psi": self.psi, "target": self.target, "task": self.task}
        return {name: str(getattr(value, "__name__", value)) for name, value in chosen.items()}
