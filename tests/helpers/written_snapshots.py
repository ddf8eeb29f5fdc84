"""A history of snapshots, written without a training."""

import numpy as np
import torch

from fg_lightning.history.history import History
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.snapshot import NUMBERS, Findings, Layer, Look
from fg_lightning.recording.task import Answers


def findings(seed=0, n=2, size=4, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    terms = ("output", "input_term", "bias_term", "implicit_term", "completeness_error")
    return Findings(
        maps=scale * torch.rand(n, 1, size, size, generator=generator),
        answers=Answers(torch.tensor([1, 0]), torch.tensor([1, 1]), torch.tensor([0.75, 0.5])),
        terms={name: torch.rand(n, generator=generator) for name in terms},
        layers=[Layer("", "input", 0.5), Layer("head.0", "explicit", 0.25), Layer("act", "implicit", 0.25)],
    )


def look(epoch):
    return Look(epoch, 3 * epoch, {f"fullgrad/{key}": epoch + i / 7 for i, key in enumerate(NUMBERS) if key != "drift"})


def written(folder, looks=3, **options):
    history = History(folder)
    history.begin({"psi": "absolute"}, Probe(torch.rand(2, 1, 4, 4), torch.tensor([1, 0])), [np.zeros((4, 4, 3), np.uint8)] * 2)
    for epoch in range(looks):
        history.add(look(epoch), findings(epoch, **options), torch.tensor([1, 0]))
    return history
