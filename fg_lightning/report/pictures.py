"""Pictures as a run or an experiment left them."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image


def picture_in(path: Path) -> Image.Image | None:
    """A picture; None if it is missing, damaged, or so large that Pillow takes it for an attack."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(path).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
            return None
