"""The module as the monitor calls it: on images, or on the batch that they are part of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from fg_lightning.recording.probe import Probe

Forward = Callable[[Any, Any], Any]
"""(module, batch) -> the module's output: how a module is called whose forward takes more than the images."""


HOW_TO_SAY = "say how it is called: FullGradMonitor(forward=lambda module, batch: module.network(batch[0], batch[1]))"


class Called(nn.Module):
    """Takes images, what may be their labels, and the rest of their batch; gives the module's output and those labels.

    Labels go along because FullGrad hands over single rows where it must run a network on one image at a time. A module without a
    forward of its own is passed over for the only network in it.

    Args:
        module: the user's.
        probe: whose batch the images belong to.
        forward: how to call the module on a batch; None to call it on the images alone.

    Raises:
        ValueError: if the module has no forward and not one network.
    """

    def __init__(self, module: nn.Module, probe: Probe, forward: Forward | None = None) -> None:
        super().__init__()
        self.module = module
        self._path = "" if forward is not None or _has_forward(module) else _only_network(module)
        self._probe = probe
        self._forward = forward

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What `forward` takes after the images."""
        if self._forward is None:
            return self._probe.candidates
        tensors: list[Tensor] = []
        apply_to_collection(self._probe.batch, Tensor, tensors.append)
        return (*self._probe.candidates, *tensors[: self._probe.place], *tensors[self._probe.place + 1 :])

    def forward(self, images: Tensor, *arguments: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        split = len(self._probe.candidates)
        candidates, rest = arguments[:split], arguments[split:]
        with _logging_nothing(self.module):
            output = self._called(images, rest)
        return output, candidates

    def _called(self, images: Tensor, rest: tuple[Tensor, ...]) -> Any:
        if self._forward is None:
            try:
                return self.module.get_submodule(self._path)(images)
            except (TypeError, RuntimeError) as error:
                if type(error) not in (TypeError, RuntimeError):  # such as running out of memory
                    raise
                called = f"{error} (raised by the forward of {type(self.module).__name__}, called on images {list(images.shape)})"
                hint = f"; if it takes something else, {HOW_TO_SAY}" if isinstance(error, TypeError) else ""
                raise type(error)(called + hint) from error
        place = self._probe.place
        tensors = iter([*rest[:place], images, *rest[place:]])
        return self._forward(self.module, apply_to_collection(self._probe.batch, Tensor, lambda _: next(tensors)))

    @staticmethod
    def own_name(name: str) -> str:
        """What the user's module calls a module in it."""
        return name.removeprefix("module").removeprefix(".")


@contextmanager
def _logging_nothing(module: nn.Module) -> Iterator[None]:
    """A forward that logs would log what the monitor calls it on, and where it is told to sync, wait for the other processes."""
    with ExitStack() as stack:
        for name in ("log", "log_dict"):
            if hasattr(module, name):
                stack.enter_context(patch.object(module, name, lambda *_, **__: None))
        yield


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward.__qualname__ != "LightningModule.forward"


def _only_network(module: nn.Module) -> str:
    networks = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    if len(networks) != 1:
        found = f"the networks in it are {', '.join(networks)}" if networks else "there is no network in it"
        raise ValueError(f"{type(module).__name__} has no forward, and {found}; {HOW_TO_SAY}")
    return networks[0]
