"""Measure how often each finding fires, on healthy and other trainings: python benchmarks/findings.py --output FOLDER

Trains small networks on MNIST digits and, with --fashion (a folder with Fashion-MNIST's four .gz files), on Fashion-MNIST. It saves
the input of a monitor for each training in FOLDER/NAME.npz, so that thresholds can be changed without training again. Trainings
whose file exists are skipped. Then it writes docs/findings.csv: a row for each training and method, with every number that was
tested as a finding.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset
from torchvision.models.resnet import BasicBlock
from torchvision.models.vision_transformer import VisionTransformer

from fg_lightning.atomic_files import replace_file
from fg_lightning.attribution import METHODS
from fg_lightning.demo import DigitClassifier, DigitsDataModule
from fg_lightning.fullgrad import FullGrad
from fg_lightning.history.records import Answers, Explanation
from fg_lightning.metrics.border_and_corners import border_share, corner_shares
from fg_lightning.metrics.drift import cosine_drift, rank_correlation
from fg_lightning.metrics.localization import pointing_game, relevance_mass
from fg_lightning.metrics.parameter_randomization import randomize_parameters
from fg_lightning.planted import PlantedShortcut
from fg_lightning.recording.findings import RULES, Observations
from fg_lightning.recording.sanity_checks import SanityCheck

NUM_PROBE = 32
"""Number of images in the probe, balanced over the classes. The first 8, as many as a monitor's default, have 8 classes."""

OTHERS = ("gradient", "gradcam", "guided_backprop", "edges")
"""Methods that explain the trained network, in addition to FullGrad."""

CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


@dataclass(frozen=True)
class Training:
    """A training.

    Args:
        name: name of its file.
        kind: healthy; random_marks (healthy: uninformative marks); shortcut (a mark in a corner tells the class); frame (the
            brightness of the border tells the class); barely_trained; diverged.
        network: a name in `NETWORKS`.
        data: digits or fashion.
        corner: corner of the mark.
        size: side of the mark in pixels. None: see `PlantedShortcut`.
    """

    name: str
    kind: str
    seed: int
    network: str = "demo"
    data: str = "digits"
    num_epochs: int = 5
    lr: float = 1e-2
    corner: str = "top_left"
    size: int | None = None


def trainings() -> Iterator[Training]:
    """Ten pairs of trainings as in the demo, then others."""
    for seed in range(10):
        for kind in ("healthy", "shortcut"):
            yield Training(f"demo_{kind}_{seed}", kind, seed)
    networks = ["plain", "plain_flat", "plain_norm", "resnet", "vit", "demo_narrow"]
    for seed in range(17):
        network = networks[seed % len(networks)]
        data = "fashion" if (seed // len(networks)) % 2 else "digits"
        lr = {"vit": 2e-3, "plain": 3e-3, "plain_flat": 2e-3}.get(network, (1e-2, 3e-3)[seed % 2])
        epochs = 8 if network in ("plain", "vit") else (3, 6)[seed // 12]
        corner, size = CORNERS[seed % 4], (3, 4, 5)[seed % 3] if seed < 6 else 6
        for kind in ("healthy", "shortcut"):
            yield Training(f"{network}_{data}_{kind}_{seed}", kind, 100 + seed, network, data, epochs, lr, corner, size)
    others = ["demo_narrow", "plain_flat", "plain_norm", "plain"]
    for kind, first_seed, num_epochs, lr in (
        ("barely_trained", 300, 1, 1e-5),
        ("frame", 600, 4, 3e-3),
        ("diverged", 500, 1, 3.0),
        ("random_marks", 200, 4, 3e-3),
    ):
        for number, network in enumerate(others):
            data = ("digits", "fashion")[number % 2]
            yield Training(f"{kind}_{number}", kind, first_seed + number, network, data, num_epochs, lr, CORNERS[number])


# --- networks and data


def plain(norm: bool = False, flat: bool = False) -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Linear(32 * 9, 10)] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(*block(1, 12), *block(12, 24), *block(24, 32), *head)


def resnet() -> nn.Module:
    def stage(inputs: int, outputs: int, stride: int) -> nn.Module:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        return BasicBlock(inputs, outputs, stride, shortcut)

    stem = [nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(
        *stem, stage(12, 12, 1), stage(12, 24, 2), stage(24, 48, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)
    )


def vit() -> nn.Module:
    network = VisionTransformer(28, patch_size=4, num_layers=3, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10)
    network.conv_proj = nn.Conv2d(1, 48, 4, 4)
    nn.init.trunc_normal_(network.heads.head.weight, std=0.02)  # with torchvision's zeros, all terms would be zero
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "demo": DigitClassifier,
    "demo_narrow": lambda: DigitClassifier(width=8),
    "plain": plain,
    "plain_flat": lambda: plain(flat=True),
    "plain_norm": lambda: plain(norm=True),
    "resnet": resnet,
    "vit": vit,
}


class FashionDataModule(DigitsDataModule):
    """4,000 images of Fashion-MNIST for training, 500 for validation and 500 for the test, from -1 to 1."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def setup(self, stage: str) -> None:
        images, labels = (
            torch.from_numpy(
                np.frombuffer(
                    gzip.decompress((self._folder / f"train-{name}-ubyte.gz").read_bytes()), np.uint8, offset=start
                ).copy()
            )
            for name, start in (("images-idx3", 16), ("labels-idx1", 8))
        )
        dataset = TensorDataset(images.reshape(-1, 1, 28, 28) / 127.5 - 1, labels.long())
        self.train, self.val, self.test = (Subset(dataset, range(*part)) for part in ((0, 4000), (4000, 4500), (4500, 5000)))


class Data:
    """The images of a training with their marks, in memory."""

    def __init__(self, training: Training, fashion: Path | None) -> None:
        self._training = training
        self._fashion = fashion

    def split(self, name: str, mark: str | None) -> tuple[Tensor, Tensor]:
        training = self._training
        data: Any = FashionDataModule(self._fashion) if training.data == "fashion" and self._fashion else DigitsDataModule()
        if mark is None:
            data.setup("fit")
            dataset = getattr(data, name)
        else:
            planted = PlantedShortcut(data, "corner", mark=mark, size=training.size, corner=training.corner, seed=training.seed)  # type: ignore[arg-type]
            planted.setup("fit")
            dataset, _ = planted.dataset(name)
        samples = [dataset[i] for i in range(len(dataset))]
        images, labels = torch.stack([image for image, _ in samples]), torch.tensor([int(label) for _, label in samples])
        return (draw_frames(images, labels) if training.kind == "frame" else images), labels


def draw_frames(images: Tensor, labels: Tensor) -> Tensor:
    """Images with a frame of two pixels. Its brightness rises with the class."""
    framed = (2 * (labels + 1) / 10 - 1).reshape(-1, 1, 1, 1).expand_as(images).clone()
    framed[..., 2:-2, 2:-2] = images[..., 2:-2, 2:-2]
    return framed


def balance(labels: Tensor) -> Tensor:
    """Indices of `NUM_PROBE` images: one of each class, then the next of each."""
    rounds = [(labels == label).nonzero().flatten()[: 1 + NUM_PROBE // 10] for label in range(10)]
    return torch.stack(rounds, 1).flatten()[:NUM_PROBE]


# --- one training


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    return float((torch.cat([network(part) for part in images.split(250)]).argmax(1) == labels).float().mean())


def train(training: Training, fashion: Path | None) -> dict[str, Any]:
    """Trains a network and returns the input of a monitor: maps of every snapshot, and maps of the sanity checks."""
    torch.manual_seed(training.seed)
    mark = {"shortcut": "label", "random_marks": "random"}.get(training.kind)
    data = Data(training, fashion)
    (images, labels), (val_images, val_labels) = data.split("train", mark), data.split("val", mark)
    network = NETWORKS[training.network]()
    optimizer = torch.optim.Adam(network.parameters(), training.lr)
    num_batches = len(images) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=training.num_epochs * num_batches)
    chosen = balance(val_labels)
    probe, targets = val_images[chosen], val_labels[chosen]
    maps, errors, accuracies = [], [], []
    for epoch in range(training.num_epochs + 1):
        network.train()
        for rows in torch.randperm(len(images)).split(64)[:num_batches] if epoch else ():
            loss = F.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        maps_now, terms = FullGrad(network).attribute_with_terms(probe, targets)
        maps.append(maps_now)
        errors.append(terms.completeness_error)
        accuracies.append(accuracy(network, val_images, val_labels))
    kept = {"maps": torch.stack(maps), "completeness_error": torch.stack(errors), "accuracy": torch.tensor(accuracies)}
    kept |= {"images": probe, "labels": targets, "num_missing": torch.tensor(len(terms.missing_ops)), "output": terms.output}
    zero = torch.zeros(NUM_PROBE)
    explicit, implicit = (sum(of_kind.values(), zero) for of_kind in (terms.bias_terms, terms.implicit_terms))
    assert isinstance(terms.input_term, Tensor)
    kept |= {"input_term": terms.input_term, "bias_term": explicit, "implicit_term": implicit}
    kept |= {"num_lost": torch.tensor(len(terms.lost)), "num_drawn": torch.tensor(len(terms.drawn))}
    if mark == "label":
        kept["shuffled_accuracy"] = torch.tensor(accuracy(network, *data.split("val", "shuffled")))
    return kept | check_sanity(network, probe, targets)


def check_sanity(network: nn.Module, probe: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Maps of each method: for the label, for the most probable other class, and for the network with random weights."""
    with torch.no_grad():
        logits = network(probe)
    kept = {"logits": logits}
    others = logits.scatter(1, targets[:, None], -torch.inf).argmax(1)
    randomized = randomize_parameters(network)
    for method in ("fullgrad", *OTHERS, *(["locally_affine"] if isinstance(network, VisionTransformer) else [])):
        factory: Any = METHODS.get(method, lambda model: FullGrad(model, reading="locally_affine"))
        try:
            kept[f"{method}/maps"] = factory(network).attribute(probe, targets)
            kept[f"{method}/runner_up"] = factory(network).attribute(probe, others)
            kept[f"{method}/randomized"] = factory(randomized).attribute(probe, targets)
        except (ValueError, RuntimeError) as error:
            print(f"  {method}: {error}")
    return kept


def to_numpy(name: str, tensor: Tensor) -> np.ndarray:
    """A tensor as an array. Maps are divided by their largest magnitude and stored in half precision."""
    if tensor.ndim >= 4 and name != "images":
        tensor = (tensor / tensor.abs().amax((-1, -2), keepdim=True).clamp_min(1e-30)).half()
    return tensor.detach().numpy()


# --- the table


def measure(training: Training, kept: Mapping[str, np.ndarray], method: str, num_images: int) -> dict[str, Any]:
    """Every number that was tested as a finding, for one method's maps of the first images."""

    def maps_of(name: str, index: int = -1) -> Tensor:
        stacked = kept[name][index] if name == "maps" else kept[name]
        return torch.from_numpy(stacked[:num_images]).float()

    def observe(maps: Tensor, index: int) -> Observations:
        terms = {name: torch.from_numpy(kept[name][:num_images]) for name in ("output", "input_term", "bias_term", "implicit_term")}
        terms["completeness_error"] = torch.from_numpy(kept["completeness_error"][index][:num_images])
        missing = ("",) * int(kept["num_missing"])
        lost, num_drawn = ("",) * int(kept.get("num_lost", 0)), int(kept.get("num_drawn", 0))
        explanation = Explanation(maps, Answers(), terms, [], missing_ops=missing, lost_ops=lost, num_drawn=num_drawn)
        randomized, runner_up = (correlate(kept.get(f"{method}/{name}"), num_images, maps) for name in ("randomized", "runner_up"))
        check = SanityCheck(randomized, runner_up)
        untrained = {"fullgrad": maps_of("maps", 0)} if method == "fullgrad" else {}
        of_run = drift if method == "fullgrad" else None
        # The rules need a network that predicts well. Here, every network is measured.
        return Observations(index, explanation, index > 0, untrained, of_run, {"fullgrad": check}, accuracy=1.0)

    last = len(kept["maps"]) - 1
    drift = max(float(cosine_drift(maps_of("maps", index), maps_of("maps", index - 1)).mean()) for index in range(1, last + 1))
    maps = maps_of(f"{method}/maps")
    row: dict[str, Any] = {}
    for rule in RULES:
        measured = rule.measure(observe(maps, last), "fullgrad")
        row[rule.name] = "" if isinstance(measured, str) else measured.value
    own = [maps_of("maps", index) for index in range(last + 1)] if method == "fullgrad" else [maps]
    for rule in RULES:
        if not rule.is_last and rule.is_of_maps and last > 1 and method == "fullgrad":  # as in a monitor
            ever = [rule.measure(observe(of_snapshot, 1), "fullgrad") for of_snapshot in own[1:]]
            values = [measured.value for measured in ever if not isinstance(measured, str)]
            row[f"{rule.name}_twice"] = max(map(min, pairwise(values)))
    return row | try_more(training, kept, maps, own, method, num_images)


def try_more(
    training: Training, kept: Mapping[str, np.ndarray], maps: Tensor, own: list[Tensor], method: str, num_images: int
) -> dict[str, Any]:
    """Numbers that did not become findings."""
    shares = sorted(float(share.mean()) for share in corner_shares(maps).values())
    row: dict[str, Any] = {"corner_mass": shares[-1], "corner_mass_ratio": shares[-1] / max((shares[1] + shares[2]) / 2, 1e-9)}
    row["border_mass"] = float(border_share(maps).mean())
    for other in ("randomized", "runner_up"):
        if f"{method}/{other}" in kept:
            row[f"cosine_{other}"] = 1 - float(
                cosine_drift(maps, torch.from_numpy(kept[f"{method}/{other}"][:num_images]).float()).mean()
            )
    ink = F.max_pool2d((torch.from_numpy(kept["images"][:num_images]) > 0).float(), 5, 1, 2) > 0  # where the object is
    if training.kind not in ("frame",):
        row["mask_pointing"] = float(pointing_game(maps, ink).mean())
        row["mask_mass"] = float(relevance_mass(maps, ink).mean() / ink.float().mean())
    if len(own) > 1:
        drifts = [float(cosine_drift(late, early).mean()) for early, late in pairwise(own)]
        row |= {"cosine_untrained": 1 - float(cosine_drift(own[-1], own[0]).mean()), "drift_last": drifts[-1]}
        row["drift_late"] = max(drifts[1:], default="")
        ranks = [1 - float(rank_correlation(late, early).mean()) for early, late in pairwise(own)]
        row |= {"rank_drift_last": ranks[-1], "rank_drift_late": max(ranks[1:], default="")}
        points = [float(pointing_game(of_snapshot, ink).mean()) for of_snapshot in own]
        row["mask_pointing_fall"] = max(points) - points[-1]
    row["same_for_all_images"] = float(rank_correlation(maps, maps.roll(1, 0)).mean())
    return row


def correlate(others: np.ndarray | None, num_images: int, maps: Tensor) -> float | None:
    return None if others is None else float(rank_correlation(maps, torch.from_numpy(others[:num_images]).float()).mean())


def write_table(folder: Path, path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for training in trainings():
        if not (folder / f"{training.name}.npz").exists():
            continue
        kept = dict(np.load(folder / f"{training.name}.npz"))
        about = {name: getattr(training, name) for name in ("name", "kind", "network", "data", "num_epochs", "lr")}
        about["accuracy"] = float(kept["accuracy"][-1])
        about["shuffled_accuracy"] = float(kept["shuffled_accuracy"]) if "shuffled_accuracy" in kept else ""
        for method in ("fullgrad", *OTHERS, "locally_affine"):
            for num_images in ((8, NUM_PROBE) if method == "fullgrad" else (8,)) if f"{method}/maps" in kept else ():
                with suppress(ValueError):  # a network that diverged has no maps
                    rows.append(
                        {**about, "method": method, "num_images": num_images, **measure(training, kept, method, num_images)}
                    )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--fashion", type=Path, help="folder with Fashion-MNIST's four .gz files. Default: only digits")
    parser.add_argument(
        "--table",
        type=Path,
        default=Path(__file__).parents[1] / "docs/findings.csv",
        help="CSV file to write",
    )
    parser.add_argument("--only_table", action="store_true", help="only write the table, without training")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for training in trainings():
        path = options.output / f"{training.name}.npz"
        if options.only_table or path.exists() or (training.data == "fashion" and options.fashion is None):
            continue
        start = time.time()
        kept = train(training, options.fashion)
        with replace_file(path) as file:
            np.savez_compressed(file, allow_pickle=False, **{name: to_numpy(name, tensor) for name, tensor in kept.items()})
        print(f"{training.name}: accuracy {kept['accuracy'][-1]:.3f} ({time.time() - start:.0f} s)", flush=True)
    write_table(options.output, options.table)


if __name__ == "__main__":
    main()
