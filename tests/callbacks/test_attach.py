"""FG_LIGHTNING=1 python train.py, of a script that knows nothing of the monitor."""

import copy
import os
import subprocess
import sys

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from fg_lightning import FullGradMonitor
from fg_lightning.callbacks.attach import monitors
from fg_lightning.history import History
from tests.helpers.small_trainings import Classifier, loader, trainer

SCRIPT = """
import torch
import {package} as pl
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

if __name__ == "__main__":
    pl.seed_everything(0)
    data = DataLoader(TensorDataset(torch.rand(16, 1, 8, 8), torch.randint(3, (16,))), 4)
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", enable_progress_bar=False, logger=False, callbacks=[{callback}])
    trainer.fit(Net(), data, data)
    print("sum of weights", sum(float(p.detach().sum()) for p in trainer.lightning_module.parameters()))
"""


UNWATCHED = "FG_LIGHTNING is set, but no training was monitored"


def run(folder, asked, package="lightning.pytorch", callback=""):
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(SCRIPT.format(package=package, callback=callback))
    return run_script(script, asked)


def run_script(script, asked, **variables):
    """What a script prints, and the history that it leaves."""
    folder = script.parent
    environment = {key: value for key, value in os.environ.items() if key != "FG_LIGHTNING"}
    environment |= variables if asked is None else {"FG_LIGHTNING": asked, **variables}
    command = [sys.executable, "-W", "ignore", str(script)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found = [History.read(path.parent) for path in folder.rglob("probe.json")]
    return result, found[0] if found else None


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_a_script_that_knows_nothing_of_it_is_watched_and_trains_as_before(tmp_path, package):
    result, history = run(tmp_path / "with", "every_n_epochs=3, num_samples=2", package)
    assert result.returncode == 0, result.stderr[-2000:]
    assert [snapshot.epoch for snapshot in history.snapshots] == [0, 3, 4]
    assert len(history.images(0)) == 2
    assert (history.folder / "film_strip.png").exists()
    assert UNWATCHED not in result.stderr
    without, nothing = run(tmp_path / "without", None, package)
    assert nothing is None
    assert without.stdout.splitlines()[-1] == result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_script_with_a_monitor_of_its_own_keeps_that_alone(tmp_path):
    script = "__import__('fg_lightning').FullGradMonitor(num_samples=3)"
    result, history = run(tmp_path, "num_samples=2", callback=script)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "is disabled" in result.stderr
    assert len(list(tmp_path.rglob("probe.json"))) == 1
    assert len(history.images(0)) == 3


@pytest.mark.slow
def test_a_bad_option_is_said_in_one_sentence(tmp_path):
    result, _ = run(tmp_path, "every_n_epoch=5")
    assert result.returncode == 1
    said = "ValueError: FG_LIGHTNING='every_n_epoch=5' cannot be read: there is no option every_n_epoch; the options are "
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(said)
    assert " every_n_epochs, " in last.removeprefix(said)


@pytest.mark.parametrize("asked", [None, "", "0", "false", "OFF"])
def test_where_nobody_asks_there_is_none(monkeypatch, asked):
    monkeypatch.delenv("FG_LIGHTNING", raising=False)
    if asked is not None:
        monkeypatch.setenv("FG_LIGHTNING", asked)
    assert monitors() == []


@pytest.fixture
def asked_for(monkeypatch):
    """FG_LIGHTNING, of two images."""
    monkeypatch.setenv("FG_LIGHTNING", "num_samples=2, strict=on")


def fit(folder, callbacks, **options):
    """One fit with a list of callbacks, which Lightning extends in place."""
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False} | options
    run = pl.Trainer(default_root_dir=folder, max_epochs=1, callbacks=callbacks, **options)
    run.fit(Classifier(), loader(seed=1), loader(16, seed=2))
    return run


def watched(folder):
    return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("history.csv"))


@pytest.mark.usefixtures("asked_for")
def test_one_list_of_callbacks_serves_several_trainers(tmp_path):
    callbacks = [EarlyStopping("val_loss")]
    runs = [fit(tmp_path / str(fold), callbacks, enable_checkpointing=False) for fold in range(3)]
    assert watched(tmp_path) == [f"{fold}/fullgrad/version_0" for fold in range(3)]
    runs[0].fit_loop.max_epochs = 2
    runs[0].fit(Classifier(), loader(seed=1), loader(16, seed=2))  # the first Trainer's monitor was superseded since
    assert watched(tmp_path) == ["0/fullgrad/version_0", "0/fullgrad/version_1", "1/fullgrad/version_0", "2/fullgrad/version_0"]


@pytest.mark.usefixtures("asked_for")
def test_one_list_with_a_monitor_of_its_own_serves_several_trainers(tmp_path):
    callbacks = [FullGradMonitor(num_samples=3, strict=True)]
    for fold in range(2):
        fit(tmp_path / str(fold), callbacks, enable_checkpointing=False)
        assert len(callbacks[0].history.images(0)) == 3
    assert watched(tmp_path) == ["0/fullgrad/version_0", "1/fullgrad/version_0"]


@pytest.mark.usefixtures("asked_for")
def test_a_list_is_used_again_after_a_crash_and_for_tests(tmp_path):
    class Crash(pl.Callback):
        def on_train_batch_end(self, *_):
            if len(watched(tmp_path)) == 1:
                raise ValueError("on the way")

    callbacks = [Crash()]
    with pytest.raises(ValueError, match="on the way"):
        fit(tmp_path / "0", callbacks, enable_checkpointing=False)
    run = fit(tmp_path / "1", callbacks[:], enable_checkpointing=False)
    run.validate(Classifier(), loader(16), verbose=False)
    pl.Trainer(callbacks=callbacks, logger=False, accelerator="cpu", enable_progress_bar=False).validate(
        Classifier(), loader(16), verbose=False
    )
    assert watched(tmp_path) == ["0/fullgrad/version_0", "1/fullgrad/version_0"]


@pytest.mark.usefixtures("asked_for")
def test_the_second_of_two_trainers_with_one_list_resumes(tmp_path):
    for fold in range(2):
        callbacks = []
        for _ in range(2):  # the second Trainer finds the first one's callbacks in the list
            run = fit(tmp_path / str(fold), callbacks)
        if fold == 0:
            path = run.checkpoint_callback.best_model_path
    again = pl.Trainer(
        default_root_dir=tmp_path / "2",
        max_epochs=2,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    again.fit(Classifier(), loader(seed=1), loader(16, seed=2), ckpt_path=path)
    history = History.read(tmp_path / "2" / "fullgrad" / "version_0")
    assert [snapshot.epoch for snapshot in history.snapshots] == [0, 1, 2]


@pytest.mark.usefixtures("asked_for")
def test_barebones_asks_for_nothing_and_gets_nothing(tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    run = pl.Trainer(max_epochs=1, accelerator="cpu", barebones=True)
    run.fit(Classifier(), loader(seed=1), loader(16))
    assert list(tmp_path.rglob("*")) == []
    assert not [w for w in recwarn if "FullGradMonitor" in str(w.message)]


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_monitor_of_a_barebones_trainer_says_that_it_is_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="barebones=True"):
        pl.Trainer(max_epochs=1, accelerator="cpu", barebones=True, callbacks=[monitor := FullGradMonitor()]).fit(
            Classifier(), loader(seed=1), loader(16)
        )
    assert monitor.history is None
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.usefixtures("asked_for")
def test_a_script_that_reads_none_of_its_numbers_finds_none(tmp_path):
    run = fit(tmp_path, [], enable_checkpointing=False)
    assert set(run.callback_metrics) == {"val_loss"}
    best = ModelCheckpoint(tmp_path / "kept", monitor="fullgrad/concentration")
    fit(tmp_path, [best])
    assert best.best_model_score > 0


@pytest.mark.parametrize(
    ("word", "value"), [("on", True), ("off", False), ("yes", True), ("NO", False), ("1", True), ("0", False), ("False", False)]
)
@pytest.mark.parametrize("switch", ["strict", "animation", "report"])
def test_words_that_switch_do_what_they_say(monkeypatch, switch, word, value):
    monkeypatch.setenv("FG_LIGHTNING", f"{switch}={word}")
    (monitor,) = monitors()
    assert getattr(monitor.settings if switch == "animation" else monitor, switch) is value


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("1", {}),
        ("True", {}),
        ("every_n_epochs=5,num_samples=8", {"every_n_epochs": 5, "num_samples": 8}),
        (" every_n_epochs = 5 , strict=true ", {"every_n_epochs": 5, "strict": True}),
        ("num_samples=2, psi=signed", {"num_samples": 2}),
    ],
)
def test_options_are_those_of_the_monitor(monkeypatch, asked, expected):
    monkeypatch.setenv("FG_LIGHTNING", asked)
    (monitor,) = monitors()
    defaults = FullGradMonitor()
    assert monitor.rhythm.every_n_epochs == expected.get("every_n_epochs")
    for name in ("num_samples", "strict"):
        assert getattr(monitor, name) == expected.get(name, getattr(defaults, name))
    assert monitor.settings.psi == ("signed" if "psi" in asked else "absolute")


def test_methods_and_steps(monkeypatch):
    monkeypatch.setenv("FG_LIGHTNING", "methods=[fullgrad,gradcam],every_n_steps=50,reading=locally_affine")
    (monitor,) = monitors()
    assert list(monitor.settings.methods) == ["fullgrad", "gradcam"]
    assert (monitor.rhythm.every_n_epochs, monitor.rhythm.every_n_steps) == (None, 50)
    assert monitor.settings.reading == "locally_affine"


def test_lists_and_names(monkeypatch):
    monkeypatch.setenv("FG_LIGHTNING", "class_names=[cat, 'sea lion'], normalization=((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), target=1")
    (monitor,) = monitors()
    assert list(monitor.settings.class_names) == ["cat", "sea lion"]
    assert monitor.settings.normalization.std == (0.2, 0.2, 0.2)
    assert monitor.settings.target == 1


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("yes please", "expected 1, or options such as every_n_epochs=5,num_samples=8"),
        ("5", "expected 1, or options"),
        ("every_n_epochs=0", "every_n_epochs must be an integer of at least 1, not 0"),
        ("num_samples=many", "num_samples must be an integer of at least 1, not 'many'"),
        ("every_n_steps=0", "every_n_steps must be an integer of at least 1, not 0"),
        ("every_n_epochs=2,every_n_steps=50", "every_n_epochs=2 and every_n_steps=50 are both given; .* leave one out"),
        ("methods=[fullgrad,grad_cam]", "there is no method 'grad_cam'; did you mean 'gradcam'"),
        ("reading=affine", "reading must be one of exact, locally_affine, not 'affine'"),
        ("implicit=3", "implicit must be True or False, not 3"),
        ("psi=squared", "psi must be one of absolute, positive, signed"),
        ("masks=3", "there is no option masks"),
        ("probe=3", "probe must be images"),
        ("probe=easiest", 'probe must be "balanced", "hardest"'),
        ("probe=[-1]", "counted from 0"),
        ("num_samples=1+f(2)", r"1 \+ f\(2\) is not a number, a word or a list of them"),
        ("num_samples=2,num_samples=3", "num_samples is given twice"),
        ("**options", "expected 1, or options"),
        ("strict=maybe", "strict must be True or False, not 'maybe'"),
        ("report=2", "report must be True or False, not 2"),
        ("class_names=cat", "class_names must be a list of names"),
    ],
)
def test_what_cannot_be_read_is_refused(monkeypatch, asked, reason):
    monkeypatch.setenv("FG_LIGHTNING", asked)
    with pytest.raises(ValueError, match=f"FG_LIGHTNING=.*cannot be read: .*{reason}"):
        monitors()


@pytest.mark.parametrize("module", ["torch", "lightning", "wandb", "matplotlib", "captum", "ast", "PIL"])
def test_unset_it_loads_nothing(module):
    code = (
        "import sys\n"
        f"before = {module!r} in sys.modules\n"
        "from fg_lightning.callbacks.attach import monitors\n"
        f"monitors()\nprint(before, {module!r} in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "FG_LIGHTNING"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    before, after = printed.split()
    assert before == after


def test_two_monitors_of_one_script_are_refused_by_lightning(tmp_path):
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        trainer(tmp_path, FullGradMonitor(), FullGradMonitor())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_list_of_callbacks_serves_another_trainer(tmp_path, monkeypatch, copied):
    """As scripts make one for each fold: the list then holds a copy of the monitor that was attached to the first Trainer."""
    monkeypatch.setenv("FG_LIGHTNING", "num_samples=2")
    first = trainer(tmp_path)
    watched = [callback for callback in first.callbacks if isinstance(callback, FullGradMonitor)]
    first.fit(Classifier(), loader(), loader())
    second = trainer(tmp_path, *map(copied, watched))
    second.fit(Classifier(), loader(), loader())
    seen = [callback for callback in second.callbacks if isinstance(callback, FullGradMonitor) and callback.history is not None]
    assert len(seen) == 1
    assert sorted(path.parent.name for path in tmp_path.rglob("history.csv")) == ["version_0", "version_1"]


# --- a script without a Trainer

PLAIN = "import fg_lightning\n"
CHILDREN = """
import multiprocessing
import fg_lightning

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=print, args=("child",)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
"""


@pytest.mark.parametrize(
    ("code", "asked", "variables", "times"),
    [
        (PLAIN, "1", {}, 1),
        (PLAIN, "every_n_epochs=2", {"RANK": "0", "LOCAL_RANK": "0"}, 1),
        (PLAIN + "import importlib; importlib.reload(fg_lightning)", "1", {}, 1),
        (CHILDREN, "1", {}, 1),
        (PLAIN, "0", {}, 0),
        (PLAIN, None, {}, 0),
        (PLAIN, "1", {"LOCAL_RANK": "1"}, 0),
        (PLAIN + "raise ValueError('before')", "1", {}, 0),
        ("from fg_lightning.cli.main import main\nmain(['cite'])", "1", {}, 0),
        ("print('nothing of ours')", "1", {}, 0),  # nothing can be said
    ],
)
def test_a_script_that_was_not_watched_says_so_once_at_its_end(tmp_path, code, asked, variables, times):
    script = tmp_path / "train.py"
    script.write_text(code)
    result, _ = run_script(script, asked, **variables)
    assert result.stderr.count(UNWATCHED) == times, result.stderr
    assert (result.returncode == 0) == ("raise" not in code)
    if times:
        assert "take snapshots with fg_lightning.FullGradRecorder" in result.stderr.splitlines()[-1]


FABRIC = """
from lightning.fabric import Fabric
Fabric(accelerator="cpu", devices=1)
"""
VALIDATION = SCRIPT.replace("trainer.fit(Net(), data, data)", "trainer.validate(Net(), data, verbose=False)").format(
    package="lightning.pytorch", callback=""
)
SPAWNED = SCRIPT.replace("logger=False,", 'logger=False, strategy="ddp_fork", devices=2,').format(
    package="lightning.pytorch", callback=""
)
RECORDER = """
import torch, fg_lightning
recorder = fg_lightning.FullGradRecorder(None, torch.rand(2, 1, 8, 8), task="classes")
recorder.snapshot(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), step=0, epoch=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "times"),
    [
        pytest.param(FABRIC, 1, id="Fabric"),
        pytest.param(VALIDATION, 1, id="validation"),
        pytest.param(RECORDER, 0, id="recorder"),
        pytest.param(SPAWNED, 0, id="other processes"),
    ],
)
def test_a_loop_without_fit_says_so_unless_a_recorder_watches_it(tmp_path, code, times):
    script = tmp_path / "train.py"
    script.write_text(code)
    result, _ = run_script(script, "1")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stderr.count(UNWATCHED) == times, result.stderr
