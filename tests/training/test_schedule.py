"""Optimizer and learning rate."""

import math

import pytest
import torch
from torch import nn

from fg_lightning.training.classifier import build_optimizer, lr_factor


def test_the_learning_rate_rises_to_its_highest_and_falls_to_nothing():
    shares = [lr_factor(step, steps=100, warmup=0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(shares) == shares[9] == 1
    assert shares[54] == pytest.approx(0.5)  # halfway through the 90 steps of the cosine
    assert shares[99] == pytest.approx(0)


def test_a_training_without_an_end_keeps_its_learning_rate():
    assert lr_factor(10_000, math.inf, 0.05) == 1
    assert lr_factor(0, math.inf, 0.05) == 0.01


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_trainings_have_one(steps):
    assert all(0 <= lr_factor(step, steps, 0.05) <= 1 for step in range(steps + 1))
    assert lr_factor(0, steps, 0.05) > 0


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_biases_and_scales_do_not_decay(name, kind):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimizer = build_optimizer(network, name, 0.1, 0.3)
    assert type(optimizer) is kind
    decaying, others = optimizer.param_groups
    assert [p is network[0].weight for p in decaying["params"]] == [True]
    assert (decaying["weight_decay"], others["weight_decay"], len(others["params"])) == (0.3, 0, 3)
