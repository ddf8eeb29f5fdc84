"""Every example that users copy runs."""

import runpy
import subprocess
import sys

import pytest

from fg_lightning.history import History
from fg_lightning.report import write_report
from tests import ROOT

MINUTES = {
    "judge_your_method",
    "measure_with_quantus",
    "record_with_transformers",
    "smooth_by_captum",
    "study_perturbation",
    "watch_a_detector",
    "watch_a_segmentation",
    "watch_a_vision_transformer",
}
NEEDS = {
    "measure_with_quantus": "quantus",
    "record_with_transformers": "accelerate",
    "watch_a_vision_transformer": "transformers",
}

EXAMPLES = [
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in MINUTES else ())
    for path in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # transformers' own, without a GPU
@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_run(path, monkeypatch, tmp_path):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    monkeypatch.setattr("sys.argv", [str(path)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    if path.stem.startswith("record_"):
        history = History.read(tmp_path / "fullgrad")
        assert [snapshot.epoch for snapshot in history.snapshots] == [0, 1, 2]
        assert history.snapshots[-1].numbers["fullgrad/completeness_error_max"] < 1e-3  # float32
        assert history.strip_path.is_file()
        assert write_report(tmp_path / "fullgrad").is_file()


@pytest.mark.slow
def test_of_two_processes_the_first_records(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "record_with_fabric.py"), "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warning: FullGradRecorder" not in done.stderr
    assert done.stderr.count("FullGradRecorder: 3 snapshots") == 1  # from the first process alone
    assert [snapshot.epoch for snapshot in History.read(tmp_path / "fullgrad").snapshots] == [0, 1, 2]
    assert not (tmp_path / "fullgrad_1").exists()
    assert len(list((tmp_path / "logs").rglob("metrics.csv"))) == 1
