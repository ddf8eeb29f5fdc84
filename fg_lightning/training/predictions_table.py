"""A table of a classifier's predictions, with a row for each image."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from fg_lightning.atomic_files import replace_file, sweep


class PredictionsTable(BasePredictionWriter):
    """Writes `predictions.csv` to the run's folder: a row for every image, in the order of the data.

    Columns:

    - `loader`: number of the loader, from 0.
    - `image`: index of the image in the loader's data. If Lightning does not know it (an IterableDataset, the user's own batch
            sampler): its number in the order of reading, from 0.
    - `label`: the label, if the batch has labels.
    - `prediction`: the class with the highest probability.
    - `class`: its name, if the datamodule has the attribute `classes`.
    - `confidence`: its probability.

    With several processes, each writes its own table, `predictions_0.csv`, `predictions_1.csv`, ... An old table is replaced when
    the new one is complete. `predict_step` must give probabilities [N, K], as that of `ImageClassifier` does.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self.path: Path | None = None
        self.written: Counter[int] = Counter()
        self.told: Sequence[int] | None = None
        self._begun: tuple[ExitStack, BinaryIO] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.written.clear()
        own = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.path = Path(trainer.log_dir or trainer.default_root_dir) / f"predictions{own}.csv"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sweep(self.path.parent)
        stack = ExitStack()
        self._begun = stack, stack.enter_context(replace_file(self.path))
        self._write([["loader", "image", "label", "prediction", "class", "confidence"]])

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not isinstance(prediction, Tensor) or prediction.ndim != 2:
            raise TypeError(
                f"predict_step gave {type(prediction).__name__}, but probabilities [N, K] are needed for a table of predictions; "
                "call Trainer.predict yourself for other outputs"
            )
        names = getattr(getattr(trainer, "datamodule", None), "classes", [])
        labels = batch[1].tolist() if isinstance(batch, (tuple, list)) and len(batch) > 1 else [""] * len(prediction)
        confidences, classes = (column.tolist() for column in prediction.max(1))
        before = self.written[dataloader_idx]
        self.written[dataloader_idx] += len(prediction)
        places: Sequence[int] = range(before, self.written[dataloader_idx])
        if batch_indices and batch_indices is not self.told:  # without indices, Lightning passes the last ones again
            places = batch_indices
        self.told = batch_indices
        self._write(
            [dataloader_idx, place, label, likeliest, names[likeliest] if likeliest < len(names) else "", f"{confidence:.4f}"]
            for place, label, likeliest, confidence in zip(places, labels, classes, confidences, strict=True)
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._begun is not None:
            with suppress(OSError):
                self._begun[0].__exit__(type(exception), exception, None)  # raises the exception again and keeps the old table
            self._begun = None

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._begun is not None
        stack, _ = self._begun
        self._begun = None
        stack.close()
        if trainer.is_global_zero:
            print(f"predictions  {self.path}")

    def _write(self, rows: Iterable[Sequence[Any]]) -> None:
        assert self._begun is not None
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._begun[1].write(text.getvalue().encode())
