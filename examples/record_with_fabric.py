"""Record how saliency changes in a loop of Lightning Fabric, in one process or several: python examples/record_with_fabric.py

With several processes, such as `python examples/record_with_fabric.py 2`, the first one records. The others do not wait for it.
"""

import sys

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, random_split

from fg_lightning import FullGradRecorder
from fg_lightning.demo import load_digits

ACCUMULATED = 2  # number of batches for each step of the optimizer


def build_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 6 * 6, 10)),
    )


if __name__ == "__main__":
    num_processes = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    fabric = Fabric(accelerator="cpu", devices=num_processes, loggers=CSVLogger(".", name="logs"))
    fabric.launch()
    fabric.seed_everything(0)
    train, held_out = random_split(load_digits(), [4000, 1000])
    network = build_network()
    network, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), 1e-3))
    loader = fabric.setup_dataloaders(DataLoader(train, 32, shuffle=True))

    recorder = None
    if fabric.is_global_zero:
        recorder = FullGradRecorder("fullgrad", held_out[:8], task="classes", loggers=fabric.loggers)
        recorder.snapshot(network, step=0, epoch=0)
    step = 0
    for epoch in (1, 2):
        for i, (images, labels) in enumerate(loader):
            is_accumulating = (i + 1) % ACCUMULATED != 0
            with fabric.no_backward_sync(network, enabled=is_accumulating):
                fabric.backward(cross_entropy(network(images), labels) / ACCUMULATED)
            if not is_accumulating:
                optimizer.step()
                optimizer.zero_grad()
                step += 1
        if recorder is not None:
            recorder.snapshot(network, step=step, epoch=epoch, is_last=epoch == 2)
    if recorder is not None:
        print(f"see {recorder.conclude()}")
        fabric.logger.finalize("success")  # CSVLogger writes the numbers
