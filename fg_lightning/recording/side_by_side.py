"""Joins several image inputs side by side, so that they are shown, stored and measured as one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fg_lightning.visualization.saliency_overlay import planar


def join_side_by_side(inputs: Sequence[Tensor]) -> Tensor:
    """Joins images, maps or masks of several inputs, the first at the left.

    Args:
        inputs: [N, C, *S] each, of any sizes. A signal becomes a band, and a volume its middle slice, as in pictures.

    Returns:
        [N, C, H, W]. C and H are the largest of the inputs, and W is the sum of their widths. Lower images are filled up with zeros
        below. An image with fewer channels repeats the mean of its channels.
    """
    planes = [planar(of_input) for of_input in inputs]
    num_channels, height = max(plane.shape[1] for plane in planes), max(plane.shape[2] for plane in planes)
    joined = []
    for plane in planes:
        if plane.shape[1] < num_channels:
            plane = plane.mean(1, keepdim=True).expand(-1, num_channels, -1, -1)
        joined.append(F.pad(plane, (0, 0, 0, height - plane.shape[2])))
    return torch.cat(joined, 3)
