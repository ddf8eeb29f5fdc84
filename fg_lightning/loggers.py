"""Logs numbers and pictures together, with any Lightning logger or a Weights & Biases run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from fg_lightning.visualization.image_grids import add_border, contact_sheet, pil_to_rgb
from fg_lightning.visualization.outlines import draw_outlines
from fg_lightning.visualization.png_encoding import encode_png
from fg_lightning.visualization.saliency_overlay import RGB, SMALLEST_SIDE, add_colour_bar, enlarge

__all__ = ["PICTURE_LOGGERS", "Pictures", "log_for"]


@dataclass(frozen=True)
class Pictures:
    """The pictures of one moment.

    Attributes:
        key: under which the overlays are logged.
        title: the moment, in words.
        overlays: [H, W, 3] in 0..255, of one size, that of the maps.
        captions: one for each overlay, of any number of lines.
        marked: whether the prediction for each is wrong; empty if that is unknown.
        masks: where the network should look, outlined in the overlays; None if that is unknown.
        subject: what the overlays show, in words.
        table_key: of a table with a row for each overlay.
        table: its other columns by name, each with a value for each overlay, all of one type; [H, W, 3] arrays are pictures, and
            the same array is the same picture in every step.
        is_signed: whether the maps have negative values.
        of_run: pictures of the whole run up to now, by key; the path of a GIF is an animation.
        more: the pictures of further methods at the same moment, without tables.
    """

    key: str
    title: str
    overlays: Sequence[RGB]
    captions: Sequence[str]
    table_key: str
    table: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    marked: Sequence[bool] = ()
    masks: Bool[Tensor, "n 1 *s"] | None = None
    subject: str = ""
    is_signed: bool = False
    of_run: Mapping[str, Image.Image | Path] = field(default_factory=dict)
    more: Sequence[Pictures] = ()

    @cached_property
    def sheet(self) -> Image.Image:
        """All overlays with their captions as one picture."""
        title = "\n".join(filter(None, [self.title, self.subject]))
        frames = self.frames(SMALLEST_SIDE)
        return contact_sheet(frames, self.captions, marked=self.marked, title=title, is_signed=self.is_signed)

    def frames(self, side: int) -> list[RGB]:
        """The overlays, enlarged until their shorter side has so many pixels or more, with outlines."""
        return draw_outlines([enlarge(overlay, side) for overlay in self.overlays], self.masks)


class Log:
    """Logs numbers with any logger. Subclasses log pictures, too.

    Args:
        logger: a Lightning logger.
    """

    takes_pictures = False
    sends_alerts = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def log(self, numbers: Mapping[str, float], pictures: Pictures | None, step: int) -> None:
        """Logs the numbers and pictures of one step."""
        self.logger.log_metrics(dict(numbers), step=step)

    def conclude(self, pictures: Mapping[str, Image.Image | Path], step: int) -> None:
        """Logs pictures and animations of the whole run, by key, without numbers."""

    def alert(self, title: str, text: str) -> None:
        """Sends the user a message, if `sends_alerts`."""


class WandbLog(Log):
    """Weights & Biases: everything of a step in one call, with captions, and a table that grows."""

    takes_pictures = True
    sends_alerts = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._table: Any = None
        self._encoded: dict[int, tuple[RGB, Any]] = {}  # pictures in the table's last rows, by their identity

    def log(self, numbers: Mapping[str, float], pictures: Pictures | None, step: int) -> None:
        if pictures is None:
            return super().log(numbers, pictures, step)
        overlays = _wandb_overlays(pictures)
        more = {other.key: _wandb_overlays(other) for other in pictures.more}
        table = self._add_rows(pictures.table, overlays)
        of_run = {key: _wandb_media(picture) for key, picture in pictures.of_run.items()}
        self.logger.log_metrics({**numbers, pictures.key: overlays, **more, pictures.table_key: table, **of_run}, step=step)
        table.data[:] = [()] * len(table.data)  # they are logged, and the table would keep every picture of the run

    def conclude(self, pictures: Mapping[str, Image.Image | Path], step: int) -> None:
        self.logger.experiment.summary.update({key: _wandb_media(picture) for key, picture in pictures.items()})

    def alert(self, title: str, text: str) -> None:
        self.logger.experiment.alert(title=title, text=text, level="WARN")

    def _add_rows(self, columns: Mapping[str, Sequence[Any]], overlays: Sequence[Any]) -> Any:
        """The table with a new row for each overlay. Before wandb 0.20 tables could not grow; then each step has a table."""
        import wandb

        if self._table is None or not hasattr(self._table, "log_mode"):
            growing: dict[str, Any] = {"log_mode": "INCREMENTAL"} if "log_mode" in inspect.signature(wandb.Table).parameters else {}
            self._table = wandb.Table(["overlay", *columns], **growing)
        pictures = {id(value): value for column in columns.values() for value in column if isinstance(value, np.ndarray)}
        self._encoded = {key: self._encoded.get(key) or (picture, _wandb_image(picture)) for key, picture in pictures.items()}
        rows = [
            [overlay, *(self._encoded[id(value)][1] if isinstance(value, np.ndarray) else value for value in values)]
            for overlay, *values in zip(overlays, *columns.values(), strict=True)
        ]
        self._table.add_data(*rows[0])
        self._table.data.extend(rows[1:])  # each column holds values of one type, which wandb need not find out for each row
        return self._table


WANDB_SIDE = 224
"""W&B's panels blur smaller pictures."""


def _wandb_overlays(pictures: Pictures) -> list[Any]:
    """Each overlay as an image with its caption."""
    marked = pictures.marked or [False] * len(pictures.overlays)
    return [
        _wandb_image(
            add_colour_bar(add_border(frame, is_marked=is_marked), is_signed=pictures.is_signed),
            f"{pictures.title}: {caption}".replace("\n", " "),
        )
        for frame, caption, is_marked in zip(pictures.frames(WANDB_SIDE), pictures.captions, marked, strict=True)
    ]


def _wandb_image(picture: RGB, caption: str | None = None) -> Any:
    """A picture as PNG, enlarged by a whole factor if it is small. Pillow's own encoder takes four times as long."""
    import wandb

    pixels = enlarge(picture, WANDB_SIDE)
    image = Image.fromarray(pixels)
    image.save = lambda path, *_, **__: Path(path).write_bytes(encode_png(pixels))  # type: ignore[assignment,method-assign]
    return wandb.Image(image, caption=caption, file_type="png")


def _wandb_media(picture: Image.Image | Path) -> Any:
    import wandb

    # As an Image a GIF would lose its motion; the path of one needs no encoder.
    return wandb.Video(str(picture), format="gif") if isinstance(picture, Path) else _wandb_image(pil_to_rgb(picture))


def _log_to_tensorboard(logger: Any, key: str, picture: Image.Image, step: int) -> None:
    """Adds a picture as `add_image` does, which takes four times as long: it goes through floating-point numbers and Pillow."""
    writer, pixels = logger.experiment, pil_to_rgb(picture)
    if not type(writer).__module__.startswith("torch.utils.tensorboard") or writer.file_writer is None:  # tensorboardX; closed
        writer.add_image(key, pixels, step, dataformats="HWC")
        return
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    height, width, channels = pixels.shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=encode_png(pixels))
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=key, image=image)]), step)


PICTURE_LOGGERS: dict[str, Callable[[Any, str, Image.Image, int], Any]] = {
    "TensorBoardLogger": _log_to_tensorboard,
    "MLFlowLogger": lambda logger, key, p, step: logger.experiment.log_image(logger.run_id, p, key=key, step=step),
    "CometLogger": lambda logger, key, p, step: logger.experiment.log_image(p, name=key, step=step),
}
"""Functions that log a picture under a key at a step, by the names of the loggers' classes."""


class SheetLog(Log):
    """A logger of pictures without captions: it gets all overlays of a step as one picture."""

    takes_pictures = True

    def __init__(self, logger: Any, show: Callable[[Any, str, Image.Image, int], Any]) -> None:
        super().__init__(logger)
        self._show = show

    def log(self, numbers: Mapping[str, float], pictures: Pictures | None, step: int) -> None:
        super().log(numbers, pictures, step)
        if pictures is not None:
            sheets = {of_method.key: of_method.sheet for of_method in (pictures, *pictures.more)}
            self.conclude({**sheets, **pictures.of_run}, step)

    def conclude(self, pictures: Mapping[str, Image.Image | Path], step: int) -> None:
        for key, picture in pictures.items():
            if not isinstance(picture, Path):
                self._show(self.logger, key, picture, step)


class _RunLogger:
    """A run of Weights & Biases as Lightning's logger of it, which names the step in the same way."""

    def __init__(self, run: Any) -> None:
        self.experiment = run

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        self.experiment.log({**metrics, "trainer/global_step": step})


def log_for(logger: Any) -> Log:
    """How to log with a Lightning logger or a run of Weights & Biases.

    The names of the logger's classes decide, because Lightning's loggers exist in several packages.
    """
    for kind in type(logger).__mro__:
        if kind.__name__ == "WandbLogger":
            return WandbLog(logger)
        if kind.__name__ == "Run" and kind.__module__.startswith("wandb."):
            return WandbLog(_RunLogger(logger))
        if kind.__name__ in PICTURE_LOGGERS:
            return SheetLog(logger, PICTURE_LOGGERS[kind.__name__])
    return Log(logger)
