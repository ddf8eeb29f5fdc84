"""fg-lightning demo as a user runs it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from fg_lightning.cli.demo import _is_logged_in
from fg_lightning.cli.demo import demo as run_demo
from fg_lightning.demo.digits import DigitsDataModule
from fg_lightning.errors import CannotRun
from tests.helpers.offline_wandb import history


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    command = [str(Path(sys.executable).with_name("fg-lightning")), "demo", "--max_epochs", "2", "--output", "out"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        "NETRC": str(folder / "none"),
        "COLUMNS": "100",
    }
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return folder, result.stdout, result.stderr


@pytest.mark.slow
def test_it_prints_what_came_out_and_where_it_lies(demo):
    _, printed, _ = demo
    lines = {line[:20].strip(): line[20:].strip() for line in printed.splitlines()}
    assert float(lines["test accuracy"].rstrip("%")) > 90  # two epochs; five reach more than 95
    assert float(lines["completeness error"]) < 1e-4  # float32
    assert imread(lines["film strip"]).shape[0] > 8 * 112
    assert Path(lines["W&B run"]).is_dir()
    assert "wandb sync" in printed
    assert "<title>" in Path(lines["report"]).read_text()


@pytest.mark.slow
def test_it_says_nothing_beside(demo):
    """No advice of Lightning's, no warning: what else is printed are progress bars."""
    assert not [word for word in ("Tip", "Warning", "deprecated", "GPU available", "ckpt_path") if word in demo[1] + demo[2]]


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotRun, match="file/out cannot be written to: Not a directory; take another folder with --output"):
        run_demo(output=tmp_path / "file" / "out")


@pytest.mark.slow
def test_the_wandb_run_holds_a_look_per_epoch(demo):
    looks = [row for row in history(demo[0] / "out") if "fullgrad/saliency" in row]
    assert [row["trainer/global_step"] for row in looks] == [0, 62, 125]


@pytest.mark.slow
def test_everything_lies_below_the_output_folder(demo):
    assert [path.name for path in demo[0].iterdir()] == ["out"]


def test_help_is_complete():
    command = [str(Path(sys.executable).with_name("fg-lightning")), "demo", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in ("--max_epochs", "--output", "--seed"):
        assert option in printed


@pytest.mark.parametrize("module", ["torch", "lightning"])
def test_its_options_are_known_without_anything_heavy(module):
    code = f"import sys, fg_lightning.cli.demo; print({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("given", [{"batch_size": 0}, {"batch_size": -3}, {"num_workers": -1}])
def test_numbers_out_of_range_are_refused(given):
    with pytest.raises(CannotRun, match="must be at least"):
        DigitsDataModule(**given)


def test_the_split_is_fixed_and_disjoint():
    first, second = DigitsDataModule(), DigitsDataModule()
    first.setup("fit")
    second.setup("fit")
    parts = [set(part.indices) for part in (first.train, first.val, first.test)]
    assert [len(part) for part in parts] == [4000, 500, 500]
    assert len(set.union(*parts)) == 5000
    assert first.test.indices == second.test.indices


def test_a_person_counts_as_logged_in_with_a_key_in_the_environment_or_netrc(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not _is_logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert _is_logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not _is_logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert _is_logged_in()
