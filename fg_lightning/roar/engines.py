"""Where the parts of an experiment run: in this process, or on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from fg_lightning.errors import CannotRun
from fg_lightning.roar.folder import room

Item = TypeVar("Item")


@dataclass(frozen=True)
class Done(Generic[Item]):
    """
    Attributes:
        item: that was worked on.
        value: what came of it.
        reason: why nothing did; empty if something did.
    """

    item: Item
    value: Any = None
    reason: str = ""


@runtime_checkable
class Engine(Protocol):
    """Calls a function on items, in any order, and says what came of each as soon as it is known."""

    @property
    def at_once(self) -> int:
        """How many items are worked on at a time."""

    def run(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Done[Item]]: ...

    def close(self) -> None: ...


class LocalEngine:
    """One after the other, in this process."""

    at_once = 1

    def run(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Done[Item]]:
        for item in items:
            try:
                done = _tried(work, item)
            except SystemExit as error:  # which Lightning makes of Ctrl-C
                raise KeyboardInterrupt from error
            yield done

    def close(self) -> None:
        pass


class RayEngine:
    """As Ray tasks; one whose machine dies is run again on another.

    Args:
        address: of a running cluster, "auto" for the one that this machine is part of; None to start one of this machine.
        cpus: that a part takes.
        gpus: that a part takes; a share such as 0.25 puts four on one.
        retries: how often a part is run again after its machine has died.

    Raises:
        CannotRun: if Ray is not installed, there is no cluster at the address, or it cannot hold one part.
    """

    def __init__(self, address: str | None = None, cpus: float = 1, gpus: float = 0, retries: int = 5) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise CannotRun("the Ray engine takes Ray: pip install 'fg-lightning[ray]', or --engine local") from error
        self._ray = ray
        self._cpus, self._gpus, self._retries = cpus, gpus, retries
        self._is_mine = not ray.is_initialized()
        if self._is_mine:
            try:
                dashboard = False if address is None else None
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
            except (ConnectionError, ValueError) as error:
                raise CannotRun(f"there is no Ray cluster at {address}: {error}. Start one with ray start --head") from error
        held = ray.cluster_resources()
        lacking = [f"{n:g} {kind}" for kind, n in (("CPU", cpus), ("GPU", gpus)) if held.get(kind, 0) < n]
        if lacking:
            self.close()
            raise CannotRun(f"a part of the experiment takes {' and '.join(lacking)}, which the Ray cluster does not have")

    @property
    def at_once(self) -> int:
        held = self._ray.cluster_resources()
        rooms = [held.get(kind, 0) // n for kind, n in (("CPU", self._cpus), ("GPU", self._gpus)) if n]
        return max(1, int(min(rooms, default=1)))

    def run(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Done[Item]]:
        task: Any = self._ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=self._retries)(_tried)
        shared = self._ray.put(work)
        waiting = {task.remote(shared, item): item for item in items}
        while waiting:
            (ready,), _ = self._ray.wait(list(waiting), num_returns=1)
            item = waiting.pop(ready)
            try:
                yield self._ray.get(ready)
            except CannotRun as error:
                raise CannotRun(str(getattr(error, "cause", error))) from error
            except self._ray.exceptions.RayError as error:
                yield Done(item, reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")

    def close(self) -> None:
        if self._is_mine:
            self._ray.shutdown()


def _tried(work: Callable[[Item], Any], item: Item) -> Done[Item]:
    try:
        with room():
            return Done(item, work(item))
    except CannotRun:
        raise
    except Exception as error:
        return Done(item, reason=_reason(error))


def _reason(error: Exception) -> str:
    """The error, and where in whose code it happened."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename.rsplit('/', 1)[-1]}, line {last.lineno}, in {last.name})"
