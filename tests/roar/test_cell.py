"""The numbers of single cells, from Lightning's own loop over arrays that are masked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng

from fg_lightning.removal import noisy_linear
from fg_lightning.roar import ROARConfig, SaliencyStore
from fg_lightning.roar.cell_training import silence_lightning
from fg_lightning.roar.cells import MASKS, Cell
from fg_lightning.roar.config import cell_seed
from fg_lightning.roar.experiment import make_store, run_cell
from fg_lightning.roar.explained_networks import train_network
from tests.helpers.tiny_squares import Data, Net

pytestmark = pytest.mark.filterwarnings("error")  # the package silences Lightning's advice itself

FRACTION = 0.25

CASES = [
    ("roar", "morf", "dataset_mean", "predicted"),
    ("roar", "lerf", 40.0, "label"),
    ("roar", "morf", "noisy_linear", "label"),
    ("kar", "morf", "dataset_mean", "predicted"),
    ("kar", "lerf", 10.0, "label"),
    ("road", "lerf", "noisy_linear", "predicted"),
]


class Precise(Net):
    """Its test logs a number that every pixel has a part in."""

    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)
        self.log("test/loss", F.cross_entropy(self(batch[0]), batch[1]))


def fill_pixels(image, gone, fill, mean, seed):
    """Replaces pixels of [H, W] bytes in place."""
    if fill == "noisy_linear":
        batch = torch.from_numpy(image)[None, None] / 255
        filled = noisy_linear(batch, torch.from_numpy(gone)[None, None], seed=seed)[0, 0]
        image[gone] = (filled * 255).round().clamp(0, 255).byte().numpy()[gone]
    elif fill == MASKS:
        image[gone], image[~gone] = 255, 0
    else:
        image[gone] = round(mean if fill == "dataset_mean" else fill)


def variation(masks):
    """Of [N, H, W], a pixel."""
    steps = sum(np.abs(np.diff(masks.astype(float), axis=axis)).sum() for axis in (1, 2))
    return steps / masks.size


@pytest.mark.parametrize(("mode", "order", "fill", "target"), CASES)
def test_a_cell_is_a_training_on_what_is_left(tmp_path, mode, order, fill, target):
    settings = {"mode": mode, "order": order, "fills": fill, "target": target, "max_epochs": 1}
    config = ROARConfig(tmp_path, Data, Precise, methods=["gradient"], **settings)
    network = 0 if mode == "road" else 1
    (name,) = config.fill_values
    cell = Cell("gradient", FRACTION, 0 if mode == "road" else 1, network, name)
    check_cell(config, cell, fill)


@pytest.mark.parametrize(("mode", "order"), [("roar", "morf"), ("roar", "lerf"), ("kar", "morf")])
def test_the_control_sees_which_pixels_are_removed_and_nothing_else(tmp_path, mode, order):
    config = ROARConfig(tmp_path, Data, Precise, methods=["gradient"], mode=mode, order=order, max_epochs=1)
    check_cell(config, Cell("gradient", FRACTION, 0, 0, control=MASKS), MASKS)


def check_cell(config, cell, fill):
    """Runs a cell, and again by hand."""
    mode, order, seed = config.mode, config.order, cell_seed(cell)
    train_network(config, cell.network)
    make_store(config, ("gradient", cell.network))
    mine = run_cell(config, cell)
    store = SaliencyStore(config.store_path("gradient", cell.network))
    assert store.manifest.target == config.target

    data = Data()
    data.setup("fit")
    gone = {}
    for split, dataset, own in (
        ("train", data.train.dataset, range(40)),
        ("val", data.val.dataset, range(40, 50)),
        ("test", data.test, range(20)),
    ):
        ranks = np.asarray(store.ranks(split))
        count = round(FRACTION * ranks[0].size)
        chosen = ranks < count if order == "morf" else ranks >= ranks[0].size - count
        gone[split] = ~chosen if mode == "kar" else chosen
        for place, index in enumerate(own):
            fill_pixels(dataset.pixels[index], gone[split][place], fill, store.manifest.channel_mean[0], seed)
    data.setup = lambda stage: None
    before = torch.get_num_threads()
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    try:
        torch.set_num_threads(1)
        with silence_lightning(), isolate_rng():
            seed_everything(seed, workers=True, verbose=False)
            model = Precise()
            trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, **silent)
            if mode == "road":
                model.load_state_dict(torch.load(config.network_path(cell.network), weights_only=True))
            else:
                trainer.fit(model, data)
            (scores,) = trainer.test(model, data, verbose=False)
    finally:
        torch.set_num_threads(before)
    assert mine.metrics == scores
    assert mine.accuracy == scores["test/accuracy"]
    assert mine.total_variation == pytest.approx(variation(gone["test"]), rel=1e-6)  # summed in float32
