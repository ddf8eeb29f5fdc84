"""The demo's digits for many trainings in one process: reading them takes as long as an epoch."""

from __future__ import annotations

from functools import cache

from fg_lightning.demo import DigitsDataModule


class DigitsOnce(DigitsDataModule):
    """The same digits, read once a process; for the arguments see `DigitsDataModule`."""

    def setup(self, stage: str) -> None:
        read = _read()
        self.train, self.val, self.test = read.train, read.val, read.test


@cache
def _read() -> DigitsDataModule:
    data = DigitsDataModule()
    data.setup("fit")
    return data
