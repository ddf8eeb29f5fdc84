"""Nothing piles up: the resident memory of a process that makes maps for a long time."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch
from torch import nn

from fg_lightning import FullGrad

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning and torch warn of their own

NOISE = 8 << 20
"""Bytes that an allocator may keep or give back between two readings; the maps of one call take 0.3 MiB."""


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
