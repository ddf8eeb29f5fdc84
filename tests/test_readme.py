"""What the README and the pages of docs/ tell the user to type does what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import skimage.data
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from fg_lightning import FullGradMonitor, FullGradRecorder, ROARDataModule
from fg_lightning.attribution import METHODS
from fg_lightning.cli.main import COMMANDS, main
from fg_lightning.demo import DigitClassifier, DigitsDataModule
from fg_lightning.fullgrad.operations import OPERATIONS
from fg_lightning.loggers import PICTURE_LOGGERS
from fg_lightning.planted import PlantedExperiment
from fg_lightning.roar import ROARExperiment, SaliencyStore
from tests import ROOT
from tests.helpers.doc_snippets import PAGES, Command, blocks, commands


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    """What a page adds to the tables of the package is gone after it."""
    with patch.dict(OPERATIONS), patch.dict(METHODS), patch.dict(PICTURE_LOGGERS):
        yield


LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")

# --- Python ----------------------------------------------------------------------------------------------------------------------


class Idle:
    """Takes the place of what would train for hours: every method can be called, and gives itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments = arguments

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: self


def readers_own() -> dict[str, Any]:
    """What a snippet takes for granted: a network, images, labels, a Trainer, a logger."""
    torch.manual_seed(0)
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
    return {
        "model": resnet18().eval(),
        "images": images,
        "labels": labels,
        "target": labels,
        "torch": torch,
        "Trainer": lambda **options: Trainer(**{"logger": False, "enable_checkpointing": False, **options}),
        "WandbLogger": lambda: False,
        "FullGradMonitor": FullGradMonitor,
    }


def run_page(page: Path, **more: Any) -> dict[str, Any]:
    names = readers_own() | more
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    return names


DOCS = ROOT / "docs"

SIMPLE = [
    ROOT / "README.md",
    DOCS / "index.md",
    *(DOCS / f"explanation/{name}.md" for name in ("idea", "numbers")),
    DOCS / "how-to/extend.md",
]
"""Pages that train nothing."""

STUBBED = [DOCS / "how-to" / name for name in ("run_roar.md", "train_without_code.md")]
"""Pages whose trainings last hours: what they call must be there, and is not run."""

RUN_BY_HAND = [
    DOCS / "findings.md",
    DOCS / "explanation/planted_truth.md",
    *(DOCS / f"how-to/{name}.md" for name in ("figures_for_a_paper", "explain_pictures")),
]
"""Pages with a test of their own."""

TRAINED = sorted(
    {page for page in PAGES if blocks(page, "python") and page.is_relative_to(DOCS)} - {*SIMPLE, *STUBBED, *RUN_BY_HAND}
)
"""Tutorials and how-tos that run as they are, on a few batches."""

FEW_BATCHES = {
    "LIMIT_TRAIN_BATCHES": "2",
    "LIMIT_VAL_BATCHES": "1",
    "LIMIT_TEST_BATCHES": "1",
    "LOG_EVERY_N_STEPS": "1",
    "ENABLE_PROGRESS_BAR": "False",
    "ENABLE_MODEL_SUMMARY": "False",
    "ACCELERATOR": "'cpu'",
}


@pytest.fixture
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers that a page makes read a few batches, unless the page says how many. Lightning reads this from the environment."""
    for name, value in FEW_BATCHES.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.parametrize("page", SIMPLE, ids=lambda page: page.stem)
def test_python_on_a_page_runs_from_top_to_bottom(page: Path) -> None:
    run_page(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", TRAINED, ids=lambda page: page.stem)
@pytest.mark.usefixtures("few_batches")
@pytest.mark.filterwarnings("default")  # other packages' advice about trainings as short as these
def test_a_tutorial_or_how_to_runs_from_top_to_bottom(page: Path) -> None:
    names = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


def test_what_the_readme_says_of_terms_and_methods_holds() -> None:
    assert len(METHODS) == 15
    names = run_page(ROOT / "README.md")
    terms, maps = names["terms"], names["maps"]
    total = terms.input_term + sum(terms.bias_terms.values()) + sum(terms.implicit_terms.values())
    torch.testing.assert_close(total, terms.output, rtol=1e-4, atol=1e-5)  # float32
    assert maps.shape[0] == len(terms.output)


def test_what_the_idea_says_of_small_outputs_holds() -> None:
    agreement = run_page(DOCS / "explanation/idea.md")["agreement"]
    assert [round(value, 2) for value in agreement.values()] == [1.0, 0.99, 0.97]


def test_a_logger_of_ones_own_shows_what_the_monitor_draws() -> None:
    logger = run_page(DOCS / "how-to/extend.md")["logger"]
    assert isinstance(logger, CSVLogger)
    images = DataLoader(TensorDataset(torch.rand(8, 1, 28, 28), torch.zeros(8, dtype=torch.long)), 8)
    options: dict[str, Any] = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    monitor = FullGradMonitor(num_samples=2, strict=True)
    Trainer(logger=logger, callbacks=[monitor], accelerator="cpu", **options).fit(DigitClassifier(width=2), images, images)
    assert (Path(logger.log_dir) / "fullgrad_saliency_0.png").exists()


def test_the_page_about_figures_reads_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    images = DataLoader(TensorDataset(torch.rand(8, 1, 28, 28), torch.zeros(8, dtype=torch.long)), 8)
    options: dict[str, Any] = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    logger = CSVLogger(".", name="lightning_logs", version=0)
    monitor = FullGradMonitor(num_samples=2, strict=True)
    Trainer(logger=logger, callbacks=[monitor], accelerator="cpu", **options).fit(DigitClassifier(width=2), images, images)
    monkeypatch.setattr(ROARExperiment, "__init__", lambda self, *arguments, **options: None)
    monkeypatch.setattr(ROARExperiment, "run", lambda self: Idle())
    names = run_page(DOCS / "how-to/figures_for_a_paper.md", DataModule=DigitsDataModule, Net=DigitClassifier)
    assert names["maps"].shape == (2, 1, 28, 28)
    assert len(names["drift"]) == 2


def test_the_page_of_findings_checks_a_network() -> None:
    torch.manual_seed(0)
    model = DigitClassifier(width=2)
    with FullGradRecorder("run", (torch.rand(2, 1, 28, 28), torch.tensor([1, 2])), task="classes") as recorder:
        recorder.snapshot(model, step=0, epoch=0)
        names = run_page(DOCS / "findings.md", recorder=recorder, model=model)
    assert list(names["checks"]) == ["fullgrad"]


def test_pages_about_long_trainings_call_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run", "__init__"):
        monkeypatch.setattr(ROARExperiment, name, lambda self, *arguments, **options: None)
    monkeypatch.setattr(SaliencyStore, "make", classmethod(lambda cls, *arguments, **options: None))
    monkeypatch.setattr(ROARDataModule, "__init__", lambda self, data, store, fraction: None)
    own = {"SaliencyStore": SaliencyStore, "ROARDataModule": ROARDataModule, "DataModule": DigitsDataModule, "Net": DigitClassifier}
    for page in STUBBED:
        run_page(page, Trainer=Idle, **own)


def test_the_manual_of_planted_marks_trains_and_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlantedExperiment, "run", lambda self: Idle())
    one_batch = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    own = {"model": DigitClassifier(width=2), "maps": torch.rand(2, 1, 28, 28), "trainer": Trainer(**one_batch, **quiet)}
    names = run_page(DOCS / "explanation/planted_truth.md", DataModule=DigitsDataModule, Net=DigitClassifier, **own)
    assert names["mass"] == pytest.approx(49 / 784, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((DOCS / "tutorials").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_held(path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    assert all(cell["outputs"] or "import" in cell.source for cell in notebook.cells if cell.cell_type == "code")
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()


# --- the command line ------------------------------------------------------------------------------------------------------------

OURS = [command for command in commands() if Path(command.words[0]).name == "fg-lightning"]
OTHERS = [command for command in commands() if command not in OURS]

PLACES = {"my.package.DataModule": "fg_lightning.demo.DigitsDataModule", "my.package.Net": "fg_lightning.demo.DigitClassifier"}
"""What stands for the reader's own."""


@pytest.fixture
def a_persons_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with photographs, a checkpoint and the presets where the pages have them."""
    Path("photos").mkdir()
    Image.fromarray(skimage.data.chelsea()).save("photos/chelsea.jpg")
    for name in ("best.ckpt", "net.ckpt"):
        Path(name).touch()
    Path("callbacks").symlink_to(ROOT / "callbacks")


@pytest.mark.parametrize("command", OURS, ids=str)
@pytest.mark.usefixtures("a_persons_folder")
def test_our_commands_take_their_options(command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    _, name, *options = (PLACES.get(word, word) for word in command.words)
    assert name in COMMANDS
    look = "--help" if name == "report" else "--print_config"
    monkeypatch.setattr("sys.argv", ["fg-lightning", name, *_without_the_unsaid(options), look])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0, capsys.readouterr().err


def _without_the_unsaid(options: list[str]) -> list[str]:
    """`--data ...` stands for the reader's data."""
    unsaid = [
        i for i, word in enumerate(options) if word == "--data" and (i + 1 == len(options) or options[i + 1].startswith("--"))
    ]
    return [word for i, word in enumerate(options) if i not in unsaid]


def test_other_commands_are_there() -> None:
    """make's targets, pip's extras, scripts and files; what is the reader's own or another program's is known."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = re.search(
        r"^\[project.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )
    extras = re.findall(r"^(\w+) = ", listed[1] if listed else "", re.MULTILINE)
    others_programs = {"ray", "pre-commit", "python3", "source", "ssh"}
    for command in OTHERS:
        program, *rest = (Path(command.words[0]).name, *command.words[1:])
        if program == "make":
            assert set(rest) <= set(targets), command
        elif program == "pip" or rest[:2] == ["-m", "pip"]:
            assert set(re.findall(r"\[(\w+)\]", rest[-1])) <= set(extras), command
        elif rest[:2] == ["-m", "pytest"]:
            assert all((ROOT / word).exists() for word in rest[2:] if word.startswith("tests")), command
        elif program == "python" and rest[0] != "train.py":
            assert (ROOT / rest[0]).exists(), command
        else:
            assert program in others_programs or rest == ["train.py"], command


def test_make_does_what_the_lines_below_it_do(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    planned = subprocess.run(["make", "-n", "demo", "test"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    lines = [line for line in planned.splitlines() if not line.startswith(("touch", "make"))]
    by_hand = [block for block in blocks(ROOT / "README.md", "sh") if "--editable" in block]
    assert lines == "".join(by_hand).splitlines()


@pytest.mark.usefixtures("a_persons_folder")
def test_the_readmes_explain_draws_a_photograph() -> None:
    """With random weights of a small network: the others are downloaded."""
    (line,) = (command for command in OURS if command.page == "README.md" and command.words[1] == "explain")
    main([*line.words[1:], "--model", "squeezenet1_1", "--weights", "none", "--device", "cpu"])
    assert Path("fg_explain/overlays/chelsea.png").exists()
    assert Path("fg_explain/perturbation.png").exists()
    assert run_page(DOCS / "how-to/explain_pictures.md")["maps"].shape == (1, 1, 224, 224)


def in_a_process(*words: str) -> str:
    program = [str(Path(sys.executable).with_name("fg-lightning")), *words]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("a_persons_folder")
def test_the_readmes_fit_and_report_leave_a_page() -> None:
    """On the digits, which need no download, and for two batches."""
    fit, report = (next(c for c in OURS if c.page == "README.md" and c.words[1] == name) for name in ("fit", "report"))
    in_a_process(
        *fit.words[1:4], "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"
    )
    in_a_process(*report.words[1:])
    assert list(Path(report.words[-1]).rglob("report.html"))


@pytest.mark.slow
def test_the_readmes_roar_leaves_a_table() -> None:
    (line,) = (command for command in OURS if command.page == "README.md" and command.words[1] == "roar")
    in_a_process(*line.words[1:])
    assert len(Path("roar/results.csv").read_text().splitlines()) == 1 + 2 * 2 * (2 + 1) + 2  # masks alone, and intact images


# --- links -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent == ROOT] + [ROOT / "CHANGELOG.md"], ids=lambda page: page.name
)
def test_links_lead_to_files(page: Path) -> None:
    inside = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in inside if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_are_described(page: Path) -> None:
    assert all(text.strip() for text in re.findall(r"!\[(.*?)\]\(", page.read_text()))
