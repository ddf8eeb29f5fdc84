"""Networks drawn at random from blocks of every kind, in float64."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


def randomised(model: nn.Module, seed: int = 1) -> nn.Module:
    """Biases and statistics as a trained net has them, and not at their zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        if isinstance(getattr(module, "bias", None), Tensor):
            nn.init.normal_(module.bias, std=0.3, generator=generator)
    return model


class Block(nn.Module):
    """[N, C, H, W] -> [N, C, H, W]"""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=draw.random() < 0.5)
        self.linear = nn.Linear(channels, channels)
        self.norm = draw.choice(
            [nn.BatchNorm2d(channels), nn.GroupNorm(2, channels), nn.InstanceNorm2d(channels, affine=True), nn.Identity()]
        )
        self.act = draw.choice(
            [nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.GELU(), nn.ELU(), nn.Hardswish(), nn.LeakyReLU(0.1), nn.PReLU()]
        )
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("constant", torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Residual(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        return self.act(y)


class Concatenated(Block):
    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return torch.cat([self.act(self.conv(x))[:, :half], x[:, half:]], dim=1)


class SqueezeAndExcitation(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.linear(self.act(x.clone()).mean((2, 3))))[:, :, None, None]


class Shared(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.conv(x))) / 2


class Dropped(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(F.dropout(self.conv(x), 0.2, training=self.training))


class Functional(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(F.conv2d(x, self.conv.weight, self.constant.flatten(), padding=1)) - 0.7


class Constants(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = 1 - x * self.constant
        y[:, 0] = 0.5
        return y.masked_fill(self.constant > 1, 0.3) + 0.1


class Attentive(Block):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        scores = tokens @ self.linear(tokens).transpose(1, 2) / 4
        return (scores.softmax(-1) @ tokens).transpose(1, 2).reshape(x.shape)


class ChannelsLast(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]))
        return x + F.gelu(y).permute(0, 3, 1, 2)


class Pooled(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.max_pool2d(x, 2) + F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")


BLOCKS = [
    Block,
    Residual,
    Concatenated,
    SqueezeAndExcitation,
    Shared,
    Dropped,
    Functional,
    Constants,
    Attentive,
    ChannelsLast,
    Pooled,
]


class RandomNetwork(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        draw = random.Random(seed)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(draw.choice(BLOCKS)(4, draw) for _ in range(draw.randint(2, 6))))
        self.head = nn.Linear(4 * (1 if (pooled := draw.random() < 0.5) else 36), CLASSES)
        self.pooled = pooled
        randomised(self, seed).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.stem(x))
        return self.head((F.adaptive_avg_pool2d(y, 1) if self.pooled else y).flatten(1))


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
