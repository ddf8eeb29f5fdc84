"""What is wrong with data is said before anything is trained on them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import random_split
from torchvision.transforms import v2

from fg_lightning.roar import CannotRun, RandomImages, ROARExperiment
from tests.helpers.tiny_squares import TENSOR, Data, Net, Squares


class NoTest(Data):
    test_dataloader = None


class NoTraining(Data):
    train_dataloader = None


class Mixed(Data):
    """Every third training image is grey, the others are coloured."""

    def setup(self, stage):
        super().setup(stage)
        colours = Squares(40, channels=3, transform=v2.Compose([v2.Grayscale(), TENSOR]))
        self.train = Some(colours)


class Some(torch.utils.data.Dataset):
    def __init__(self, squares):
        self.squares, self.transform = squares, squares.transform

    def __len__(self):
        return len(self.squares)

    def __getitem__(self, index):
        image = Image.fromarray(self.squares.pixels[index])
        return self.transform(image.convert("L") if index % 3 == 0 else image), self.squares.labels[index]


class Noisy(Data):
    def setup(self, stage):
        super().setup(stage)
        self.train = [(torch.rand(1, 8, 8), 0)] * 8
        self.test = RandomNoise(8)


class RandomNoise(torch.utils.data.Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.rand(1, 8, 8), 0


class Split(Data):
    def setup(self, stage):
        super().setup(stage)
        self.train, self.val = random_split(Squares(50, transform=TENSOR), [40, 10])


@pytest.mark.parametrize(
    ("data", "error", "why"),
    [
        (NoTest, CannotRun, "has no test data"),
        (NoTraining, CannotRun, "has no data to train on: give it a train_dataloader"),
        (Mixed, CannotRun, r"of one size and one number of channels .* 8 x 8 with 1 channel; .* with 3 channels\. .*prepare="),
        (Noisy, RandomImages, "gives a different image each time"),
        (Split, CannotRun, r"different train images each time it is set up.*give it a seed: random_split"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, data, error, why):
    with pytest.raises(error, match=why):
        ROARExperiment(tmp_path, data, Net, console=Console(quiet=True)).run()
    assert not (tmp_path / "networks").exists()


def test_a_network_that_is_only_tested_needs_no_data_to_train_on(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "net.ckpt")
    settings = {"mode": "road", "checkpoint": tmp_path / "net.ckpt", "methods": ["random"], "fractions": [0.5]}
    assert not ROARExperiment(tmp_path / "out", NoTraining, Net, console=Console(quiet=True), **settings).run().failures
