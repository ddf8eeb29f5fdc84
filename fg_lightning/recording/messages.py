"""The messages of a recorder to the user: errors become warnings, and notes go to a log."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

LOG = logging.getLogger("fg_lightning")


def show_note(note: str) -> None:
    """Logs a note. If the script has not set up logging, which would hide the note, it is printed on standard error."""
    if LOG.hasHandlers():
        LOG.info(note)
    else:
        print(note, file=sys.stderr)


class Messages:
    """Informs the user without disturbing training: errors become warnings, and notes go to a log.

    Args:
        speaker: name of the class that the user works with. Every message begins with it.
        strict: whether to raise errors instead. Default: False.
        inform: is called with each note. Default: `show_note`.
    """

    def __init__(self, speaker: str, strict: bool = False, inform: Callable[[str], None] = show_note) -> None:
        self.speaker = speaker
        self.strict = strict
        self._inform = inform
        self._given: set[tuple[str, str, int]] = set()

    @contextmanager
    def errors_as_warnings(self) -> Iterator[None]:
        """Keeps training unaffected: errors become warnings, and the random state is restored."""
        state = torch.get_rng_state(), np.random.get_state(), random.getstate()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # else no number was drawn there
        try:
            yield
        except Exception as error:
            self.warn(error)
        finally:
            torch.set_rng_state(state[0])
            np.random.set_state(state[1])
            random.setstate(state[2])
            torch.cuda.set_rng_state_all(cuda)

    @contextmanager
    def errors_of(self, method: str) -> Iterator[None]:
        """Lets other methods continue: errors of this method become a warning, and each warning of the method is shown once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
                failure = None
            except Exception as error:
                failure = error
        for warning in caught:
            key = (method, warning.filename, warning.lineno)
            if key not in self._given:
                self._given.add(key)
                text = str(warning.message)
                text = text if text.startswith(method) else f"{method}: {text}"
                warnings.warn(f"{self.speaker}: {text}", warning.category, stacklevel=2)
        if failure is not None:
            self.warn(failure, "its maps are missing, other methods continue", method)

    def warn(self, error: Exception, consequence: str = "training continues", method: str = "") -> None:
        """Raises the error if `strict`. Otherwise it warns once for each type of error and each place where it was raised.

        For errors of the operating system, such as a full disk, the place does not count.

        Args:
            error: what happened.
            consequence: what happens next. Default: "training continues".
            method: the method that failed. Default: "", for none.
        """
        if self.strict:
            raise error
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = ("", 0) if place is None else (place.tb_frame.f_code.co_filename, place.tb_lineno)
        if isinstance(error, OSError) and error.errno is not None:
            where = (os.strerror(error.errno), 0)
        key = (method + type(error).__name__, *where)
        if key not in self._given:
            self._given.add(key)
            cause = f"{method and f'{method}: '}{type(error).__name__}: {error}"
            warnings.warn(f"{self.speaker}: {cause} ({consequence}; {self.speaker}(strict=True) raises it)", stacklevel=2)

    def inform(self, note: str) -> None:
        self._inform(f"{self.speaker}: {note}")

    def inform_once(self, note: str, about: str) -> None:
        """Logs only the first note about a subject. An empty note does not count."""
        if note and (about, "", 0) not in self._given:
            self._given.add((about, "", 0))
            self.inform(note)
