"""A store of the tiny data, made once."""

import pytest
import torch
from tiny import Data, Net

from fg_lightning.roar import SaliencyStore


@pytest.fixture(scope="session")
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="session")
def store(net, tmp_path_factory):
    return SaliencyStore.make(tmp_path_factory.mktemp("store") / "gradient", net, Data(), "gradient", chunk=7)
