"""A few of the images that lose pixels, as a person sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fg_lightning.roar.pixels import Picture
from fg_lightning.roar.views import View
from fg_lightning.visualization.film_strip import evenly_spaced
from fg_lightning.visualization.overlay import displayed

FOLDER = "examples"
MOST = 6


def write_examples(folder: Path, view: View) -> None:
    """Writes images of a split, evenly spaced, by their index in it: `examples/000012.png`. None of signals and volumes."""
    if len(view.shape) != 2:
        return
    (folder / FOLDER).mkdir(exist_ok=True)
    for index in evenly_spaced(len(view.plane), MOST):
        _as_pil(view.plane.image(index)).save(folder / FOLDER / f"{index:06d}.png")


def _as_pil(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    return Image.fromarray(displayed(picture) if isinstance(picture, Tensor) else np.asarray(picture).squeeze()).convert("RGB")
