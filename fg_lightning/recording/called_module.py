"""Calls the user's module on the probe, and on the copies of it that other methods make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from fg_lightning.recording.probe import Probe

Forward = Callable[[Any, Any], Any]
"""(module, batch) -> the module's output. It calls a module whose forward takes more than the images."""

HOW_TO_CALL = "pass a function that calls it: forward=lambda module, batch: module.network(batch[0], batch[1])"


class CalledModule(nn.Module):
    """Calls a module on images and the rest of their batch. Returns its output and the candidates for the labels.

    The candidates pass through this module, because FullGrad may have to run a network on one image at a time. It then passes one
    row of each tensor. A module without a forward is replaced by the only network in it.

    Args:
        module: the user's module.
        probe: the images and their batch.
        forward: (module, batch) -> output, which calls the module. Default: None, the module is called on the images alone.

    Raises:
        ValueError: if the module has no forward and does not contain exactly one network.
    """

    def __init__(self, module: nn.Module, probe: Probe, forward: Forward | None = None) -> None:
        super().__init__()
        self.module = module
        self._path = "" if forward is not None or _has_forward(module) else _only_network(module)
        self._probe = probe
        self._forward = forward

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The tensors that `forward` takes after the images."""
        if self._forward is None:
            return self._probe.candidates
        tensors: list[Tensor] = []
        apply_to_collection(self._probe.batch, Tensor, tensors.append)
        place = self._probe.place
        return (*self._probe.candidates, *tensors[:place], *tensors[place + self._num_inputs :])

    @property
    def _num_inputs(self) -> int:
        return len(self._probe.inputs or (self._probe.images,))

    def forward(self, *tensors: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """The image inputs, then `arguments`."""
        images, arguments = tensors[: self._num_inputs], tensors[self._num_inputs :]
        split = len(self._probe.candidates)
        candidates, rest = arguments[:split], arguments[split:]
        with _mute_log(self.module):
            output = self._call(images, rest)
        return output, candidates

    def _call(self, images: tuple[Tensor, ...], rest: tuple[Tensor, ...]) -> Any:
        if self._forward is None:
            try:
                return self.module.get_submodule(self._path)(*images)
            except (TypeError, RuntimeError) as error:
                if type(error) not in (TypeError, RuntimeError):  # such as running out of memory
                    raise
                shapes = " and ".join(str(list(of_input.shape)) for of_input in images)
                context = f"{error} (raised by the forward of {type(self.module).__name__}, called on images {shapes})"
                hint = f"; if it takes other inputs, {HOW_TO_CALL}" if isinstance(error, TypeError) else ""
                raise type(error)(context + hint) from error
        place = self._probe.place
        tensors = iter([*rest[:place], *images, *rest[place:]])
        return self._forward(self.module, apply_to_collection(self._probe.batch, Tensor, lambda _: next(tensors)))

    @staticmethod
    def own_name(name: str) -> str:
        """The name of a module within the user's module."""
        return name.removeprefix("module").removeprefix(".")


class ScoredModule(CalledModule):
    """Returns the explained number of each image, [N]. Its submodules have the same names as in the user's module.

    Args:
        module: the user's module.
        probe: the images and their batch.
        forward: (module, batch) -> output, which calls the module. None: the module is called on the images alone.
        score: (output, candidates for the labels) -> [N].
        needs_batch: whether `score` or `forward` may need the whole batch. Some methods pass several copies of the batch at once;
            these are then run one copy at a time.
    """

    def __init__(
        self,
        module: nn.Module,
        probe: Probe,
        forward: Forward | None,
        score: Callable[[Any, tuple[Tensor, ...]], Tensor],
        *,
        needs_batch: bool,
    ) -> None:
        super().__init__(module, probe, forward)
        self._score = score
        self._needs_batch = needs_batch

    def forward(self, images: Float[Tensor, "m c *s"], *others: Tensor) -> Float[Tensor, " m"]:  # type: ignore[override]
        n = len(self._probe)
        size = n if self._needs_batch and len(images) % n == 0 else len(images)
        parts = []
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            own = (a[rows] if a.ndim and len(a) == len(images) > size else a for a in others)
            parts.append(self._score(*super().forward(images[rows], *own)))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        return self.module.named_modules(*args, **kwargs)

    def get_submodule(self, target: str) -> nn.Module:
        return self.module.get_submodule(target)


@contextmanager
def _mute_log(module: nn.Module) -> Iterator[None]:
    """Disables Lightning's `log` in a forward: it would log the probe, and could wait for the other processes for ever."""
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
        listed = f"the networks in it are {', '.join(networks)}" if networks else "there is no network in it"
        raise ValueError(f"{type(module).__name__} has no forward, and {listed}; {HOW_TO_CALL}")
    return networks[0]
