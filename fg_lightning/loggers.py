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
    """The pictures of one snapshot.

    Attributes:
        key: log key of the overlays.
        title: names the step of the snapshot.
        overlays: [H, W, 3] in 0..255, all of one size, that of the maps.
        captions: one for each overlay, of any number of lines.
        table_key: log key of a table with a row for each overlay.
        table: its other columns by name. A column has a value for each overlay, all of one type. A [H, W, 3] array is a picture;
            the same array object is encoded once for all steps. Default: no other columns.
        marked: whether the prediction for each overlay is wrong. Default: empty, for unknown.
        masks: [N, 1, *S], True where the network should look, outlined in the overlays. Default: None, for unknown.
        subject: describes what the overlays show. Default: "".
        is_signed: whether the maps have negative values. Default: False.
        of_run: pictures of the whole run up to now, by log key. A path is that of an animation, a GIF. Default: none.
        more: the pictures of further methods for the same snapshot. Their tables are not logged. Default: none.
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
        """The overlays with outlines, enlarged by a whole factor until the shorter side has at least `side` pixels."""
        return draw_outlines([enlarge(overlay, side) for overlay in self.overlays], self.masks)


class Log:
    """Logs numbers with any Lightning logger. Subclasses log pictures, too.

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
        """Logs pictures and animations of the whole run, by key. It has no effect if `takes_pictures` is False."""

    def alert(self, title: str, text: str) -> None:
        """Sends the user a message. It has no effect if `sends_alerts` is False."""


class WandbLog(Log):
    """Logs to Weights & Biases: all data of a step in one call, overlays with captions, and a table that grows."""

    takes_pictures = True
    sends_alerts = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._table: Any = None
        self._encoded: dict[int, tuple[RGB, Any]] = {}  # pictures in the table's last rows, by the id() of their arrays

    def log(self, numbers: Mapping[str, float], pictures: Pictures | None, step: int) -> None:
        if pictures is None:
            return super().log(numbers, pictures, step)
        overlays = _wandb_overlays(pictures)
        more = {other.key: _wandb_overlays(other) for other in pictures.more}
        table = self._add_rows(pictures.table, overlays)
        of_run = {key: _wandb_media(picture) for key, picture in pictures.of_run.items()}
        self.logger.log_metrics({**numbers, pictures.key: overlays, **more, pictures.table_key: table, **of_run}, step=step)
        table.data[:] = [()] * len(table.data)  # frees logged pictures; else the table keeps all of the run

    def conclude(self, pictures: Mapping[str, Image.Image | Path], step: int) -> None:
        self.logger.experiment.summary.update({key: _wandb_media(picture) for key, picture in pictures.items()})

    def alert(self, title: str, text: str) -> None:
        self.logger.experiment.alert(title=title, text=text, level="WARN")

    def _add_rows(self, columns: Mapping[str, Sequence[Any]], overlays: Sequence[Any]) -> Any:
        """The table with a new row for each overlay. wandb tables cannot grow before 0.20; there, each step has its own table."""
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
        self._table.data.extend(rows[1:])  # skips wandb's slow type check of each row: a column holds values of one type
        return self._table


WANDB_SIDE = 224
"""Pixels of the shorter side. W&B's panels blur smaller pictures."""


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


class _Encodable(Image.Image):
    """A picture of which W&B asks only the size, and that it be saved: as PNG, in a quarter of the time that Pillow takes.

    Args:
        pixels: [H, W, 3] in 0..255. They are not copied.
    """

    def __init__(self, pixels: RGB) -> None:
        super().__init__()
        self._pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        height, width, _ = self._pixels.shape
        return width, height

    def save(self, fp: Any, *_: Any, **__: Any) -> None:
        Path(fp).write_bytes(encode_png(self._pixels))


def _wandb_image(picture: RGB, caption: str | None = None) -> Any:
    """A picture as PNG, enlarged by a whole factor if it is small."""
    import wandb

    image = _Encodable(enlarge(picture, WANDB_SIDE))
    logged = wandb.Image(image, caption=caption, file_type="png")
    logged._image = image  # W&B asks for the size again, and would decode the file
    return logged


def _wandb_media(picture: Image.Image | Path) -> Any:
    import wandb

    # wandb.Image would keep only the first frame of a GIF. wandb.Video needs no encoder for the path of a GIF.
    return wandb.Video(str(picture), format="gif") if isinstance(picture, Path) else _wandb_image(pil_to_rgb(picture))


def _log_to_tensorboard(logger: Any, key: str, picture: Image.Image, step: int) -> None:
    """Adds a picture as `add_image` does, in a quarter of its time: `add_image` converts to floating point and uses Pillow."""
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
"""Class name of a logger -> (logger, key, picture, step), a function that logs a picture."""


class SheetLog(Log):
    """Logs all overlays of a step as one picture with their captions drawn into it, for loggers that take no captions."""

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
    """Gives a run of Weights & Biases the methods of Lightning's `WandbLogger`. The step has the same name as there."""

    def __init__(self, run: Any) -> None:
        self.experiment = run

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        self.experiment.log({**metrics, "trainer/global_step": step})


def log_for(logger: Any) -> Log:
    """The `Log` for a Lightning logger or a run of Weights & Biases.

    It is chosen by the names of the logger's classes, because Lightning's loggers exist in several packages.

    Raises:
        TypeError: if it is neither.
    """
    for kind in type(logger).__mro__:
        if kind.__name__ == "WandbLogger":
            return WandbLog(logger)
        if kind.__name__ == "Run" and kind.__module__.startswith("wandb."):
            return WandbLog(_RunLogger(logger))
        if kind.__name__ in PICTURE_LOGGERS:
            return SheetLog(logger, PICTURE_LOGGERS[kind.__name__])
    if not hasattr(logger, "log_metrics"):
        raise TypeError(
            f"a logger must be one of Lightning's or Fabric's, such as TensorBoardLogger, or a run of Weights & Biases, but is "
            f"{'a class' if isinstance(logger, type) else f'of the type {type(logger).__name__}'}"
        )
    return Log(logger)
