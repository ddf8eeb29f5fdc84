"""How a probe is explained and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from torch import Tensor

from fg_lightning.fullgrad.postprocess import Psi, find_psi
from fg_lightning.fullgrad.readings import Reading, find_reading
from fg_lightning.recording.called_module import Forward
from fg_lightning.recording.masks import MaskFunction
from fg_lightning.recording.methods import FULLGRAD, Method, Methods, methods_by_key
from fg_lightning.recording.task import ProbeTarget, check_target, check_task
from fg_lightning.visualization.saliency_overlay import Normalization


@dataclass(frozen=True, eq=False)
class Settings:
    """How a probe is explained and shown; see `FullGradMonitor`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if its value makes no sense.
    """

    psi: Union[str, Psi] = "absolute"
    target: ProbeTarget = None
    task: str | None = None
    forward: Forward | None = None
    normalization: Normalization | Sequence[Sequence[float]] | None = None
    class_names: Sequence[str] | None = None
    animation: bool = False
    methods: Methods = (FULLGRAD,)
    implicit: bool = True
    reading: Reading = "exact"
    masks: MaskFunction | None = None
    alert: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", methods_by_key(self.methods))
        find_psi(self.psi)
        find_reading(self.reading)
        check_target(self.target)
        if isinstance(self.target, Tensor):  # its text must not name a device
            object.__setattr__(self, "target", self.target.detach().cpu())
        check_task(self.task, self.target)
        names, normalization = self.class_names, self.normalization
        if self.forward is not None and not callable(self.forward):
            raise TypeError(f"forward must be a function of the module and a batch, not {self.forward!r}")
        if self.masks is not None and not callable(self.masks):
            raise TypeError(
                f"masks must be a function of the probe's batch, not {self.masks!r}; pass masks as probe=(images, labels, masks)"
            )
        if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
            raise TypeError(f"class_names must be a list of names, not {names!r}")
        if normalization is not None and not isinstance(normalization, Normalization):
            try:
                mean, std = (tuple(float(number) for number in numbers) for numbers in normalization)
            except (TypeError, ValueError):
                raise ValueError(f"normalization must be (mean, std), numbers for the channels, not {normalization!r}") from None
            object.__setattr__(self, "normalization", Normalization(mean, std))
        for name in ("animation", "implicit", "alert"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")

    @property
    def method_keys(self) -> list[str]:
        """The keys of the methods whose pictures are shown, in order."""
        assert isinstance(self.methods, dict)
        return list(self.methods)

    @property
    def further_methods(self) -> dict[str, Method]:
        """The methods other than FullGrad, which always runs, by their keys."""
        assert isinstance(self.methods, dict)
        return {key: method for key, method in self.methods.items() if key != FULLGRAD}

    def identity(self) -> dict[str, str]:
        """The settings that must be the same for maps to be comparable, as text."""
        names = ("psi", "implicit", "reading", "target", "task")
        chosen = {name: str(getattr(value, "__name__", value)) for name in names for value in [getattr(self, name)]}
        return chosen | {"methods": ", ".join(sorted(self.further_methods))}
