"""What Lightning says of every training, which is too much where there are hundreds."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

SAID = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory.*",
    ".*GPU available but not used.*",
    ".*sequential samp.*",
    ".*LeafSpec.*",
    ".*Skipping val loop.*",
)
"""Warnings that advise on speed or repeat what was asked for."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's notes on devices and limits, and the warnings in SAID."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in SAID:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
