"""How a classifier's weights are trained: AdamW or SGD, warmed up and annealed along a cosine."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

Optimizer = Literal["adamw", "sgd"]


def optimizer_for(network: nn.Module, name: Optimizer, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, or SGD with a Nesterov momentum of 0.9.

    Weight decay is for what multiplies: kernels and matrices, not biases and scales, whose tensors have one dimension.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr)


def share_of_lr(step: int, steps: float, warmup: float) -> float:
    """What the learning rate is multiplied by: a line up from 0 over the first steps, then half a cosine down to 0.

    Args:
        step: from 0.
        steps: of the whole training; infinite for one without an end, whose learning rate stays after 100 steps of warm-up.
        warmup: the share of steps on the line, 0 to 1.
    """
    rising = 100.0 if math.isinf(steps) else max(warmup * steps, 1.0)
    if step + 1 < rising:
        return (step + 1) / rising
    if math.isinf(steps):
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step + 1 - rising) / max(steps - rising, 1.0), 1.0)))
