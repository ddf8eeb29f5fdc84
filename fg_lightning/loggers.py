"""One way to log numbers and images together: images to Weights & Biases, numbers to any Lightning logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from fg_lightning.visualization.overlay import RGB


def log(logger: Logger, numbers: dict[str, float], images: Mapping[str, Sequence[RGB]], captions: Sequence[str], step: int) -> bool:
    """Logs numbers and images at one step, in one call where the logger can.

    Args:
        logger: any Lightning logger.
        numbers: by key.
        images: by key, each [H, W, 3] in 0..255.
        captions: one for each image of a key.
        step: Lightning's global step.

    Returns:
        Whether the images were logged; a logger that takes none gets the numbers alone.
    """
    if isinstance(logger, WandbLogger):
        import wandb

        media: dict[str, Any] = {
            key: [wandb.Image(picture, caption=caption) for picture, caption in zip(pictures, captions, strict=True)]
            for key, pictures in images.items()
        }
        logger.log_metrics({**numbers, **media}, step=step)
        return True
    logger.log_metrics(numbers, step=step)
    return False
