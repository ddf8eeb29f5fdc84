"""The networks that are explained: trained on intact images, or read from checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from rich.console import Console
from torch import Tensor

from fg_lightning.atomic_files import replace_file
from fg_lightning.checkpoints import one_line, read_checkpoint
from fg_lightning.errors import CannotRun
from fg_lightning.fullgrad.target import Selection, TargetError, main_output
from fg_lightning.removal.pixel_ranking import check_maps
from fg_lightning.roar.cell_training import determinism, fit, test
from fg_lightning.roar.config import NETWORK_SEED, ROARConfig
from fg_lightning.roar.engines import Engine, describe_error
from fg_lightning.roar.experiment_folder import check_network, explain_disk_faults
from fg_lightning.roar.explained_class import choose_classes, compute_maps, compute_output
from fg_lightning.roar.image_pixels import images_and_labels

NUM_TRIED = 2
"""Number of images that every method explains before anything is trained."""


def check_networks(config: ROARConfig, engine: Engine, methods: Sequence[str], place: Any) -> None:
    """Checks that networks can be tested and explained by some methods, before anything is written.

    Args:
        config: settings of the experiment.
        engine: engine that runs the test.
        methods: names of the methods.
        place: index or key of the images in a sample, and in a batch if that has the same form.

    Raises:
        CannotRun: if they cannot, or a checkpoint does not fit this model.
    """
    for outcome in engine.run(partial(check_test, config, place), [tuple(methods)] if methods or _missing(config) else []):
        if outcome.reason:
            raise CannotRun(f"a network cannot be tested on the data: {outcome.reason}")
    for path in config.checkpoints:
        load_weights(config.model(), read_weights(path), path)


def make_networks(config: ROARConfig, engine: Engine, console: Console) -> None:
    """Trains or copies the networks that the folder does not hold yet.

    Raises:
        CannotRun: if a network cannot be trained, or the weights of one in the folder were changed.
    """
    missing = _missing(config)
    for network in set(range(config.num_networks)) - set(missing):
        check_network(config.folder, network, config.network_path(network))
    if config.checkpoints:
        for network in missing:
            write_weights(config.network_path(network), read_weights(config.checkpoints[network]))
    elif missing:
        which = "the network that is" if len(missing) == 1 else f"{len(missing)} networks that are"
        console.print(f"training {which} explained: {config.max_epochs} epochs", highlight=False)
        for outcome in engine.run(partial(train_network, config), missing):
            if outcome.reason:
                raise CannotRun(f"the network that is explained could not be trained: {outcome.reason}")
    for network in missing:
        check_network(config.folder, network, config.network_path(network))


def _missing(config: ROARConfig) -> list[int]:
    return [network for network in range(config.num_networks) if not config.network_path(network).exists()]


def check_test(config: ROARConfig, place: Any, methods: Sequence[str]) -> None:
    """Tests an untrained network on one batch, and explains images of it. Errors are then reported before anything is trained.

    Args:
        config: settings of the experiment.
        place: see `check_networks`.
        methods: names of the methods.

    Raises:
        CannotRun: if there is no test data, the test does not log the metric that counts, images have no class to explain, or a
            method cannot explain the network.
    """
    with determinism(NETWORK_SEED, config.num_threads):
        options = {**config.trainer, "limit_test_batches": 1}
        metrics = test(config.model(), config.data(), options, None, ExplanationTrial(config, place, methods))
    select_accuracy(metrics, config.metric)


class ExplanationTrial(Callback):
    """Explains a few images of the first batch of a test. See `check_test`."""

    def __init__(self, config: ROARConfig, place: Any, methods: Sequence[str]) -> None:
        self.config = config
        self.place = place
        self.methods = methods

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx or not self.methods:
            return
        images, labels = images_and_labels(batch, self.place)
        target = self.config.target
        classes = choose_classes(target, labels, pl_module, images, "test", range(len(images)), 0)
        output = compute_output(pl_module, images)
        if target != "predicted":
            try:
                Selection(classes, len(images))(output)
            except TargetError as error:
                raise CannotRun(f"target {target} does not fit the network: {error}") from error
        if not main_output(output).isfinite().all():  # the network is untrained; after training its output may be finite
            return
        images = images[:NUM_TRIED]
        classes = classes[:NUM_TRIED] if isinstance(classes, Tensor) else classes
        for name in self.methods:
            try:
                check_maps(compute_maps(self.config.factories[name](pl_module), images, classes), images)
            except Exception as error:  # noqa: PERF203 (each has its own)
                raise CannotRun(
                    f"the method {name} failed on {len(images)} images, before anything was trained: {describe_error(error)}. "
                    "Correct it, or leave it out of methods"
                ) from error


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
    """The test metric that the experiment compares.

    Args:
        metrics: the metrics that the test logged, by name.
        name: name of the metric. None: the one with "acc" in its name.

    Raises:
        CannotRun: if it was not logged, or not exactly one has "acc" in its name.
    """
    if name is not None:
        if name not in metrics:
            raise CannotRun(
                f"the test logged no metric {name!r}; it logged {', '.join(metrics) or 'none'}. Choose one of these with metric"
            )
        return metrics[name]
    names = [key for key in metrics if "acc" in key.lower()]
    if len(names) != 1:
        raise CannotRun(
            f"the test logged {', '.join(metrics) or 'nothing'}, and {len(names)} of these have 'acc' in their names, but exactly "
            "one is needed; choose one with metric (a LightningModule logs it in its test_step)"
        )
    return metrics[names[0]]


def write_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Writes weights to a file. Raises what `replace_file` does."""
    path.parent.mkdir(exist_ok=True)
    with replace_file(path) as file:
        torch.save(weights, file)


def read_weights(path: Path) -> Mapping[str, Any]:
    """The weights in a checkpoint of Lightning, or in a saved `state_dict`.

    Raises:
        CannotRun: if the file cannot be read, or holds something else.
    """
    content = read_checkpoint(path)
    weights = content.get("state_dict", content)
    if not isinstance(weights, Mapping):
        raise CannotRun(f"{path} holds {type(weights).__name__}, but a Lightning checkpoint or a state_dict is needed")
    return weights


def load_weights(model: LightningModule, weights: Mapping[str, Any], path: Path) -> None:
    """Loads weights into a model, after the layers that `configure_model` makes.

    Args:
        model: the model.
        weights: the weights by name.
        path: file of the weights.

    Raises:
        CannotRun: if they do not fit this model.
    """
    model.configure_model()
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CannotRun(f"the checkpoint {path} does not fit this model: {one_line(error)}") from error
