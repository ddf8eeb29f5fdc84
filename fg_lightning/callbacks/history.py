"""The history: every look of a run, kept on disk as it is made."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from matplotlib.image import imsave
from torch import Tensor

from fg_lightning.callbacks.look import Look
from fg_lightning.callbacks.probe import Probe
from fg_lightning.visualization import film_strip
from fg_lightning.visualization.overlay import RGB

KEYS = (
    "completeness_error",
    "completeness_error_max",
    "input_share",
    "bias_share",
    "implicit_share",
    "drift",
)
"""The columns of the CSV behind epoch and step."""


class History:
    """Looks in order, with their numbers in `history.csv` and their maps in `maps/`, below one folder.

    Args:
        folder: made when the first look comes; None to write nothing.
        probe: the images looked at.
    """

    def __init__(self, folder: Path | None, probe: Probe) -> None:
        self.folder = folder
        self.probe = probe
        self.looks: list[Look] = []

    @property
    def strip_path(self) -> Path | None:
        return None if self.folder is None else self.folder / "film_strip.png"

    @property
    def latest_maps(self) -> Tensor | None:
        return self.looks[-1].maps if self.looks else None

    def add(self, look: Look) -> None:
        """Keeps a look: its maps as float16 [N, 1, *S], its numbers as a row."""
        self.looks.append(look)
        if self.folder is None:
            return
        maps = self.folder / "maps"
        maps.mkdir(parents=True, exist_ok=True)
        np.save(maps / f"epoch_{look.epoch:04d}.npy", look.maps.half().numpy())
        path = self.folder / "history.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["epoch", "step", *KEYS])
            writer.writerow([look.epoch, look.step, *(look.numbers.get(f"fullgrad/{key}", "") for key in KEYS)])

    def add_overlays(self, look: Look, overlays: Sequence[RGB]) -> None:
        """Keeps the overlays of a look side by side as one PNG, for runs without a logger that takes images."""
        if self.folder is None:
            return
        folder = self.folder / "saliency"
        folder.mkdir(parents=True, exist_ok=True)
        imsave(folder / f"epoch_{look.epoch:04d}.png", np.concatenate(overlays, axis=1))

    def draw_strip(self) -> None:
        """Draws the film strip, a row per image and a column per look, where the images are planar."""
        if self.strip_path is None or not self.looks or self.probe.images.ndim != 4:
            return
        labels = self.probe.labels
        figure = film_strip(
            self.probe.images,
            [("untrained" if look.epoch == 0 else f"epoch {look.epoch}", look.maps) for look in self.looks],
            row_names=None if labels is None else [f"class {label}" for label in labels.tolist()],
        )
        figure.savefig(self.strip_path)


def folder_of(trainer: Trainer) -> Path:
    """Where the findings of a run go: `fullgrad/` in the logger's folder, or below the default root; never where some lie."""
    logger = trainer.logger
    own = getattr(logger, "log_dir", None)
    if own is not None:
        folder = Path(own) / "fullgrad"
    elif logger is not None and logger.version is not None:
        folder = Path(logger.save_dir or trainer.default_root_dir) / "fullgrad" / str(logger.version)
    else:
        folder = Path(trainer.default_root_dir) / "fullgrad" / "version_0"
    stem = folder.name.removesuffix("_0")
    taken = count(1)
    while folder.exists():
        folder = folder.with_name(f"{stem}_{next(taken)}")
    return folder
