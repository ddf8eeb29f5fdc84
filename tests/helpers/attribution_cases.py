"""Networks over signals, images and volumes, and the maps of a method on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fg_lightning.attribution import METHODS

FAST: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"num_steps": 5},
    **{name: {"num_samples": 5} for name in ("smoothgrad", "smoothgrad_squared", "vargrad", "smooth_fullgrad")},
}
"""Settings under which a method is quick."""

TARGETS = [0, 3, 1]


class Residual(nn.Module):
    """A ReLU module that works in place and is used twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.conv(self.relu(self.norm(x))))


def planar() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Residual(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


def signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 5)
    )


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(3, 3, 2), nn.Flatten(), nn.Linear(3, 5))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "planar": (planar, (2, 10, 8)),
    "signal": (signal, (2, 12)),
    "volume": (volume, (1, 6, 5, 5)),
}


def net(name: str = "planar") -> tuple[nn.Module, Tensor]:
    build, shape = NETS[name]
    torch.manual_seed(0)
    return build().eval(), torch.randn(3, *shape)


def maps_of(name: str, model: nn.Module, images: Tensor, target: Any = None, **settings: Any) -> Tensor:
    return METHODS[name](model, **FAST.get(name, {}) | settings).attribute(images, target=target)


def assert_close(drawn: Tensor, expected: Tensor) -> None:
    # float32: the same sums in batches of another size
    assert drawn.shape == expected.shape
    assert (drawn - expected).abs().max() <= 1e-5 * expected.abs().max()
