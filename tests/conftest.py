"""Fixtures shared by all tests: no test talks to a server or writes outside its own folder."""

import os
from unittest.mock import patch

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores out among themselves
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(autouse=True)
def _settings():
    """Every test starts from the same seed and leaves the process as it was, whatever a Trainer(deterministic=True) sets."""
    torch.manual_seed(0)
    with patch.dict(os.environ):
        yield
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
