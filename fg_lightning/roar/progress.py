"""How far an experiment is, for a person who waits."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


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
