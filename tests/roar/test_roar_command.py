"""fg-lightning roar: what the user has to change is a sentence, what is wrong with their own code has its place."""

from __future__ import annotations

import shlex
import signal
import sys

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fg_lightning.cli.main import main
from fg_lightning.roar.config import name_fills
from tests.helpers import tiny_squares
from tests.helpers.tiny_squares import Data, Net


class Broken(Data):
    def setup(self, stage):
        float("abc")


class NoLabels(Data):
    def setup(self, stage):
        super().setup(stage)
        for part in (self.train.dataset, self.val.dataset, self.test):
            part.labels = [float(label) for label in part.labels]


class NotFinite(Data):
    def setup(self, stage):
        images, labels = torch.full((10, 1, 8, 8), torch.nan), torch.arange(10) % 2
        self.train = self.val = self.test = TensorDataset(images, labels)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


class Streams(Data):
    def train_dataloader(self):
        return DataLoader(Stream())


def roar(output, *more, data=f"{tiny_squares.__name__}.Data", model=f"{tiny_squares.__name__}.Net"):
    own = ["--output", str(output), "--data", data, "--model", model]
    main(["roar", *own, "--methods", "random", "--fractions", "[0.5]", "--num_seeds", "1", "--max_epochs", "1", *more])


def test_a_mistake_of_the_users_own_keeps_its_traceback(tmp_path):
    with pytest.raises(ValueError, match="could not convert string to float: 'abc'") as caught:
        roar(tmp_path, data="tests.roar.test_roar_command.Broken")
    assert caught.traceback[-1].name == "setup"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--trainer", '{"devices": 2}'], "uses one device"),
        (["--methods", "random,none_such"], "method must be one of"),
        (["--data", "tests.roar.test_roar_command.Streams"], "Stream has no index"),
    ],
)
def test_what_has_to_be_changed_is_a_sentence(tmp_path, more, why):
    with pytest.raises(SystemExit, match=f"fg-lightning: .*{why}"):
        roar(tmp_path, *more)


class Faulty(Net):
    """Can be tested, and trained once: the network that is explained."""

    trained = 0

    def on_train_start(self):
        Faulty.trained += 1
        if Faulty.trained > 1:
            raise RuntimeError("a fault of the user's [/x]")


def test_trainings_that_failed_end_with_status_1(tmp_path, capsys):
    with pytest.raises(
        SystemExit, match=r"3 of 3 trainings failed, see .*results\.csv.*--retry_failed.*a fault of the user's \[/x\]"
    ):
        roar(tmp_path, model="tests.roar.test_roar_command.Faulty")
    assert f"results.csv  {tmp_path}/results.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--fractions", "[0.001]"], "rounds to no pixels"),
        (["--fractions", "[0.999]"], "rounds to 64 pixels"),
        (["--fills", "[[1,2]]"], "the fill has 2 numbers, but the images have 1 channels"),
        (["--data", "tests.roar.test_roar_command.NoLabels", "--target", "label"], "target label needs labels"),
        (["--data", "tests.roar.test_roar_command.NotFinite"], "image 0 of the test data set has pixels that are not finite"),
    ],
)
def test_a_corrected_command_goes_on_in_the_same_folder(tmp_path, more, why):
    with pytest.raises(SystemExit, match=why):
        roar(tmp_path, *more)
    assert not (tmp_path / "networks").exists()
    roar(tmp_path, "--max_epochs", "2")
    assert (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("name", ["runs [/x] it's [lr=0.1]", ":smile: [red]b[/]", "{a: b} #c", "проба 試験", "two\nlines"])
def test_a_path_is_printed_as_it_is(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "20")
    roar(tmp_path / name)
    printed = capsys.readouterr().out
    assert f"results.csv  {tmp_path / name}/results.csv\n" in printed
    assert f"fg-lightning report {shlex.quote(str(tmp_path / name))}\n" in printed
    main(["report", str(tmp_path / name)])
    assert f"report  {tmp_path / name}/report.html (" in capsys.readouterr().out


def test_classes_are_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "lying_here.py").write_text("from tests.helpers.tiny_squares import Net as Mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with pytest.raises(SystemExit, match="uses one device"):  # after the classes were found
        roar(tmp_path / "out", "--trainer", '{"devices": 2}', model="lying_here.Mine")
    assert sys.path.count(str(tmp_path)) == 1


def test_ctrl_c_is_said_to_be_no_loss(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)  # Lightning ignores what follows
    try:
        with pytest.raises(SystemExit) as stopped:
            roar(tmp_path, model="tests.roar.test_single_training.Interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert "stopped; run the same command again to continue" in capsys.readouterr().err


def brighter(images, mask):
    return torch.where(mask, images + 0.5, images)


@pytest.mark.parametrize("given", [f"{__name__}.brighter,black,-1", f"[{__name__}:brighter,black,-1]"])
def test_fills_may_be_import_paths(given, monkeypatch, tmp_path):
    made = []

    class Stopped:
        def __init__(self, output, data, model, *, fills, **options):
            made.append(name_fills(fills))
            raise ValueError("enough")

    monkeypatch.setattr("fg_lightning.cli.roar.ROARExperiment", Stopped)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[brighter.__module__])
    with pytest.raises(SystemExit, match="enough"):
        main(["roar", "--output", str(tmp_path), "--fills", given])
    assert list(made[0]) == ["brighter", "black", "-1"]
    assert made[0]["brighter"] is brighter
