"""Where in the network the answer is made: bias terms by depth, over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from fg_lightning.visualization.film_strip import evenly_spaced
from fg_lightning.visualization.overlay import SIGNED_COLORMAP

MOST_NAMES = 40
"""Of more rows than this only so many are named."""


def depth_map(shares: npt.NDArray[np.floating], layers: Sequence[str], moments: Sequence[str]) -> Figure:
    """Draws what share of the output each layer's biases explain, a row per layer from the input down, a column per moment.

    Args:
        shares: [layers, moments]; they add up to 1 over the layers but for the completeness error, and may be negative. NaN is
            left white.
        layers: their names, in forward order.
        moments: what the columns are called.

    Raises:
        ValueError: if there is nothing to show, or not a name for every row and column.
    """
    if not shares.size or shares.shape != (len(layers), len(moments)):
        raise ValueError(f"shares must have a row for each of {len(layers)} layers and a column for each of {len(moments)} moments")
    rows, columns = evenly_spaced(len(layers), MOST_NAMES), evenly_spaced(len(moments), 16)
    figure = Figure(figsize=(5 + 0.35 * min(len(moments), 24), 1.8 + 0.17 * len(rows)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    magnitudes = np.abs(shares[np.isfinite(shares)])
    # The input may dwarf every layer: colours are for the rest, and what they cannot show is written down.
    limit = max(float(np.percentile(magnitudes, 90)) if magnitudes.size else 0.0, 1e-3)
    picture = axes.imshow(shares, cmap=SIGNED_COLORMAP, norm=TwoSlopeNorm(0, -limit, limit), aspect="auto", interpolation="nearest")
    axes.set_yticks(rows, [layers[i] for i in rows], fontsize=7)
    axes.set_xticks(columns, [moments[i] for i in columns], fontsize=7, rotation=90 if len(columns) > 6 else 0)
    axes.tick_params(length=2)
    if len(moments) <= 24:
        for i, j in zip(*np.nonzero(np.abs(np.nan_to_num(shares)) > limit), strict=True):
            axes.text(j, i, f"{shares[i, j]:.2g}", ha="center", va="center", fontsize=6, color="white")
    figure.colorbar(picture, ax=axes, extend="both", label="share of the output").ax.tick_params(labelsize=7)
    return figure
