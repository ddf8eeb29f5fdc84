"""A store of the tiny data, made once."""

import pytest
import torch

from fg_lightning.roar import SaliencyStore
from tests.helpers.tiny_squares import Data, Net


@pytest.fixture(scope="session")
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="session")
def store(net, tmp_path_factory):
    return SaliencyStore.make(tmp_path_factory.mktemp("store") / "gradient", net, Data(), "gradient", batch_size=7)
