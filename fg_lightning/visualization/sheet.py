"""The contact sheet: the overlays of one moment, each with what the network says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from fg_lightning.visualization.mounted import mounted
from fg_lightning.visualization.overlay import RGB


def contact_sheet(overlays: Sequence[RGB], captions: Sequence[str], *, title: str = "", is_signed: bool = False) -> Image.Image:
    """Draws overlays in a grid, for viewers that show one picture and no caption.

    Args:
        overlays: of one size, [H, W, 3].
        captions: one for each, of any number of lines.
        title: above all of them.
        is_signed: whether the maps have negative values.

    Raises:
        ValueError: if there is nothing to show, or not one caption for every overlay.
    """
    if not overlays or len(captions) != len(overlays):
        raise ValueError(f"a contact sheet needs overlays and a caption for each, not {len(captions)} captions for {len(overlays)}")
    columns = min(len(overlays), max(4, math.ceil(math.sqrt(len(overlays)))))
    starts = range(0, len(overlays), columns)
    return mounted(
        [overlays[i : i + columns] for i in starts],
        captions=[captions[i : i + columns] for i in starts],
        title=title,
        is_signed=is_signed,
    )
