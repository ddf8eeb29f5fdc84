"""The folder of a run's files."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run: `fullgrad/` beside its checkpoints; without a logger, `fullgrad/version_0/` in the default root.

    If these are not on a local disk (s3://...), it is `fullgrad/version_0/` in the working directory.
    """
    logger, root = trainer.logger, str(trainer.default_root_dir)
    log_dir = getattr(logger, "log_dir", None)
    places = [getattr(logger, name, None) for name in ("save_dir", "name", "version")]
    if isinstance(log_dir, (str, Path)):
        folder = os.path.join(log_dir, "fullgrad")
    elif logger is None or not all(place is None or isinstance(place, (str, int, Path)) for place in (log_dir, *places)):
        folder = os.path.join(root, "fullgrad", "version_0")  # the name of a mock, for example, is not text
    else:
        save_dir, name, version = places
        version = version if isinstance(version, str) else f"version_{version}"
        folder = os.path.join(save_dir or root, str(name), version, "fullgrad")
    return Path("fullgrad", "version_0") if "://" in folder else Path(folder)
