"""The weights of the network that is explained, on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from fg_lightning.atomic import replacing, write_json
from fg_lightning.checkpoints import in_one_line, read_checkpoint
from fg_lightning.errors import CannotRun

Weights = Mapping[str, Any]


def write_weights(path: Path, weights: Weights) -> None:
    """Raises what `replacing` does."""
    with replacing(path) as file:
        torch.save(weights, file)


def read_weights(path: Path) -> Weights:
    """Those of a checkpoint of Lightning's, or of a saved `state_dict`.

    Raises:
        CannotRun: if the file cannot be read, or holds something else.
    """
    found = read_checkpoint(path)
    weights = found.get("state_dict", found)
    if not isinstance(weights, Mapping):
        raise CannotRun(f"{path} holds {type(weights).__name__}, but a checkpoint of Lightning's or a state_dict is needed")
    return weights


def load_weights(model: LightningModule, weights: Weights, path: Path) -> None:
    """
    Args:
        model: whose weights they become; one that Lightning makes whole in `configure_model` is made whole first.
        weights: by name.
        path: that they came from.

    Raises:
        CannotRun: if they are not of this model.
    """
    model.configure_model()
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CannotRun(f"the checkpoint {path} is not of this model: {in_one_line(error)}") from error


def check_base(about: Path, path: Path) -> None:
    """Compares the network that is explained with its hash in the experiment's file, and writes it there if there is none.

    Args:
        about: the file that says what the experiment is.
        path: of the weights.

    Raises:
        CannotRun: if the weights are not those that the experiment began with.
    """
    there, found = json.loads(about.read_text()), hash_of(path)
    if "base" not in there:
        write_json(about, {**there, "base": found})
    elif there["base"] != found:
        raise CannotRun(
            f"{path} was changed: it is not the network that this experiment explains. Bring it back from a copy, or take another "
            "folder with --output"
        )


def hash_of(path: Path) -> str:
    """
    Raises:
        CannotRun: if the file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise CannotRun(_unreadable(path, error)) from error


def _unreadable(path: Path, error: OSError) -> str:
    return f"the checkpoint {path} cannot be read: {error.strerror}"
