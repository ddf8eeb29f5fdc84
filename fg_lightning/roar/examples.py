"""A few of the images that lose pixels, as a person sees them."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from fg_lightning.atomic import replacing
from fg_lightning.roar.pixels import planes
from fg_lightning.roar.views import View
from fg_lightning.visualization.film_strip import evenly_spaced
from fg_lightning.visualization.overlay import Normalization, displayed

FOLDER = "examples"
MOST = 6

AS_THEY_ARE = Normalization([0.0], [1.0])
"""For bytes; other images are scaled by their minimum and maximum."""


def write_examples(folder: Path, view: View) -> None:
    """Writes images of a split, evenly spaced, by their index in it: `examples/000012.png`. None of signals and volumes."""
    if len(view.shape) != 2:
        return
    (folder / FOLDER).mkdir(exist_ok=True)
    for index in evenly_spaced(len(view.plane), MOST):
        image = planes(view.plane.image(index))
        pixels = displayed(image, AS_THEY_ARE if image.dtype is torch.uint8 else None)
        with replacing(folder / FOLDER / f"{index:06d}.png") as file:
            Image.fromarray(pixels).save(file, "PNG")
