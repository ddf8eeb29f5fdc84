"""One image as several methods explain it, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fg_lightning.visualization.mounted import mounted
from fg_lightning.visualization.overlay import Normalization, any_negative, displayed, enlarged, overlaid

MOST_COLUMNS = 6


def comparison(
    image: Float[Tensor, "c h w"],
    maps: Mapping[str, Float[Tensor, "1 h w"]],
    *,
    caption: str = "image",
    normalization: Normalization | None = None,
) -> Image.Image:
    """Draws an image and what each method says of it, every map over the image and scaled by its own range.

    Args:
        image: in whatever units the model takes.
        maps: by the names of the methods, in the order in which they are drawn.
        caption: below the image itself, such as what was predicted.
        normalization: of the image, undone where it fits.

    Raises:
        ValueError: if there is no map.
    """
    if not maps:
        raise ValueError("a comparison needs the map of at least one method")
    picture = displayed(image, normalization)
    is_signed = any_negative(maps.values())
    frames = [enlarged(picture), *(overlaid(picture, saliency, is_signed=is_signed) for saliency in maps.values())]
    captions = [caption, *maps]
    columns = math.ceil(len(frames) / math.ceil(len(frames) / MOST_COLUMNS))
    starts = range(0, len(frames), columns)
    return mounted(
        [frames[i : i + columns] for i in starts],
        captions=[captions[i : i + columns] for i in starts],
        is_signed=is_signed,
    )
