"""Everything that a person copies runs: examples and configurations."""

import runpy
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

from fg_lightning.callbacks import FullGradMonitor
from fg_lightning.demo import DigitClassifier, DigitsDataModule

ROOT = Path(__file__).parents[1]

pytestmark = [
    # Lightning's own use of torch, and its advice
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


MINUTES = {"study_perturbation": pytest.mark.slow}
EXAMPLES = [pytest.param(p, id=p.stem, marks=MINUTES.get(p.stem, ())) for p in sorted((ROOT / "examples").glob("*.py"))]


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_run(path, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("path", sorted((ROOT / "callbacks").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_run_and_spell_out_the_defaults(path, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py"])  # Lightning warns where there are pytest's arguments beside ours
    options = ["--trainer.logger=false", "--trainer.fast_dev_run=true", f"--trainer.default_root_dir={tmp_path}"]
    cli = LightningCLI(
        DigitClassifier,
        DigitsDataModule,
        args=["fit", f"--config={path}", *options],
        save_config_callback=None,
        seed_everything_default=False,
    )
    (monitor,) = (c for c in cli.trainer.callbacks if isinstance(c, FullGradMonitor))
    assert len(monitor.history.looks) == 2
    defaults = FullGradMonitor()
    for name in ("every_n_epochs", "num_samples", "psi", "strict"):
        assert getattr(monitor, name) == getattr(defaults, name)
