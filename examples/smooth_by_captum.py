"""Smooth FullGrad over noise in two ways, with Captum's NoiseTunnel and with SmoothFullGrad: python examples/smooth_by_captum.py

NoiseTunnel averages the finished maps of noisy images, after psi, so nothing cancels. SmoothFullGrad averages the terms and draws
the map of their means, so contributions whose sign changes under noise cancel.
"""

import torch
from captum.attr import NoiseTunnel
from lightning.pytorch import Trainer, seed_everything

from fg_lightning import FullGrad, SmoothFullGrad
from fg_lightning.demo import DigitClassifier, DigitsDataModule
from fg_lightning.visualization import comparison

NOISE = 0.15
"""Standard deviation of the noise, as a share of the images' range of 2."""

if __name__ == "__main__":
    seed_everything(0)
    data, model = DigitsDataModule(), DigitClassifier()
    Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(model, data)
    model.eval()
    images, labels = next(iter(data.val_dataloader()))
    images, labels = images[:4], labels[:4]

    maps = {
        "FullGrad": FullGrad(model).attribute(images, labels),
        "NoiseTunnel": NoiseTunnel(FullGrad(model)).attribute(
            images, nt_type="smoothgrad", nt_samples=20, stdevs=2 * NOISE, target=labels
        ),
        "SmoothFullGrad": SmoothFullGrad(model, num_samples=20, noise=NOISE).attribute(images, labels),
    }
    both = torch.stack([maps["NoiseTunnel"], maps["SmoothFullGrad"]]).flatten(2)
    print("cosine similarity of the two", torch.cosine_similarity(*both).tolist())
    comparison(images[0], {name: found[0] for name, found in maps.items()}).save("smooth.png")
    print("picture                      smooth.png")
