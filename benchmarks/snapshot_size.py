"""Measures the size of a snapshot of four photographs on disk: python benchmarks/snapshot_size.py [--side 1024]

Needs scikit-image and tensorboard. W&B runs offline.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import skimage.data
import torch
import torchvision.transforms.functional as T
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from fg_lightning import FullGradRecorder

PHOTOGRAPHS = ("chelsea", "coffee", "rocket", "astronaut")


def read_photographs(side: int) -> Tensor:
    squares = [T.center_crop(T.to_tensor(getattr(skimage.data, name)()), 300) for name in PHOTOGRAPHS]
    return torch.stack([T.resize(square, [side, side], antialias=True) for square in squares])


def build_network() -> nn.Module:
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(convolutions, nn.Flatten(), nn.Linear(8, 10)).eval()


def measure(images: Tensor, build_logger: Callable[[Path], Any] | None) -> list[int]:
    """The size of all files in bytes after each of three snapshots."""
    torch.manual_seed(0)
    network, sizes = build_network(), []
    with TemporaryDirectory() as folder:
        loggers = [] if build_logger is None else [build_logger(Path(folder))]
        recorder = FullGradRecorder(
            Path(folder, "fullgrad"), (images, torch.arange(4)), task="classes", loggers=loggers, strict=True
        )
        for epoch in range(3):
            recorder.snapshot(network, step=epoch, epoch=epoch)
            sizes.append(sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()))
            with torch.no_grad():
                network[0][0].weight.mul_(1.1).add_(0.05)
    return sizes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1024)
    images = read_photographs(parser.parse_args().side)
    os.environ |= {"WANDB_SILENT": "true", "WANDB_MODE": "offline"}
    loggers: dict[str, Callable[[Path], Any] | None] = {
        "no logger": None,
        "TensorBoard": TensorBoardLogger,
        "W&B": lambda folder: WandbLogger(project="sizes", save_dir=folder, offline=True),
    }
    for name, build_logger in loggers.items():
        first, second, third = measure(images, build_logger)
        print(f"{name:12} first snapshot {first / 1e6:.1f} MB, each further one {(third - second) / 1e6:.1f} MB")
