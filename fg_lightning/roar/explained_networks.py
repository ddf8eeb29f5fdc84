"""The networks that are explained: trained on intact images, or read from checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from rich.console import Console

from fg_lightning.atomic_files import replace_file
from fg_lightning.checkpoints import one_line, read_checkpoint
from fg_lightning.errors import CannotRun
from fg_lightning.roar.cell_training import determinism, fit, test
from fg_lightning.roar.config import NETWORK_SEED, ROARConfig
from fg_lightning.roar.engines import Engine
from fg_lightning.roar.experiment_folder import check_network, explain_disk_faults
from fg_lightning.roar.explained_class import TargetCheck


def make_networks(config: ROARConfig, engine: Engine, console: Console) -> None:
    """Makes the weights of the networks that have none yet, and checks those of the others.

    Raises:
        CannotRun: if a network cannot be tested or trained, has no class to explain, is not that of a checkpoint, or was changed.
    """
    missing = [network for network in range(config.num_networks) if not config.network_path(network).exists()]
    if missing:
        for outcome in engine.run(partial(check_test, config), [NETWORK_SEED]):
            if outcome.reason:
                raise CannotRun(f"a network cannot be tested on the data: {outcome.reason}")
    if missing and config.checkpoints:
        weights = {network: read_weights(config.checkpoints[network]) for network in missing}
        for network in missing:
            load_weights(config.model(), weights[network], config.checkpoints[network])
        for network in missing:
            write_weights(config.network_path(network), weights[network])
    elif missing:
        which = "the network that is" if len(missing) == 1 else f"{len(missing)} networks that are"
        console.print(f"training {which} explained: {config.max_epochs} epochs", highlight=False)
        for outcome in engine.run(partial(train_network, config), missing):
            if outcome.reason:
                raise CannotRun(f"the network that is explained could not be trained: {outcome.reason}")
    for network in range(config.num_networks):
        check_network(config.folder, network, config.network_path(network))


def check_test(config: ROARConfig, seed: int) -> None:
    """Tests an untrained network on one batch, so that faults of a test are reported before anything is trained.

    Raises:
        CannotRun: if there is no test data, the test does not log the metric that counts, or images have no class to explain.
    """
    with determinism(seed, config.num_threads):
        options = {**config.trainer, "limit_test_batches": 1}
        metrics = test(config.model(), config.data(), options, None, TargetCheck(config.target))
    select_accuracy(metrics, config.metric)


def train_network(config: ROARConfig, network: int) -> None:
    """Trains a network that is explained, and writes its weights."""
    with determinism(NETWORK_SEED + network, config.num_threads):
        model = config.model()
        options = {"enable_progress_bar": sys.stdout.isatty() and config.num_networks == 1, **config.trainer}
        fit(model, config.data(), config.max_epochs, options, None)
    with explain_disk_faults(config.folder):
        write_weights(config.network_path(network), model.state_dict())


def load_network(config: ROARConfig, network: int) -> LightningModule:
    """An explained network."""
    model, path = config.model(), config.network_path(network)
    load_weights(model, read_weights(path), path)
    return model


def select_accuracy(metrics: Mapping[str, float], name: str | None) -> float:
    """The test metric that counts.

    Args:
        metrics: what the test logged.
        name: of the metric. None: the one with "acc" in its name.

    Raises:
        CannotRun: if it was not logged, or not exactly one has "acc" in its name.
    """
    if name is not None:
        if name not in metrics:
            raise CannotRun(
                f"the test logged no metric {name!r}, but {', '.join(metrics) or 'nothing'}; name one of these with metric"
            )
        return metrics[name]
    names = [key for key in metrics if "acc" in key.lower()]
    if len(names) != 1:
        raise CannotRun(
            f"the test logged {', '.join(metrics) or 'nothing'}, of which {len(names)} have 'acc' in their names; choose with "
            "metric which one counts (a LightningModule logs it in its test_step)"
        )
    return metrics[names[0]]


def write_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Raises what `replace_file` does."""
    path.parent.mkdir(exist_ok=True)
    with replace_file(path) as file:
        torch.save(weights, file)


def read_weights(path: Path) -> Mapping[str, Any]:
    """The weights in a checkpoint of Lightning's, or in a saved `state_dict`.

    Raises:
        CannotRun: if the file cannot be read, or holds something else.
    """
    content = read_checkpoint(path)
    weights = content.get("state_dict", content)
    if not isinstance(weights, Mapping):
        raise CannotRun(f"{path} holds {type(weights).__name__}, but a checkpoint of Lightning's or a state_dict is needed")
    return weights


def load_weights(model: LightningModule, weights: Mapping[str, Any], path: Path) -> None:
    """Loads weights into a model. Layers that Lightning makes in `configure_model` are made first.

    Args:
        model: the model.
        weights: by name.
        path: of their file.

    Raises:
        CannotRun: if they are not of this model.
    """
    model.configure_model()
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CannotRun(f"the checkpoint {path} is not of this model: {one_line(error)}") from error
