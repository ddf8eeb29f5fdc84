"""Engines run the parts of an experiment, in this process or on a Ray cluster. A line shows the progress."""

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
from fg_lightning.roar.experiment_folder import explain_disk_faults

Item = TypeVar("Item")


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """The outcome of the work on one item.

    Attributes:
        item: the item.
        value: the result. None if the work failed.
        reason: why the work failed. Empty if it did not.
    """

    item: Item
    value: Any = None
    reason: str = ""


@runtime_checkable
class Engine(Protocol):
    """Calls a function on items, in any order, and yields the outcome of each as soon as it is known."""

    @property
    def num_parallel(self) -> int:
        """Number of items that run at a time."""

    def run(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome[Item]]:
        """Calls `work` on each item.

        Args:
            work: function of an item.
            items: the items.

        Yields:
            An outcome for each item. An error of `work` is its `reason`.

        Raises:
            CannotRun: if `work` raises it.
        """
        ...

    def close(self) -> None:
        """Frees the engine's resources."""


class LocalEngine:
    """Runs one item after the other, in this process."""

    num_parallel = 1

    def run(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome[Item]]:
        for item in items:
            try:
                outcome = _try(work, item)
            except SystemExit as error:  # Lightning turns Ctrl-C into it
                raise KeyboardInterrupt from error
            yield outcome

    def close(self) -> None:
        pass


class RayEngine:
    """Runs items as Ray tasks. If a machine fails, its items run again on another.

    Args:
        address: address of a running cluster. "auto": the cluster that this machine is part of. None: starts one on this machine.
        num_cpus: number of CPUs for each training. Default: 1.
        num_gpus: number of GPUs for each training; 0.25 puts four trainings on one GPU. Default: 0.
        max_retries: how often an item runs again after its machine has failed. Default: 5.

    Raises:
        CannotRun: if Ray is not installed, there is no cluster at the address, or it is too small for one training.
    """

    def __init__(self, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0, max_retries: int = 5) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise CannotRun("the Ray engine needs Ray: pip install 'fg-lightning[ray]', or use --engine local") from error
        self._ray = ray
        self._num_cpus, self._num_gpus, self._max_retries = num_cpus, num_gpus, max_retries
        self._is_own = not ray.is_initialized()
        if self._is_own:
            try:
                dashboard = False if address is None else None
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
            except (ConnectionError, ValueError) as error:
                raise CannotRun(f"there is no Ray cluster at {address}: {error}. Start one with ray start --head") from error
        resources = ray.cluster_resources()
        missing = [f"{n:g} {kind}" for kind, n in (("CPU", num_cpus), ("GPU", num_gpus)) if resources.get(kind, 0) < n]
        if missing:
            self.close()
            raise CannotRun(
                f"each training needs {' and '.join(missing)}, which the Ray cluster does not have; lower num_cpus or num_gpus, or "
                "add machines to the cluster"
            )

    @property
    def num_parallel(self) -> int:
        resources = self._ray.cluster_resources()
        counts = [resources.get(kind, 0) // n for kind, n in (("CPU", self._num_cpus), ("GPU", self._num_gpus)) if n]
        return max(1, int(min(counts, default=1)))

    def run(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome[Item]]:
        task: Any = self._ray.remote(num_cpus=self._num_cpus, num_gpus=self._num_gpus, max_retries=self._max_retries)(_try)
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
                yield Outcome(item, reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")

    def close(self) -> None:
        if self._is_own:
            self._ray.shutdown()


def choose_engine(engine: Engine | None) -> Engine:
    """The given engine, or a `LocalEngine` for None.

    Raises:
        TypeError: if it is not an engine.
    """
    if engine is not None and not isinstance(engine, Engine):
        raise TypeError(f"engine must be a LocalEngine() or a RayEngine(), not {engine!r}")
    return engine or LocalEngine()


def _try(work: Callable[[Item], Any], item: Item) -> Outcome[Item]:
    try:
        with explain_disk_faults():
            return Outcome(item, work(item))
    except CannotRun:
        raise
    except Exception as error:
        return Outcome(item, reason=describe_error(error))


def describe_error(error: Exception) -> str:
    """The error, and the line of code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename.rsplit('/', 1)[-1]}, line {last.lineno}, in {last.name})"


class ProgressLine:
    """A line with the number of items that are done, running and left, and the time left.

    Without a terminal, such as in a log file, it prints a line for each item instead.

    Args:
        console: console that it prints to.
        title: name of the items.
        num_done: number of items that were done before this run.
        total: number of items.
        num_parallel: number of items that run at a time.
    """

    def __init__(self, console: Console, title: str, num_done: int, total: int, num_parallel: int) -> None:
        self._console = console
        self._title = title
        self._num_before, self._num_done, self._total = num_done, num_done, total
        self._num_failed = 0
        self._num_parallel = num_parallel
        self._start = time.monotonic()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=total, completed=num_done, state=self.state)

    def __enter__(self) -> ProgressLine:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    @property
    def state(self) -> str:
        left = self._total - self._num_done
        running = min(self._num_parallel, left)
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        return f"{self._num_done} done{failed}, {running} running, {left - running} left{self._time_left(left)}"

    def advance(self, name: str, reason: str = "") -> None:
        """Counts one more item.

        Args:
            name: name of the item.
            reason: why it failed, if it did.
        """
        self._num_done += 1
        self._num_failed += bool(reason)
        self._progress.update(self._task, completed=self._num_done, state=self.state)
        if reason:
            self._console.print(f"{name} failed: {reason}", style="red", highlight=False, soft_wrap=True, markup=False, emoji=False)
        if not self._console.is_terminal:
            line = f"{self._title}: {name}; {self.state}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def _time_left(self, left: int) -> str:
        done = self._num_done - self._num_before
        if not done or not left:
            return ""
        seconds = (time.monotonic() - self._start) / done * left
        return f", {seconds / 60:.0f} min to go" if seconds > 90 else f", {seconds:.0f} s to go"
