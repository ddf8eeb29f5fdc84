"""Runs trainings of one project in this process: python benchmarks/field/training.py PROJECT NAME...

Each writes `NAME/result.json` to the current folder: digests of the state that the monitor must not change, and its messages.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import logging
import os
import random
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROJECTS = Path(__file__).parent / "projects"
TRAINER = "lightning.pytorch:Trainer"
"""The default trainer. The file of a project may name another one."""
EPOCHS = 2


def trainings() -> dict[str, list[str]]:
    """The names of the trainings of each project, read from the files without importing the projects."""
    definition = re.compile(r"^def ([a-z]\w*)\((?:trainer|engine): [\w.]+\)", re.MULTILINE)
    return {file.stem: definition.findall(file.read_text()) for file in sorted(PROJECTS.glob("*.py"))}


def main(project: str, *names: str) -> None:
    said = _listen()
    start = Path.cwd()
    for name in names:
        said.clear()
        (start / name).mkdir()
        os.chdir(start / name)
        try:
            module = importlib.import_module(f"projects.{project}")
            states = trained(getattr(module, name), getattr(module, "TRAINER", TRAINER))
            result = {"version": version(module.DISTRIBUTION), "said": said, **states}
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}".strip()}
        Path("result.json").write_text(json.dumps(result, indent=1))


def trained(fit: Callable[[Any], None], trainer_name: str) -> dict[str, Any]:
    """Runs `fit` with a trainer, and returns the state afterwards.

    Args:
        fit: function that trains something with the given trainer.
        trainer_name: MODULE:CLASS of the trainer.
    """
    module, _, name = trainer_name.partition(":")
    kind = getattr(importlib.import_module(module), name)
    lightning = importlib.import_module("pytorch_lightning" if module == "pytorch_lightning" else "lightning.pytorch")
    lightning.seed_everything(0)
    witness = witness_callback(lightning.Callback)
    options = {"max_epochs": EPOCHS, "accelerator": "cpu", "log_every_n_steps": 1, "callbacks": [witness]}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = kind(**options, **quiet, logger=lightning.loggers.CSVLogger(".", name="", version="run"))
    start = time.perf_counter()
    fit(trainer)
    seconds = time.perf_counter() - start
    states = states_of(getattr(trainer, "trainer", trainer))  # anomalib's Engine contains a Trainer
    return {"seconds": seconds, **witness.parameters(), **states, "metrics": _logged(Path("run/metrics.csv"))}


def witness_callback(base: type) -> Any:
    """A callback that records every parameter object when training begins."""

    class Witness(base):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.module = pl_module
            self.before = dict(pl_module.named_parameters(remove_duplicate=False))
            self.digests = {name: digest(parameter) for name, parameter in self.before.items()}

        def parameters(self) -> dict[str, list[str]]:
            """The names of parameters that are other objects now, that require gradients, and that changed."""
            now = dict(self.module.named_parameters(remove_duplicate=False))
            return {
                "replaced": [name for name in {**self.before, **now} if now.get(name) is not self.before.get(name)],
                "requires_grad": [name for name, parameter in now.items() if parameter.requires_grad],
                "moved": [name for name, parameter in now.items() if digest(parameter) != self.digests.get(name)],
            }

    return Witness()


def states_of(trainer: Any) -> dict[str, Any]:
    """Digests of the weights, optimizers, metrics and random states."""
    import numpy as np
    import torch

    metrics = {**trainer.callback_metrics, **trainer.logged_metrics}
    return {
        "random": {
            "torch": digest(torch.get_rng_state()),
            "numpy": digest(np.random.get_state()),
            "python": digest(random.getstate()),
        },
        "weights": {name: digest(value) for name, value in trainer.lightning_module.state_dict().items()},
        "optimizers": [digest(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "last_metrics": {name: digest(value) for name, value in metrics.items() if not name.startswith("fullgrad/")},
        "steps": trainer.global_step,
    }


def digest(value: Any) -> str:
    """A digest of values of any nesting, equal if they are equal bit by bit. It includes shapes and types of tensors."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        if isinstance(value, torch.nn.parameter.UninitializedTensorMixin):
            return "uninitialized"
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode() + content).hexdigest()[:16]
    if isinstance(value, np.ndarray):
        return digest(torch.from_numpy(value.astype(np.int64)))
    if isinstance(value, dict):
        return digest(tuple((str(key), digest(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return hashlib.sha256(",".join(digest(item) for item in value).encode()).hexdigest()[:16]
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _logged(file: Path) -> dict[str, list[list[str]]]:
    """All logged values except the monitor's: [step, value], by key."""
    found: dict[str, list[list[str]]] = {}
    if file.exists():
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                for key, value in row.items():
                    if value and key not in ("step", "epoch") and not key.startswith("fullgrad/"):
                        found.setdefault(key, []).append([row["step"], value])
    return found


def _listen() -> list[str]:
    """A list to which the monitor's messages are appended, from warnings and from the log."""
    said: list[str] = []

    def hear(text: str) -> None:
        if text.startswith("FullGrad") and text not in said:
            said.append(text)

    show = warnings.showwarning

    def heard(message: Any, *arguments: Any, **options: Any) -> None:
        hear(str(message))
        show(message, *arguments, **options)

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            hear(record.getMessage())

    warnings.showwarning = heard
    warnings.simplefilter("always")  # several trainings may give the same warning
    for name in ("lightning.pytorch", "pytorch_lightning", ""):
        logging.getLogger(name).addHandler(Ear())
    return said


if __name__ == "__main__":
    main(*sys.argv[1:])
