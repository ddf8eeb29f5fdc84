"""The history of a run: its records, its files, and the classes that write and read them."""

from fg_lightning.history.records import Answers, Explanation, ImageRow, LayerTerms, Snapshot
from fg_lightning.history.run_history import History
from fg_lightning.history.run_reader import Run, read_run

__all__ = ["Answers", "Explanation", "History", "ImageRow", "LayerTerms", "Run", "Snapshot", "read_run"]
