"""Where the parts of an experiment run: in this process, or on the machines of a Ray cluster.

How far an experiment is, for a person who waits.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fg_lightning.errors import CannotRun
from fg_lightning.roar.experiment_folder import room

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


class Watch:
    """A line that says how many parts are done, running and left, and the time that they will still take.

    Where there is no terminal, such as in a log file, it is a line for every part instead.

    Args:
        console: to write to.
        what: the parts are.
        done: how many of them were done before.
        total: how many there are.
        at_once: how many are worked on at a time.
    """

    def __init__(self, console: Console, what: str, done: int, total: int, at_once: int) -> None:
        self._console = console
        self._what = what
        self._before, self._done, self._total = done, done, total
        self._failed = 0
        self._at_once = at_once
        self._start = time.monotonic()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(what, total=total, completed=done, state=self.state)

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    @property
    def state(self) -> str:
        left = self._total - self._done
        running = min(self._at_once, left)
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._done} done{failed}, {running} running, {left - running} left{self._remaining(left)}"

    def one_done(self, name: str, reason: str = "") -> None:
        """
        Args:
            name: of the part.
            reason: why it failed, if it did.
        """
        self._done += 1
        self._failed += bool(reason)
        self._progress.update(self._task, completed=self._done, state=self.state)
        if reason:
            self._console.print(f"{name} failed: {reason}", style="red", highlight=False, soft_wrap=True, markup=False, emoji=False)
        if not self._console.is_terminal:
            self._console.print(f"{self._what}: {name}; {self.state}", highlight=False, soft_wrap=True, markup=False, emoji=False)

    def _remaining(self, left: int) -> str:
        done = self._done - self._before
        if not done or not left:
            return ""
        seconds = (time.monotonic() - self._start) / done * left
        return f", {seconds / 60:.0f} min to go" if seconds > 90 else f", {seconds:.0f} s to go"
