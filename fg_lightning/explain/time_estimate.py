"""Estimates the time for all pictures from the first one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter


class Stopwatch:
    """Measures the time of each method for the first picture, and estimates the time for the others from it.

    Attributes:
        seconds: measured seconds, by method.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = perf_counter()

    @contextmanager
    def measure(self, method: str) -> Iterator[None]:
        """Adds the time of the block to a method's."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[method] = self.seconds.get(method, 0.0) + perf_counter() - start

    def share(self, method: str) -> float:
        """The share of a picture's time that a method needs, 0 to 1."""
        total = sum(self.seconds.values())
        return self.seconds[method] / total if total and method in self.seconds else 0.0

    def estimate(self, num_left: int) -> str:
        """A sentence on the time for more pictures, at the speed of the first one. Call it directly after the first picture."""
        first = perf_counter() - self._start
        return (
            f"up to about {in_words(num_left * first)} for {num_left} more picture{'s' * (num_left != 1)}: the first took "
            f"{in_words(first)}, with start-up ({_list_slowest(self.seconds)}); batches may be faster"
        )


def in_words(seconds: float) -> str:
    """A time in a suitable unit: "0.4 s", "12 s", "8 min", "3.1 h"."""
    if seconds < 1:
        return f"{seconds:.1g} s"
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _list_slowest(seconds: Mapping[str, float], count: int = 3) -> str:
    """The slowest methods, with their times."""
    slowest = sorted(seconds, key=lambda method: -seconds[method])[:count]
    return ", ".join(f"{method} {in_words(seconds[method])}" for method in slowest)
