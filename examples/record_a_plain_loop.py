"""Record how saliency changes in a plain PyTorch loop, without Lightning: python examples/record_a_plain_loop.py"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, random_split

from fg_lightning import FullGradRecorder
from fg_lightning.demo import load_digits

if __name__ == "__main__":
    torch.manual_seed(0)
    train, held_out = random_split(load_digits(), [4000, 1000])
    images, labels = held_out[:8]
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 6 * 6, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    step = 0
    with FullGradRecorder("fullgrad", (images, labels), task="classes") as recorder:
        recorder.snapshot(network, step=0, epoch=0)
        for epoch in (1, 2):
            for batch, classes in DataLoader(train, 64, shuffle=True):
                optimizer.zero_grad()
                cross_entropy(network(batch), classes).backward()
                optimizer.step()
                step += 1
            recorder.snapshot(network, step=step, epoch=epoch, is_last=epoch == 2)
            print(f"epoch {epoch}", {key: round(value, 4) for key, value in recorder.numbers.items()})
    print(f"see {recorder.history.strip_path}")
