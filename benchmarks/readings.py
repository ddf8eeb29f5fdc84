"""Compare the exact and the locally affine reading of a ViT and a Swin, trained on MNIST digits: python benchmarks/readings.py

It trains both for some minutes, prints accuracies, shares and how much of a map lies near the ink, and draws
docs/images/readings.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import SwinTransformer, VisionTransformer

from fg_lightning import FullGrad
from fg_lightning.demo import DigitsDataModule
from fg_lightning.visualization import film_strip

READINGS = ("exact", "locally_affine")


def networks() -> dict[str, nn.Module]:
    vit = VisionTransformer(image_size=28, patch_size=4, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
    sizes = {"patch_size": [2, 2], "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [7, 7]}
    return {"ViT": vit, "Swin": SwinTransformer(**sizes, num_classes=10)}


def digits(subset: torch.utils.data.Subset[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    images, labels = (torch.stack(column) for column in zip(*subset, strict=True))
    return images.expand(-1, 3, -1, -1), labels


def trained(name: str, model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    loader = DataLoader(TensorDataset(images, labels), 64, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(loader))
    for _ in track(range(epochs), f"training {name}"):
        for batch, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(batch), targets).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def share_near_ink(images: Tensor, maps: Tensor) -> float:
    """The share of the 78 most salient pixels (a tenth) that lie on the ink or next to it."""
    ink = F.max_pool2d((images[:, :1] > 0).float(), 3, stride=1, padding=1).flatten(1)
    return float(ink.gather(1, maps.flatten(1).topk(78, 1).indices).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("docs/images/readings.png"))
    options = parser.parse_args()
    torch.manual_seed(0)
    data = DigitsDataModule()
    data.setup("fit")
    images, labels = digits(data.test)
    shown, columns = slice(0, 6), []
    for name, model in networks().items():
        trained(name, model, *digits(data.train), options.epochs)
        with torch.no_grad():
            accuracy = float((model(images).argmax(1) == labels).float().mean())
        print(f"{name}: test accuracy {accuracy:.1%}")
        for reading in READINGS:
            maps, terms = FullGrad(model, reading=reading).attribute_with_terms(images[:64], labels[:64])
            implicit = sum(terms.implicit_terms.values(), torch.zeros(64)).abs() / terms.output.abs()
            print(
                f"  {reading:15s} completeness error {float(terms.completeness_error.max()):.1e}, "
                f"|implicit terms| / |output| {float(implicit.median()):.2f}, near ink {share_near_ink(images[:64], maps):.2f}"
            )
            columns.append((f"{name}\n{reading.replace('_', ' ')}", maps[shown]))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    film_strip(images[shown], columns).save(options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
