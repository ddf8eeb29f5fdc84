"""ROAR as a whole on tiny data: what is run, what is kept, and what is said when it cannot."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from rich.console import Console

from fg_lightning.atomic_files import PREFIX
from fg_lightning.attribution import METHODS, method_from
from fg_lightning.roar import CannotRun, ROARExperiment, SaliencyStore
from fg_lightning.roar import experiment as experiment_module
from fg_lightning.roar import experiment_folder as folder_module
from fg_lightning.roar.experiment_folder import check_identity
from tests import ROOT
from tests.helpers import tiny_squares
from tests.helpers.tiny_squares import Data, Diverging, Net

pytestmark = pytest.mark.filterwarnings("error")  # the package silences Lightning's advice itself

COMMAND = str(Path(sys.executable).with_name("fg-lightning"))


def experiment(output, model=Net, **settings):
    given = {"methods": ["random", "gradient"], "fractions": [0.5], "num_seeds": 2, "max_epochs": 1} | settings
    return ROARExperiment(output, Data, model, console=Console(quiet=True), **given)


def rows(folder):
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roar")
    return folder, experiment(folder).run()


def test_every_cell_is_a_row_and_everything_is_there(done):
    folder, results = done
    found = [tuple(row[name] for name in ("method", "control", "fill", "fraction", "network", "seed")) for row in rows(folder)]
    expected = [("all", "", "", "0.0", "0", "0"), ("all", "", "", "0.0", "0", "1")]
    for method in ("random", "gradient"):
        expected += [(method, "", "dataset_mean", "0.5", "0", seed) for seed in "01"] + [(method, "masks", "", "0.5", "0", "0")]
    assert found == expected
    assert all(0 <= float(row["accuracy"]) <= 1 and not row["reason"] for row in rows(folder))
    names = {"cells", "examples", "experiment.json", "networks", "results.csv", "stores", "summary.csv", "summary.tex"}
    names |= {f"curves.{ending}" for ending in ("png", "pdf", "svg")}
    assert {path.name for path in folder.iterdir()} - {".lock"} == names
    assert [score.method for score in results.scores()] == ["gradient"]


def test_run_again_nothing_is_trained_and_more_seeds_add_to_it(done, tmp_path, monkeypatch):
    folder, _ = done
    first = (folder / "results.csv").read_text()
    trained = []
    real = experiment_module.fit
    monkeypatch.setattr(experiment_module, "fit", lambda *given: (trained.append(1), real(*given)))
    experiment(folder).run()
    assert not trained
    assert (folder / "results.csv").read_text() == first
    experiment(folder, num_seeds=3).run()
    assert len(trained) == 3  # the masks alone are not seen again
    assert len(rows(folder)) == 2 + 9
    trained.clear()
    experiment(folder, fills="dataset_mean,black").run()
    assert len(trained) == 4  # nor for another fill
    experiment(folder).run()  # fewer are asked for again: the table is of those
    assert (folder / "results.csv").read_text() == first


def test_it_leaves_random_state_and_settings(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), dict(os.environ)
    experiment(tmp_path, methods=["random"], num_seeds=1).run()
    after = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), dict(os.environ)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("mode", ["kar", "road"])
def test_the_other_modes(tmp_path, mode):
    results = experiment(tmp_path, mode=mode, num_seeds=1).run()
    found = {(r.cell.method, r.cell.fraction): r.accuracy for r in results.results}
    shared = {("all", 0.0), ("all", 1.0)} if mode == "kar" else {("all", 0.0)}
    assert set(found) == shared | {("random", 0.5), ("gradient", 0.5)}
    if mode == "road":  # nothing is trained but the base network
        model = Net()
        model.load_state_dict(torch.load(tmp_path / "networks" / "0.pt", weights_only=True))
        data = Data()
        data.setup("test")
        images, labels = zip(*data.test, strict=True)
        accuracy = (model.eval()(torch.stack(images)).argmax(1) == torch.tensor(labels)).float().mean()
        assert found["all", 0.0] == pytest.approx(float(accuracy), abs=1e-6)


def test_a_training_that_diverges_is_recorded_and_tried_again_on_request(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "net.ckpt")
    settings = {"model": Diverging, "checkpoint": tmp_path / "net.ckpt", "methods": ["random"]}
    folder = tmp_path / "out"
    results = experiment(folder, **settings).run()
    assert [r.cell.seed for r in results.failures] == [1, 1]  # of intact images and of random
    assert all("no longer finite after epoch 1" in r.reason for r in results.failures)
    assert [bool(row["accuracy"]) for row in rows(folder)] == [True, False, True, False, True]
    path = folder / "cells" / "all-0-intact-0-1.json"
    stamp = path.stat().st_mtime_ns
    experiment(folder, **settings).run()
    assert path.stat().st_mtime_ns == stamp
    experiment(folder, **settings).run(retry_failed=True)
    assert path.stat().st_mtime_ns > stamp


def test_a_method_without_maps_fails_alone(tmp_path):
    def broken(model):
        if (tmp_path / "networks").exists():  # not yet when it is tried
            raise RuntimeError("no convolution in it")
        return METHODS["edges"](model)

    results = experiment(tmp_path, methods={"gradient": METHODS["gradient"], "broken": broken}, num_seeds=1).run()
    assert {r.cell.method: r.reason.split(" (")[0] for r in results.results if r.reason} == {
        "broken": "no maps: RuntimeError: no convolution in it"
    }
    assert [score.method for score in results.scores()] == ["gradient", "broken"]


def test_a_method_that_cannot_explain_the_network_is_refused_before_anything_is_trained_and_may_be_corrected(tmp_path):
    def with_factory(name, factory):
        return experiment(tmp_path, methods={"gradient": METHODS["gradient"], name: factory}, num_seeds=1).run()

    with pytest.raises(CannotRun, match=r"method mine failed on 2 images, .*: TypeError: .* no setting sigma"):
        with_factory("mine", partial(METHODS["smoothgrad"], sigma=3))
    with pytest.raises(CannotRun, match=r"method mine failed .*: ValueError: maps of shape .* do not fit images"):
        with_factory("mine", method_from(lambda scores, images: images[:, :, 1:]))
    with pytest.raises(CannotRun, match=r"method cam failed .*no layer 'head'.*Correct it, or leave it out of methods"):
        with_factory("cam", partial(METHODS["gradcam"], layer="head"))
    assert not (tmp_path / "networks").exists()
    assert not with_factory("mine", METHODS["edges"]).failures
    with pytest.raises(CannotRun, match="method cam failed on 2 images"):  # one that is added later, too
        with_factory("cam", partial(METHODS["gradcam"], layer="head"))
    assert not with_factory("cam", METHODS["edges"]).failures


def test_what_cannot_run_is_said(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="model must be a function that makes a new LightningModule"):
        ROARExperiment(tmp_path, Data, Net())
    with pytest.raises(ValueError, match="num_seeds must be at least 1, not 0"):
        experiment(tmp_path, num_seeds=0)
    with pytest.raises(ValueError, match="mode must be one of roar, kar, road"):
        experiment(tmp_path, mode="both")
    with pytest.raises(ValueError, match="method must be one of"):
        experiment(tmp_path, methods=["none_such"])
    with pytest.raises(CannotRun, match=r"nowhere.ckpt cannot be read"):
        experiment(tmp_path / "a", checkpoint=tmp_path / "nowhere.ckpt").run()
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(CannotRun, match="does not fit this model"):
        experiment(tmp_path / "b", checkpoint=tmp_path / "other.ckpt").run()
    with pytest.raises(CannotRun, match=r"logged test/accuracy|no metric 'f1'; it logged test/accuracy"):
        experiment(tmp_path / "c", metric="f1", num_seeds=1).run()
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(CannotRun, match=r"the ranks of all methods need 0.00 GB .* but its disk has 0.00 GB free"):
        experiment(tmp_path / "d").run()


def test_another_experiment_in_the_folder_is_refused(done):
    with pytest.raises(CannotRun, match=r"holds another experiment: max_epochs 1 there, 2 here"):
        experiment(done[0], max_epochs=2).run()
    with pytest.raises(CannotRun, match=r"model 'tests.helpers.tiny_squares.Net' there"):
        experiment(done[0], model=partial(Net, width=8)).run()


def test_a_factory_of_ones_own_is_used_under_a_known_name_and_told_from_another(tmp_path):
    called = []

    def mine(model):
        called.append(model)
        return METHODS["edges"](model)

    before = dict(METHODS)
    experiment(tmp_path, methods={"gradient": mine}, num_seeds=1).run()
    assert len(called) == 2  # tried, and used for the maps
    assert before == METHODS
    with pytest.raises(CannotRun, match=r"method gradient '.*<locals>.mine \w+' there, '.*controls.edges' here"):
        experiment(tmp_path, methods={"gradient": METHODS["edges"]}, num_seeds=1).run()
    experiment(
        tmp_path, methods={"same": METHODS["edges"], "other": METHODS["gradient"]}, num_seeds=1
    ).run()  # adds to what is there
    own, same, other = (SaliencyStore(tmp_path / "stores" / name).ranks("test") for name in ("gradient", "same", "other"))
    assert np.array_equal(own, same)
    assert not np.array_equal(own, other)
    assert set(json.loads((tmp_path / "experiment.json").read_text())["methods"]) == {"random", "gradient", "same", "other"}


def test_lambdas_that_make_other_networks_are_other_experiments(tmp_path):
    lr = 0.05
    experiment(tmp_path, model=lambda: Net(lr=lr), methods=["random"], num_seeds=1).run()
    lr = 0.0
    with pytest.raises(CannotRun, match="holds another experiment: model"):
        experiment(tmp_path, model=lambda: Net(lr=lr), methods=["random"]).run()


def test_a_network_is_tested_before_one_is_trained(tmp_path):
    with pytest.raises(CannotRun, match=r"no metric 'f1'; it logged test/accuracy"):
        experiment(tmp_path, metric="f1").run()
    with pytest.raises(CannotRun, match=r"a network cannot be tested on the data: TypeError: no such class \(test_experiment.py"):
        experiment(tmp_path, model=untestable).run()
    assert not (tmp_path / "networks").exists()


def untestable():
    raise TypeError("no such class")


def test_one_network_is_tested_once(tmp_path):
    results = experiment(tmp_path, mode="road", fills=0.0, num_seeds=3).run()
    (score,) = results.scores()
    assert results.seeds == [0]
    assert np.isnan([score.interval, score.p, score.p_holm]).all()


def test_a_disk_that_is_full_when_a_result_is_written_is_said(tmp_path, monkeypatch):
    def full(folder, result):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(experiment_module, "write_result", full)
    with pytest.raises(CannotRun, match=r"^No space left on device: make room, then start again"):
        experiment(tmp_path, methods=["random"], num_seeds=1).run()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("name", ["0.pt", "random-0.5-dataset_mean-0-0.json", "results.csv", "curves.png", "manifest.json"])
def test_a_fault_of_the_disk_is_one_sentence_and_it_goes_on_from_there(tmp_path, monkeypatch, code, name):
    real = os.replace

    def faulty(source, path):
        if Path(path).name == name:
            raise OSError(code, os.strerror(code), source)
        real(source, path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", faulty)
        with pytest.raises(CannotRun, match=rf"{os.strerror(code)}.*{name}.*start again to continue"):
            experiment(tmp_path, methods=["random"], num_seeds=1).run()
    assert not list(tmp_path.rglob(f"{PREFIX}*"))
    assert not experiment(tmp_path, methods=["random"], num_seeds=1).run().failures


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_umask_holds_for_all_that_is_written(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        experiment(tmp_path / "out", methods=["random"], num_seeds=1).run()
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {".lock", "0.pt", "manifest.json", "train.ranks", "results.csv", "curves.png"} <= {path.name for path in files}
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_what_a_killed_run_left_is_swept_up(tmp_path):
    left = [tmp_path / place / f"{PREFIX}0" for place in (".", "cells", "stores/random")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    experiment(tmp_path, methods=["random"], num_seeds=1).run()
    assert not any(path.exists() for path in left)


def test_ranks_that_were_changed_between_two_runs_are_made_again(tmp_path):
    experiment(tmp_path, methods=["random"], num_seeds=1).run()
    path = tmp_path / "stores" / "random" / "train.ranks"
    before = path.read_bytes()
    path.write_bytes(bytes(128) + before[128:])
    with pytest.warns(UserWarning, match=r"stores/random was changed after it was written.*are made again"):
        experiment(tmp_path, methods=["random"], num_seeds=2).run()
    assert path.read_bytes() == before


def test_the_trainers_arguments_may_be_objects(tmp_path):
    trainer = {"callbacks": [Timer(duration="00:01:00:00")], "accelerator": "cpu"}
    check_identity(tmp_path, experiment(tmp_path, trainer=trainer).config.identity())
    assert json.loads((tmp_path / "experiment.json").read_text())["trainer"] == {"callbacks": ["Timer"], "accelerator": "cpu"}


def test_what_was_refused_may_be_mended_in_the_same_folder(tmp_path):
    with pytest.raises(CannotRun, match="no metric 'f1'"):
        experiment(tmp_path, metric="f1").run()
    experiment(tmp_path, methods=["random"], num_seeds=1).run()


def test_a_folder_that_cannot_be_written_to_is_said_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotRun, match=r"cannot be written to: Not a directory"):
        experiment(tmp_path / "file" / "out").run()


def command(output, *more, model=f"{tiny_squares.__name__}.Slow"):
    settings = [
        "--data",
        f"{tiny_squares.__name__}.Data",
        "--model",
        model,
        "--fractions",
        "[0.5]",
        "--num_seeds",
        "2",
        "--max_epochs",
        "1",
    ]
    return [COMMAND, "roar", "--output", str(output), "--methods", "[random,gradient]", *settings, *more]


@pytest.fixture
def environment(tmp_path):
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": paths, "BEGUN": str(tmp_path / "begun"), "COLUMNS": "200"}


def begun(environment):
    path = Path(environment["BEGUN"])
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_table(tmp_path, environment):
    """Killed in the fourth training, the base network's included: three are done, and the one that was lost is begun again."""
    whole = subprocess.run(command(tmp_path / "whole"), env=environment, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert begun(environment) == 9  # the explained network, and 2 + 4 + 2 cells
    Path(environment["BEGUN"]).unlink()
    hanging = {**environment, "HANG_AT": "4"}
    process = subprocess.Popen(command(tmp_path / "killed"), env=hanging, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: begun(environment) == 4, process)
    second = subprocess.run(command(tmp_path / "killed"), env=environment, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "another process already uses" in second.stderr
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.csv").exists()
    again = subprocess.run(command(tmp_path / "killed"), env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "8 done" in again.stdout
    assert begun(environment) == 10
    for name in ("results.csv", "summary.csv", "networks/0.pt"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_the_ray_engine_gives_the_same_numbers(done, tmp_path, environment):
    pytest.importorskip("ray")
    ran = subprocess.run(
        command(tmp_path / "ray", "--engine", "ray", model=f"{tiny_squares.__name__}.Net"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "ray" / "results.csv").read_text() == (done[0] / "results.csv").read_text()
    assert json.loads((tmp_path / "ray" / "experiment.json").read_text())["model"]["calls"] == f"{tiny_squares.__name__}.Net"
