"""Findings of a network that looks at one corner alone, while Lightning trains it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fg_lightning import FullGradMonitor, FullGradRecorder


class Cornered(LightningModule):
    """Its class depends on nine pixels: it is the brightest of their three rows."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
        with torch.no_grad():
            self.network[1].weight += torch.eye(3).repeat_interleave(3, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images[..., :3, -3:])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(16, 1, 20, 20, generator=generator), torch.arange(16) % 3
    images[torch.arange(16), 0, labels, -3:] += 1
    return DataLoader(TensorDataset(images, labels), 8)


def train(folder: Path, *callbacks: FullGradMonitor, max_epochs: int = 2, **settings: Any) -> Cornered:
    seed_everything(0, verbose=False)
    model = Cornered()
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    trainer = Trainer(
        accelerator="cpu", max_epochs=max_epochs, callbacks=[*callbacks], default_root_dir=folder, **quiet, **settings
    )
    trainer.fit(model, loader(), loader())
    return model


@pytest.fixture(name="notes")
def fixture_notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    notes = list[str]()
    monkeypatch.setattr("fg_lightning.callbacks.fullgrad_monitor.rank_zero_info", lambda note: notes.append(str(note)))
    return notes


def test_the_corner_is_named_while_training_and_at_the_end(tmp_path: Path, notes: list[str]) -> None:
    monitor = FullGradMonitor(strict=True)
    watched = train(tmp_path, monitor)
    assert monitor.findings[0].key == ("corner", "fullgrad")
    (told,) = (note for note in notes if "finding:" in note)
    assert "8 of 8 maps are highest in the top right corner" in told
    (summary,) = (note for note in notes if "  checked: " in note)
    assert "random weights" in summary
    assert "they are checked when training ends" not in summary
    assert monitor.history is not None
    assert monitor.history.folder is not None
    with (monitor.history.folder / "findings.csv").open(newline="") as file:
        rows = [(row["finding"], row["snapshot"]) for row in csv.DictReader(file)]
    assert rows == [(finding.name, "2") for finding in monitor.findings]
    alone = train(tmp_path / "alone")
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))


def test_a_training_that_stops_between_snapshots_is_checked_too(tmp_path: Path, notes: list[str]) -> None:
    train(tmp_path, FullGradMonitor(strict=True, every_n_epochs=5), max_epochs=-1, max_steps=3)
    (summary,) = (note for note in notes if "  checked: " in note)
    assert "they are checked when training ends" not in summary


def test_maps_of_an_earlier_snapshot_are_not_checked_against_later_weights(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cornered, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), float("inf")))
    with pytest.warns(UserWarning, match="the model's output is not finite"):
        train(tmp_path, FullGradMonitor())
    (summary,) = (note for note in notes if "  checked: " in note)
    assert "in the last snapshot that could be taken; later ones failed" in summary
    assert "random weights" not in summary.split("not checked")[0]


def test_alerts_without_wandb_are_said_to_have_no_effect(tmp_path: Path, notes: list[str]) -> None:
    train(tmp_path, FullGradMonitor(strict=True, alert=True), max_epochs=1)
    assert any("alert=True has no effect" in note for note in notes)


def test_a_recorder_checks_on_demand(tmp_path: Path) -> None:
    images, labels = loader().dataset[:8]
    model = Cornered()
    with FullGradRecorder(tmp_path / "run", (images, labels), strict=True) as recorder:
        assert recorder.check_sanity(model) == {}
        recorder.snapshot(model, step=0, epoch=0)
        recorder.snapshot(model, step=1, epoch=1)
        assert recorder.findings == []  # one snapshot of a trained network is not enough
        checks = recorder.check_sanity(model)
        assert checks["fullgrad"].randomized is not None
        assert checks["fullgrad"].runner_up is not None
        assert recorder.check_sanity(model) is checks
        assert {"corner", "like_untrained"} <= {finding.name for finding in recorder.findings}


@pytest.mark.ill_typed
def test_an_alert_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="alert must be True or False, not 'mail'"):
        FullGradMonitor(alert="mail")  # type: ignore[arg-type]
