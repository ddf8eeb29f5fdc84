"""Measure FullGrad's maps with Quantus (Hedström et al., JMLR 2023): python examples/measure_with_quantus.py

Needs: pip install quantus 'fg-lightning[demo]'. Every metric of Quantus can use the attributions of this package through `explain`.
"""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from fg_lightning.attribution import METHODS
from fg_lightning.demo import DigitClassifier, DigitsDataModule

try:
    import quantus
except ModuleNotFoundError as error:
    raise SystemExit("this example needs Quantus: pip install quantus") from error


def explain(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, method: str = "fullgrad", **kwargs: Any) -> np.ndarray:
    """Maps [N, 1, H, W] of one of `fg_lightning.attribution.METHODS`, in the form that Quantus needs.

    Args:
        model: the network.
        inputs: images [N, C, H, W].
        targets: the classes to explain, [N].
        method: name of the method. Default: "fullgrad".
        **kwargs: other arguments of Quantus, such as the device. They are not used.
    """
    images = torch.as_tensor(np.asarray(inputs), dtype=torch.float32)
    return METHODS[method](model).attribute(images, torch.as_tensor(np.asarray(targets)).long()).numpy()


if __name__ == "__main__":
    seed_everything(0)
    data, model = DigitsDataModule(), DigitClassifier()
    Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(model, data)
    model.eval()
    images, labels = (part[:8].numpy() for part in next(iter(data.val_dataloader())))

    for method in ("random", "gradient", "fullgrad"):
        given: dict[str, Any] = {"explain_func": explain, "explain_func_kwargs": {"method": method}}
        sparseness = quantus.Sparseness(disable_warnings=True)(model, images, labels, **given)
        sensitivity = quantus.MaxSensitivity(nr_samples=3, disable_warnings=True)(model, images, labels, **given)
        print(f"{method:9} sparseness {np.mean(sparseness):.3f}  largest change under small noise {np.mean(sensitivity):.3f}")
