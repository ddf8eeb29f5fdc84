"""What goes wrong in a look is said once, and training goes on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.seed import isolate_rng


class Faults:
    """
    Args:
        strict: raise instead.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._said: set[tuple[str, str, int]] = set()

    @contextmanager
    def kept_from_training(self) -> Iterator[None]:
        """Training goes on as if nothing had happened: the same random state behind, and no exception but under `strict`."""
        with isolate_rng():
            try:
                yield
            except Exception as error:
                self.complain(error)

    def complain(self, error: Exception, consequence: str = "training goes on") -> None:
        """Raises under `strict`, else warns, once for each kind of fault and place where it was raised.

        A full disk, and whatever else the operating system reports, is one kind wherever it is met.
        """
        if self.strict:
            raise error
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = ("", 0) if place is None else (place.tb_frame.f_code.co_filename, place.tb_lineno)
        if isinstance(error, OSError) and error.errno is not None:
            where = (os.strerror(error.errno), 0)
        fault = (type(error).__name__, *where)
        if fault not in self._said:
            self._said.add(fault)
            explained = f"{type(error).__name__}: {error}"
            warnings.warn(f"FullGradMonitor: {explained} ({consequence}; FullGradMonitor(strict=True) raises)", stacklevel=2)
