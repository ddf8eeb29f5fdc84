"""fg-lightning demo as a user runs it, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from fg_lightning.cli.demo import _is_logged_in
from fg_lightning.cli.demo import demo as run_demo
from fg_lightning.demo.digits import DigitsDataModule
from fg_lightning.errors import CannotRun
from fg_lightning.history import read_run
from tests.helpers.offline_wandb import history


def run_in(folder, *options):
    """The folder, and what the command prints on both streams."""
    command = [str(Path(sys.executable).with_name("fg-lightning")), "demo", *options, "--output", "out"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        "NETRC": str(folder / "none"),
        "COLUMNS": "100",
    }
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return folder, result.stdout, result.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("demo"), "--max_epochs", "2")


@pytest.fixture(scope="module")
def shortcut(tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("shortcut"), "--shortcut", "--max_epochs", "3")


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
    noise = ("Tip", "Warning", "WARNING", "wandb:", "anonymous", "deprecated", "GPU available", "ckpt_path")
    assert not [word for word in noise if word in demo[1] + demo[2]]


@pytest.mark.slow
def test_the_plain_demo_has_no_finding(demo):
    assert [line.split() for line in demo[1].splitlines() if line.startswith("finding")] == [["finding", "none"]]


@pytest.mark.slow
def test_the_shortcut_shows_in_the_accuracy_the_maps_and_a_finding(shortcut):
    folder, printed, _ = shortcut
    shares = dict(re.findall(r"^  (\w.*?) {2,}([\d.]+)%", printed, re.MULTILINE))
    assert float(shares["the mark shows the class"]) > 96
    assert float(shares["the mark shows another class"]) < 75
    assert float(shares["there is no mark"]) < 80
    assert float(shares["of 200 test digits"]) > 30  # by chance 8
    (finding,) = [line for line in printed.splitlines() if line.startswith("finding")]
    assert "top left corner" in finding
    (path,) = folder.glob("out/fg-lightning-demo/*/fullgrad")
    run = read_run(path)
    numbers = [snapshot.numbers for snapshot in run.snapshots.values()]
    assert numbers[-1]["fullgrad/relevance_mass"] > numbers[0]["fullgrad/relevance_mass"]
    assert not [word for word in ("Tip", "Warning", "WARNING", "wandb:") if word in "".join(shortcut[1:])]


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotRun, match="file/out cannot be written to: Not a directory; use another folder with --output"):
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
    for option in ("--max_epochs", "--output", "--seed", "--shortcut"):
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
