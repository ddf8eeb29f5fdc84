"""Folders as a monitored run and a ROAR experiment leave them, written by the real classes; and a report read back."""

import base64
import io
import json
import math
from html.parser import HTMLParser

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fg_lightning.history import History
from fg_lightning.history.records import NUMBERS, TERMS, Answers, Explanation, LayerTerms, Snapshot
from fg_lightning.removal import ranks
from fg_lightning.roar.cells import ALL, MASKS, CellResult, list_cells, write_result
from fg_lightning.roar.experiment_folder import digest
from fg_lightning.roar.saliency_store_files import Manifest, SplitIdentity, checksums_of

NAMES = ["cat", "dog", "bird"]


def smooth_maps(n, size, generator, signed=False):
    """Random blobs [N, 1, size, size], as maps are."""
    coarse = torch.rand(n, 1, max(2, size // 8), max(2, size // 8), generator=generator)
    return F.interpolate(coarse - (0.5 if signed else 0.0), (size, size), mode="bilinear")


def run(folder, num_snapshots=4, n=5, size=12, *, signed=False, names=NAMES, layers=2, strip=True, seed=0, every=1, **settings):
    """A run of some snapshots of n images, which are the same for any seed; returns the maps of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    pictures = [np.random.default_rng(i).integers(0, 255, (size, size, 3), dtype=np.uint8) for i in range(n)]
    about = {"module": "Net", "psi": "signed" if signed else "absolute", "images": [n, 3, size, size], "class_names": names}
    about |= {"fingerprint": f"of {n} images", "labels": labels.tolist(), **settings}
    history = History(folder)
    history.begin(about, torch.rand(n, 3, size, size, generator=generator), labels, pictures)
    maps = []
    for epoch in range(0, num_snapshots * every, every):
        maps.append(smooth_maps(n, size, generator, signed))
        numbers = {
            f"fullgrad/{key}": (epoch + 1) * 10.0 ** -(i + 1) for i, key in enumerate(NUMBERS) if epoch or "drift" not in key
        }
        history.add(
            Snapshot(epoch, 10 * epoch, numbers),
            Explanation(
                maps[-1],
                Answers(labels, (labels + 1) % 3 if epoch == 0 else labels, torch.rand(n, generator=generator)),
                {name: torch.rand(n, generator=generator) for name in TERMS},
                [
                    LayerTerms("", "input", 0.5),
                    *(LayerTerms(f"layer.{i}", "explicit", (-1) ** i / (i + 2)) for i in range(layers)),
                ],
            ),
            labels,
        )
    if strip:
        (folder / "film_strip.png").touch()
    return maps


def experiment(
    folder,
    methods=("random", "fullgrad"),
    fractions=(0.25, 0.5),
    seeds=2,
    *,
    mode="roar",
    order="morf",
    target="predicted",
    fills=("dataset_mean",),
    networks=1,
    controls=True,
    images=7,
    side=6,
):
    """An experiment whose accuracies fall with the fraction; returns the ranks of its test images by method.

    Random's masks alone reach 0.1, those of the other methods 0.6.
    """
    (folder / "cells").mkdir(parents=True)
    about = {
        "mode": mode,
        "order": order,
        "target": target,
        "model": "my.Net",
        "data": {"calls": "my.Data"},
        "fills": {fill: fill for fill in fills},
        "max_epochs": 3,
    }
    (folder / "experiment.json").write_text(json.dumps(about))
    cells = list_cells(methods, (0.0, *fractions), fills, num_networks=networks, num_seeds=seeds, controls=controls and seeds > 0)
    for cell in cells:
        i = list(methods).index(cell.method) if cell.method != ALL else 0
        accuracy = 0.9 - cell.fraction * (i + 1) / 2 - (cell.seed + cell.network) / 100 * (cell.fraction > 0)
        if cell.fill in fills[1:]:
            accuracy += i * cell.fraction
        if cell.control == MASKS:
            accuracy = 0.1 if cell.method == "random" else 0.6
        write_result(folder, CellResult(cell, accuracy, {}, 0.1 * (i + 1) * (cell.fraction > 0), seconds=1.5))
    stored = {}
    for i, method in enumerate(methods):
        maps = torch.rand(images, 1, side, side, generator=torch.Generator().manual_seed(i))
        stored[method] = ranks(maps)
        store = folder / "stores" / method
        store.mkdir(parents=True)
        (store / "test.ranks").write_bytes(stored[method].numpy().astype(np.uint16).tobytes())
        checksums = checksums_of(stored[method].numpy().astype(np.uint16)).tobytes()
        (store / "test.checksums").write_bytes(checksums)
        splits = {"test": SplitIdentity(images, "0", "Set", digest(checksums))}
        Manifest(method, {}, "predicted", "Net 0", (side, side), 50, splits, finished=True, channel_mean=(0.0,)).write(store)
    return stored


class Page(HTMLParser):
    """A report, read back.

    Attributes:
        scripts: what stands in every script, by its id, or its place where it has none.
        elements: (tag, attributes) of all.
        words: what the user reads, without scripts and styles.
    """

    def __init__(self, path):
        super().__init__()
        self.scripts, self.elements, self.words, self._inside = {}, [], "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style", "title"):
            self._inside = [tag, dict(attrs).get("id", len(self.scripts))]

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[0]:
            self._inside = []

    def handle_data(self, data):
        if self._inside and self._inside[0] == "script":
            self.scripts[self._inside[1]] = self.scripts.get(self._inside[1], "") + data
        elif not self._inside:
            self.words += data

    def data(self, name="data"):
        return json.loads(self.scripts[name])

    def tiles(self, name, count):
        """The tiles of a sprite, [count, height, width]."""
        picture = decoded(self.scripts[name])[..., 0]
        columns = math.ceil(math.sqrt(count))
        height, width = picture.shape[0] // math.ceil(count / columns), picture.shape[1] // columns
        corners = [(i // columns * height, i % columns * width) for i in range(count)]
        return np.stack([picture[top : top + height, left : left + width] for top, left in corners])


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
