"""Saliency over the image it belongs to."""

from __future__ import annotations

import matplotlib
import numpy as np
import numpy.typing as npt
from torch import Tensor

COLORMAP = "inferno"
"""Perceptually uniform, rising in lightness throughout, so that it reads the same to the colour-blind and in print."""

SMALLEST_SIDE = 112
"""Smaller images are enlarged by a whole factor: viewers blur them or show them as stamps."""

RGB = npt.NDArray[np.uint8]


def displayed(image: Tensor) -> RGB:
    """An image [C, H, W] in whatever units the model takes as [H, W, 3] in 0..255, by its own minimum and maximum.

    One channel becomes grey; of more than three the mean is shown.
    """
    values = image.detach().float().cpu()
    if values.shape[0] != 3:
        values = values.mean(0, keepdim=True).expand(3, -1, -1)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low).clamp_min(1e-12)
    rgb: RGB = (scaled * 255).round().byte().permute(1, 2, 0).numpy()
    return rgb


def overlay(image: Tensor, saliency: Tensor, *, strength: float = 0.7) -> RGB:
    """A saliency map in colour over its image in grey, enlarged where it is small.

    Args:
        image: [C, H, W], in whatever units the model takes.
        saliency: [1, H, W] or [H, W]; scaled by its own range, up to its 99.5th percentile, so that a single pixel does not
            take all the contrast.
        strength: opacity of the colours where saliency is highest; it falls to half of that where it is lowest.

    Returns:
        [H', W', 3] in 0..255, H' and W' whole multiples of H and W.
    """
    grey = displayed(image).mean(-1, keepdims=True) / 255
    heat = relative(saliency.reshape(saliency.shape[-2:]).detach().float().cpu().numpy())
    colours = matplotlib.colormaps[COLORMAP](heat)[..., :3]
    opacity = strength * (0.5 + 0.5 * heat[..., None])
    blended = (1 - opacity) * grey + opacity * colours
    return enlarged((blended * 255).round().astype(np.uint8))


def relative(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Values scaled to 0..1 by their minimum and their 99.5th percentile."""
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if high <= low:
        high = float(values.max())
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def enlarged(picture: RGB) -> RGB:
    """Every pixel repeated by a whole factor, until the shorter side has `SMALLEST_SIDE` pixels."""
    factor = max(1, -(-SMALLEST_SIDE // min(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
