"""Networks over signals, images and volumes whose maps are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


def randomised(model: nn.Module) -> nn.Module:
    """Biases and statistics as a trained net has them, and not at their zeros and ones."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, generator=generator)
    return model.eval()


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)),
        (2, 8, 8),
    ),
    "batch norm and pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 2),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        ),
        (2, 10, 8),
    ),
    "residual": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2), Residual(4), nn.AvgPool2d(2), Residual(4), nn.Flatten(), nn.Linear(16, 5)
        ),
        (2, 9, 9),
    ),
    "a signal": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 5)),
        (2, 8),
    ),
    "a volume": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 3, 2), nn.BatchNorm3d(3), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(3 * 2 * 2 * 1, 5)
        ),
        (1, 5, 5, 4),
    ),
}


def net(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = NETS[name]
    torch.manual_seed(0)
    return randomised(build()), torch.randn(3, *shape)


class LessTheMean(nn.Module):
    """Mixes the samples of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - x.flatten(1).mean(0)


def residual_net() -> nn.Module:
    torch.manual_seed(0)
    return randomised(
        nn.Sequential(nn.Conv2d(2, 3, 3), Residual(3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    ).double()
