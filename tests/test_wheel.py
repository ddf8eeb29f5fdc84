"""The wheel holds all that the package needs, and works outside the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import ROOT

SCRIPT = """
import torch
import fg_lightning
from fg_lightning.report import write_report

assert fg_lightning.__file__.startswith({folder!r}), fg_lightning.__file__
model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 3)).double()
terms = fg_lightning.full_gradients(model, torch.rand(2, 1, 8, 8).double())
assert terms.completeness_error.max() < 1e-12  # float64

from fg_lightning.cli.fit_options import preset_path

found = preset_path("callbacks/fullgrad_monitor.yaml")
assert found == {folder!r} + "/fg_lightning/presets/fullgrad_monitor.yaml", found
"""


@pytest.mark.slow
def test_the_wheel_has_everything_in_it_and_runs_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr + built.stdout[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, (tmp_path / "dist").iterdir())]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    (metadata,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA")]
    description = zipfile.ZipFile(wheel).read(metadata).decode().split("\n\n", 1)[1]
    assert re.findall(r"\]\((?!https?://|#)[^)]*\)", description) == []  # relative links lead nowhere on a package index
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    in_the_repository = {str(p.relative_to(ROOT)) for p in (ROOT / "fg_lightning").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    presets = {f"fg_lightning/presets/{path.name}" for path in (ROOT / "callbacks").glob("*.yaml")}
    assert inside == in_the_repository | presets

    folder = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(install, check=True)
    command = [sys.executable, "-c", SCRIPT.format(folder=str(folder))]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
