"""fg-lightning roar: what a person has to change is a sentence, what is wrong with their own code has its place."""

from __future__ import annotations

import signal
import sys

import pytest
from tiny import Data
from torch.utils.data import DataLoader, IterableDataset

from fg_lightning.cli import main


class Broken(Data):
    def setup(self, stage):
        float("abc")


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


class Streams(Data):
    def train_dataloader(self):
        return DataLoader(Stream())


def roar(output, *more, data="tiny.Data", model="tiny.Net"):
    given = ["--data", data, "--model", model, "--methods", "random", "--fractions", "[0.5]", "--seeds", "1", "--max_epochs", "1"]
    main(["roar", "--output", str(output), *given, *more])


def test_a_mistake_of_the_users_own_keeps_its_traceback(tmp_path):
    with pytest.raises(ValueError, match="could not convert string to float: 'abc'") as caught:
        roar(tmp_path, data="test_roar_command.Broken")
    assert caught.traceback[-1].name == "setup"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--trainer", '{"devices": 2}'], "takes one device"),
        (["--methods", "random,none_such"], "method must be one of"),
        (["--data", "test_roar_command.Streams"], "Stream has no index"),
    ],
)
def test_what_has_to_be_changed_is_a_sentence(tmp_path, more, why):
    with pytest.raises(SystemExit, match=f"fg-lightning: .*{why}"):
        roar(tmp_path, *more)


def test_classes_are_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "lying_here.py").write_text("from tiny import Net as Mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with pytest.raises(SystemExit, match="takes one device"):  # after the classes were found
        roar(tmp_path / "out", "--trainer", '{"devices": 2}', model="lying_here.Mine")
    assert sys.path.count(str(tmp_path)) == 1


def test_ctrl_c_is_said_to_be_no_loss(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)  # Lightning ignores what follows
    try:
        with pytest.raises(SystemExit) as stopped:
            roar(tmp_path, model="test_single_training.Interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert "stopped; the same command goes on where it was" in capsys.readouterr().err
