"""The tests of a GPU on a second device made of the CPU, where code fails that mixes devices or makes arrays of a GPU's tensors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_second_device_is_treated_as_the_cpu(tmp_path: Path) -> None:
    options = ["-q", "-n", "0", "-p", "tests.helpers.second_device", "-m", "cuda", "tests/test_gpu.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=ROOT, env=os.environ | {"FG_SECOND_DEVICE": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
