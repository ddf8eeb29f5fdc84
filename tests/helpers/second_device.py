"""A device beside the CPU, for the tests of a GPU where there is none: a plugin of pytest, used by tests/test_second_device.py.

It is built from second_device.cpp by a C++ compiler, in about half a minute, and has the name "second".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.cpp_extension import load

NAME = "second"
FOLDER = "FG_SECOND_DEVICE"
"""The environment variable with the folder in which the device is built."""


def pytest_configure() -> None:
    """Builds and registers the device, and lets the tests use it."""
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, Backend(NAME))  # type: ignore[arg-type]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where ninja is
    source = Path(__file__).with_suffix(".cpp")
    Backend.extension = load("second_device", str(source), extra_cflags=["-O0"], build_directory=os.environ[FOLDER])
    os.environ["FG_TEST_DEVICE"] = NAME


@pytest.fixture(autouse=True)
def refuse_mixed_operands() -> Iterator[None]:
    """Fails a test in which an operation got tensors of both devices, as a GPU would."""
    Backend.extension.take_mixed()
    yield
    assert Backend.extension.take_mixed() == []


class Backend(ModuleType):
    """What torch asks of a device in Python."""

    extension: Any

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Does nothing: it draws with the CPU's generator."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


class SecondAccelerator(Accelerator):
    """Lets Lightning train on the device."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def trainer_options() -> dict[str, Any]:
    """Options of a Trainer. It writes no checkpoints, because torch cannot pickle tensors of this device."""
    strategy = SingleDeviceStrategy(device=torch.device(NAME, 0), accelerator=SecondAccelerator())
    return {"strategy": strategy, "enable_checkpointing": False}
