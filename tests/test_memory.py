"""Nothing piles up: the resident memory of a process that makes maps, or trains under the monitor, for a long time."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fg_lightning import FullGrad, FullGradMonitor

NOISE = 8 << 20
"""Bytes that an allocator may keep or give back between two readings; the maps of one call take 0.3 MiB, of one look 0.01 MiB."""


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def network(channels: int = 3) -> nn.Sequential:
    layers = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.SiLU(inplace=True), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(128, 10))


@pytest.mark.slow
def test_a_thousand_maps_leave_nothing_behind() -> None:
    method, images = FullGrad(network()), torch.randn(8, 3, 96, 96)
    for _ in range(200):
        method.attribute_with_terms(images)
    before = resident()
    for _ in range(1000):
        method.attribute_with_terms(images)
    assert resident() - before < NOISE


class Classifier(LightningModule):
    def __init__(self, readings: dict[int, int]) -> None:
        super().__init__()
        self.network, self.readings = network(), readings

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> None:
        self(batch[0])

    def on_train_epoch_end(self) -> None:
        self.readings[self.current_epoch] = resident()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.slow
def test_two_hundred_monitored_epochs_leave_nothing_behind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))
    loader, readings = DataLoader(data, 8), dict[int, int]()
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    monitor = FullGradMonitor()
    Trainer(max_epochs=241, accelerator="cpu", default_root_dir=tmp_path, callbacks=[monitor], **settings).fit(
        Classifier(readings), loader, loader
    )
    (history,) = tmp_path.rglob("history.csv")
    assert len(history.read_text().splitlines()) > 240  # it did look every time
    # The last look is not read off: it draws the strip.
    assert readings[239] - readings[39] < NOISE
