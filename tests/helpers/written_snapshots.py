"""A history of snapshots, written without a training."""

import numpy as np
import torch

from fg_lightning.history import History
from fg_lightning.history.records import NUMBERS, TERMS, Answers, Explanation, LayerTerms, Snapshot


def explanation(seed=0, n=2, size=4, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return Explanation(
        maps=scale * torch.rand(n, 1, size, size, generator=generator),
        answers=Answers(torch.tensor([1, 0]), torch.tensor([1, 1]), torch.tensor([0.75, 0.5])),
        terms={name: torch.rand(n, generator=generator) for name in TERMS},
        layers=[LayerTerms("", "input", 0.5), LayerTerms("head.0", "explicit", 0.25), LayerTerms("act", "implicit", 0.25)],
    )


def snapshot(epoch):
    return Snapshot(epoch, 3 * epoch, {f"fullgrad/{key}": epoch + i / 7 for i, key in enumerate(NUMBERS) if key != "drift"})


def written(folder, num_snapshots=3, **options):
    history = History(folder)
    history.begin({"psi": "absolute"}, torch.rand(2, 1, 4, 4), torch.tensor([1, 0]), [np.zeros((4, 4, 3), np.uint8)] * 2)
    for epoch in range(num_snapshots):
        history.add(snapshot(epoch), explanation(epoch, **options), torch.tensor([1, 0]))
    return history
