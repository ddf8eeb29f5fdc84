"""Every example that users copy runs."""

import runpy

import pytest

from tests import ROOT

MINUTES = {
    "judge_your_method",
    "measure_with_quantus",
    "smooth_by_captum",
    "study_perturbation",
    "watch_a_detector",
    "watch_a_segmentation",
    "watch_a_vision_transformer",
}
NEEDS = {"measure_with_quantus": "quantus", "watch_a_vision_transformer": "transformers"}

EXAMPLES = [
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in MINUTES else ())
    for path in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_run(path, monkeypatch, tmp_path):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    monkeypatch.setattr("sys.argv", [str(path)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
