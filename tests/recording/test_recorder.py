"""FullGradRecorder in loops that Lightning does not run."""

import csv
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fg_lightning import FullGradMonitor
from fg_lightning.history import History
from fg_lightning.recording import FullGradRecorder, NoProbe, messages
from fg_lightning.recording.probe import Probe
from tests.helpers.small_trainings import Classifier, fit, images_and_labels, loader

PROBE = images_and_labels(4, seed=2)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 3)
    )


def record(folder, probe=PROBE, **options):
    return FullGradRecorder(folder, probe, **{"strict": True, "task": "classes", **options})


def train(model, recorder=None, epochs=(1, 2), seed=0):
    """A plain loop; gives what it leaves behind."""
    torch.manual_seed(seed)
    optimizer, step = torch.optim.Adam(model.parameters(), 1e-2), 3 * (epochs[0] - 1)
    for epoch in epochs:
        for images, labels in loader(seed=1, shuffle=True):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            step += 1
        if recorder is not None:
            recorder.snapshot(model, step=step, epoch=epoch)
    states = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = {f"{name}.grad": parameter.grad for name, parameter in model.named_parameters()}
    return states | gradients | {"random": torch.get_rng_state()}


class Failing(nn.Module):
    """A network whose forward raises as long as it is told to."""

    def __init__(self):
        super().__init__()
        self.network = network()
        self.fails = True

    def forward(self, images):
        if self.fails:
            raise RuntimeError("no forward today")
        return self.network(images)


def test_a_plain_loop_is_recorded(tmp_path):
    model = network()
    with record(tmp_path / "run") as recorder:
        first = recorder.snapshot(model, step=0, epoch=0)
        train(model, recorder)
    assert first.title == "untrained"
    history = History.read(tmp_path / "run")
    assert history.snapshots == recorder.history.snapshots
    assert [(s.epoch, s.step) for s in history.snapshots] == [(0, 0), (1, 3), (2, 6)]
    assert all(s.numbers["fullgrad/completeness_error_max"] < 1e-4 for s in history.snapshots)  # float32
    assert history.snapshots[2].numbers["fullgrad/drift_from_untrained"] > 0
    assert [row.module for row in history.layers(0)] == ["", "0", "1", "5"]
    assert [row.label for row in history.images(0)] == PROBE[1].tolist()
    assert {path.name for path in (tmp_path / "run" / "saliency").iterdir()} == {f"epoch_000{i}.png" for i in range(3)}
    assert {"film_strip.png", "bias_terms.png"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_a_plain_loop_is_not_disturbed():
    alone = train(network())
    model = network()
    recorder = record(None)
    recorder.snapshot(model, step=0, epoch=0)
    watched = train(model, recorder)
    assert alone.keys() == watched.keys()
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


def test_it_finds_what_the_monitor_finds(tmp_path):
    monitor = FullGradMonitor(probe=PROBE, strict=True)
    module, _ = fit(tmp_path / "monitor", monitor, max_epochs=1)
    with record(tmp_path / "recorder", task=None, data=loader(16, seed=2)) as recorder:
        recorder.snapshot(module, step=2, epoch=1)
    ours, theirs = recorder.history, monitor.history
    assert torch.equal(ours.maps(0), theirs.maps(1))
    assert ours.images(0) == theirs.images(1)
    assert ours.layers(0) == theirs.layers(1)
    same = {key: value for key, value in theirs.snapshots[1].numbers.items() if "drift" not in key}  # of the first there is none
    assert ours.snapshots[0].numbers == same
    assert {**ours.about(), "target": None} == {**theirs.about(), "target": None}


def test_with_fabric_the_network_is_recorded_under_its_own_names(tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1, loggers=CSVLogger(tmp_path / "logs", name="run", version="0"))
    plain, model = network(), network()
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1))
    with record(tmp_path / "plain") as expected, record(tmp_path / "run", loggers=fabric.loggers) as recorder:
        expected.snapshot(plain, step=0, epoch=0)
        recorder.snapshot(wrapped, step=0, epoch=0)
        for images, labels in fabric.setup_dataloaders(loader(seed=1)):
            optimizer.zero_grad()
            fabric.backward(cross_entropy(wrapped(images), labels))
            optimizer.step()
        recorder.snapshot(wrapped, step=3, epoch=1)
    fabric.loggers[0].finalize("success")
    assert torch.equal(recorder.history.maps(0), expected.history.maps(0))
    assert recorder.history.layers(0) == expected.history.layers(0)
    assert json.loads((tmp_path / "run" / "probe.json").read_text())["module"] == "Sequential"
    rows = list(csv.DictReader((tmp_path / "logs" / "run" / "0" / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "3"]
    assert [float(row["fullgrad/concentration"]) for row in rows] == pytest.approx(
        [s.numbers["fullgrad/concentration"] for s in recorder.history.snapshots]
    )


def test_a_compiled_network_is_recorded_under_its_own_names():
    expected, recorder = record(None), record(None)
    expected.snapshot(network(), step=0, epoch=0)
    recorder.snapshot(torch.compile(network(), backend="eager"), step=0, epoch=0)
    assert torch.equal(recorder.history.maps(0), expected.history.maps(0))
    assert recorder.history.snapshots == expected.history.snapshots


def test_a_module_in_data_parallel_training_is_explained_itself(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        expected, recorder = record(None), record(None)
        expected.snapshot(network(), step=0, epoch=0)
        recorder.snapshot(DistributedDataParallel(network()), step=0, epoch=0)
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(recorder.history.maps(0), expected.history.maps(0))
    assert recorder.history.snapshots == expected.history.snapshots


@pytest.mark.parametrize("has_probe", [True, False])
def test_a_run_goes_on_from_a_checkpoint(tmp_path, has_probe):
    model = network()
    with record(tmp_path / "run") as recorder:
        recorder.snapshot(model, step=0, epoch=0)
        train(model, recorder, epochs=(1,))
    torch.save(recorder.state_dict(), tmp_path / "recorder.pt")
    with record(tmp_path / "run", PROBE if has_probe else None) as resumed:
        resumed.load_state_dict(torch.load(tmp_path / "recorder.pt", weights_only=True))
        train(model, resumed, epochs=(2,))
    history = History.read(tmp_path / "run")
    assert [s.epoch for s in history.snapshots] == [0, 1, 2]
    assert torch.equal(resumed.probe.images, PROBE[0])
    assert not (tmp_path / "run_1").exists()


def test_other_images_begin_another_history(tmp_path):
    with record(tmp_path / "run") as recorder:
        recorder.snapshot(network(), step=0, epoch=0)
    other = record(tmp_path / "run", images_and_labels(4, seed=9), strict=False)
    with pytest.warns(UserWarning, match=r"FullGradRecorder: ProbeChanged: .* differ \(a new history begins"):
        other.load_state_dict(recorder.state_dict())
    other.snapshot(network(), step=3, epoch=1)
    assert other.history.folder == tmp_path / "run_1"
    assert [s.epoch for s in other.history.snapshots] == [1]
    assert [s.epoch for s in History.read(tmp_path / "run").snapshots] == [0]


def test_a_run_beside_an_earlier_one_is_announced_but_not_one_that_continues(tmp_path, caplog):
    caplog.set_level("INFO", "fg_lightning")
    (first := record(tmp_path / "run")).snapshot(network(), step=0, epoch=0)
    assert "exists" not in caplog.text
    continued = record(tmp_path / "run")
    continued.load_state_dict(first.state_dict())
    continued.snapshot(network(), step=1, epoch=1)
    assert "exists" not in caplog.text
    record(tmp_path / "run").snapshot(network(), step=0, epoch=0)
    assert f"run exists, so the run is in {tmp_path / 'run_1'}; load_state_dict continues a run" in caplog.text


def test_notes_are_printed_if_no_logging_is_set_up(monkeypatch, capsys):
    monkeypatch.setattr(messages.LOG, "hasHandlers", lambda: False)
    messages.show_note("a note")
    assert capsys.readouterr().err == "a note\n"


def test_a_fault_costs_a_snapshot_and_is_said_once(recwarn, tmp_path):
    model, recorder = Failing(), record(tmp_path / "run", strict=False)
    random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert recorder.snapshot(model, step=0, epoch=0) is None
    assert recorder.snapshot(model, step=3, epoch=1) is None
    assert recorder.numbers == recorder.measure(model) == recorder.state_dict() == {}
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    (warning,) = [w for w in recwarn if "FullGradRecorder" in str(w.message)]
    assert "no forward today" in str(warning.message)
    assert "FullGradRecorder(strict=True) raises" in str(warning.message)
    model.fails = False
    assert recorder.snapshot(model, step=6, epoch=2).epoch == 2
    assert [s.epoch for s in History.read(tmp_path / "run").snapshots] == [2]


def test_findings_of_an_earlier_snapshot_are_told_as_such(recwarn, caplog):
    caplog.set_level("INFO", "fg_lightning")
    model = Failing()
    model.fails = False
    recorder = record(None, strict=False)
    recorder.snapshot(model, step=0, epoch=0)
    model.fails = True
    recorder.snapshot(model, step=3, epoch=1, is_last=True)
    recorder.conclude()
    assert "no findings in the last snapshot that could be taken; later ones failed" in caplog.text


def test_the_network_given_at_the_end_is_compared_with_others(caplog):
    caplog.set_level("INFO", "fg_lightning")
    model, recorder = network(), record(None)
    recorder.snapshot(model, step=0, epoch=0)
    recorder.conclude()
    assert "not checked: " in caplog.text
    assert "the untrained network, random weights, the next class (only the last snapshot" in caplog.text
    caplog.clear()
    recorder.conclude(model)
    assert "random weights" in caplog.text.split("not checked")[0]
    assert "only the last snapshot" not in caplog.text


def test_masks_that_do_not_fit_are_not_replaced_by_others(recwarn):
    batch = {"image": PROBE[0], "label": PROBE[1], "mask": PROBE[0] > 0.5}
    for masks, is_kept in ((None, True), (lambda batch: torch.ones(2, 8, 8), False)):
        recorder = record(None, Probe.from_batch(batch, 4, with_batch=True), masks=masks, strict=False)
        snapshot = recorder.snapshot(network(), step=0, epoch=0)
        assert ("fullgrad/relevance_mass" in snapshot.numbers) == is_kept
    assert "so there are no masks" in str(recwarn.pop().message)


def test_strict_raises():
    with pytest.raises(RuntimeError, match="no forward today"):
        record(None).snapshot(Failing(), step=0, epoch=0)
    with pytest.raises(NoProbe, match=r"pass them: probe=\(images, labels\)"):
        record(None, None).snapshot(network(), step=0, epoch=0)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"probe": torch.rand(4, 8)}, NoProbe, "probe must be images"),
        ({"psi": "largest"}, ValueError, "largest"),
        ({"loggers": [object()]}, TypeError, "a logger must be one of Lightning's or Fabric's.*of the type object"),
        ({"task": "classification"}, ValueError, "there is no task 'classification'"),
        pytest.param({"normalization": (0.5,)}, ValueError, "normalization must be", marks=pytest.mark.ill_typed),
    ],
)
def test_bad_arguments_are_refused(options, error, reason):
    with pytest.raises(error, match=reason):
        record(None, **options)


def test_a_run_that_breaks_off_is_drawn_up_to_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), record(tmp_path / "run") as recorder:  # noqa: PT012
        recorder.snapshot(network(), step=0, epoch=0)
        raise KeyboardInterrupt
    assert (tmp_path / "run" / "film_strip.png").is_file()
    assert recorder.conclude() == tmp_path / "run" / "film_strip.png"


def test_measuring_keeps_nothing(tmp_path):
    model, recorder = network(), record(tmp_path / "run")
    recorder.snapshot(model, step=0, epoch=0)
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    numbers = recorder.measure(network(seed=1))
    assert numbers["fullgrad/drift"] > 0
    assert len(recorder.history.snapshots) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files


def test_a_lightning_module_without_a_trainer_is_recorded():
    recorder = record(None, task=None)
    assert recorder.snapshot(Classifier(), step=0, epoch=0).epoch == 0


@pytest.mark.slow
def test_lightning_is_not_imported():
    code = "import sys, fg_lightning.recording; print(sorted({name.split('.')[0] for name in sys.modules}))"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "'fg_lightning'" in modules
    assert not any(f"'{name}'" in modules for name in ("lightning", "pytorch_lightning", "wandb", "ray"))
