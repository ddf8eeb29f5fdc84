"""One way to log numbers and pictures together, whatever Lightning logger is there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fg_lightning.visualization.grid import contact_sheet
from fg_lightning.visualization.overlay import RGB, with_colour_bar


@dataclass(frozen=True)
class Pictures:
    """Pictures of one moment under one key, ready to be shown.

    Attributes:
        key: of the pictures.
        title: what moment it is.
        overlays: [H, W, 3] in 0..255, of one size.
        captions: one for each, of any number of lines.
        table_key: of a table with a row for each overlay.
        table: its further columns by name, each with a value for each overlay; [H, W, 3] arrays are pictures.
        is_signed: whether the maps have negative values.
        of_run: further pictures, of the whole run up to now, by key; the path of a GIF is an animation.
    """

    key: str
    title: str
    overlays: Sequence[RGB]
    captions: Sequence[str]
    table_key: str
    table: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    is_signed: bool = False
    of_run: Mapping[str, Image.Image | Path] = field(default_factory=dict)

    @cached_property
    def sheet(self) -> Image.Image:
        """All overlays with their captions as one picture."""
        return contact_sheet(self.overlays, self.captions, title=self.title, is_signed=self.is_signed)


class Log:
    """Takes numbers, to any logger; a subclass takes pictures, too.

    Args:
        logger: a Lightning logger.
    """

    takes_pictures = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def log(self, numbers: Mapping[str, float], pictures: Pictures | None, step: int) -> None:
        """Logs what belongs to one step."""
        self.logger.log_metrics(dict(numbers), step=step)

    def conclude(self, pictures: Mapping[str, Image.Image | Path], step: int) -> None:
        """Logs pictures and animations of the whole run, by key, apart from any step's numbers."""


class WandbLog(Log):
    """Weights & Biases: all of a step in one call, overlays with captions and rows for a table that grows."""

    takes_pictures = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._table: Any = None

    def log(self, numbers: Mapping[str, float], pictures: Pictures | None, step: int) -> None:
        if pictures is None:
            return super().log(numbers, pictures, step)
        overlays = [
            _wandb_image(with_colour_bar(overlay, is_signed=pictures.is_signed), f"{pictures.title}: {caption}".replace("\n", " "))
            for overlay, caption in zip(pictures.overlays, pictures.captions, strict=True)
        ]
        table = self._with_rows(pictures.table, overlays)
        of_run = {key: _wandb_media(picture) for key, picture in pictures.of_run.items()}
        self.logger.log_metrics({**numbers, pictures.key: overlays, pictures.table_key: table, **of_run}, step=step)
        table.data[:] = [()] * len(table.data)  # logged: the table would hold on to every picture of the run

    def conclude(self, pictures: Mapping[str, Image.Image | Path], step: int) -> None:
        self.logger.experiment.summary.update({key: _wandb_media(picture) for key, picture in pictures.items()})

    def _with_rows(self, columns: Mapping[str, Sequence[Any]], overlays: Sequence[Any]) -> Any:
        """The table with a row for each overlay. Before wandb 0.20 tables could not grow: then there is one for each step."""
        import wandb

        growing: dict[str, Any] = {"log_mode": "INCREMENTAL"} if "log_mode" in inspect.signature(wandb.Table).parameters else {}
        if self._table is None or not growing:
            self._table = wandb.Table(["overlay", *columns], **growing)
        for i, shown in enumerate(overlays):
            values = [column[i] for column in columns.values()]
            self._table.add_data(shown, *(_wandb_image(value) if isinstance(value, np.ndarray) else value for value in values))
        return self._table


def _wandb_image(picture: RGB, caption: str | None = None) -> Any:
    import wandb

    return wandb.Image(picture, caption=caption, file_type="jpg")  # a tenth of PNG's time and space


def _wandb_media(picture: Image.Image | Path) -> Any:
    import wandb

    # As an Image a GIF would lose its motion; the path of one needs no encoder.
    return wandb.Video(str(picture), format="gif") if isinstance(picture, Path) else wandb.Image(picture)


SHOWN: dict[str, Callable[[Any, str, Image.Image, int], Any]] = {
    "TensorBoardLogger": lambda logger, key, p, step: logger.experiment.add_image(key, np.asarray(p), step, dataformats="HWC"),
    "MLFlowLogger": lambda logger, key, p, step: logger.experiment.log_image(logger.run_id, p, key=key, step=step),
    "CometLogger": lambda logger, key, p, step: logger.experiment.log_image(p, name=key, step=step),
}
"""How the loggers that take a picture under a key at a step are given it, by the names of their classes."""


class SheetLog(Log):
    """A logger whose pictures have no captions: gets all overlays of a step as one picture."""

    takes_pictures = True

    def __init__(self, logger: Any, show: Callable[[Any, str, Image.Image, int], Any]) -> None:
        super().__init__(logger)
        self._show = show

    def log(self, numbers: Mapping[str, float], pictures: Pictures | None, step: int) -> None:
        super().log(numbers, pictures, step)
        if pictures is not None:
            self.conclude({pictures.key: pictures.sheet, **pictures.of_run}, step)

    def conclude(self, pictures: Mapping[str, Image.Image | Path], step: int) -> None:
        for key, picture in pictures.items():
            if not isinstance(picture, Path):
                self._show(self.logger, key, picture, step)


def log_of(logger: Any) -> Log:
    """How to log to a Lightning logger. Its kind is told by name: Lightning's loggers exist under two package names."""
    for kind in type(logger).__mro__:
        if kind.__name__ == "WandbLogger":
            return WandbLog(logger)
        if kind.__name__ in SHOWN:
            return SheetLog(logger, SHOWN[kind.__name__])
    return Log(logger)
