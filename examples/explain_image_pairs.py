"""Explain a network with two image inputs: python examples/explain_image_pairs.py

A small network gets two digits and predicts whether they are the same. One encoder processes both; the difference of the two codes
decides. FullGrad draws a map for each digit. `full_gradients` gives the contribution of each digit and of the biases to the answer.
The script writes the picture image_pairs.png.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_lightning import FullGrad, full_gradients
from fg_lightning.demo import load_digits
from fg_lightning.visualization import contact_sheet, overlay


class SameDigit(nn.Module):
    """The logit that two digits [N, 1, 28, 28] are the same, [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.code = nn.Linear(32 * 7 * 7, 32)
        self.answer = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        codes = [self.code(self.encoder(image).flatten(1)) for image in (left, right)]
        return self.answer((codes[0] - codes[1]).abs()).squeeze(1)


def draw_pairs(images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of digits, [N, 1, 28, 28] each, half of them equal; and 1 for equal pairs, else 0, [N]."""
    left = torch.randint(len(images), (count,), generator=generator)
    right = torch.randint(len(images), (count,), generator=generator)
    for i in range(0, count, 2):
        same = (labels == labels[left[i]]).nonzero()[:, 0]
        right[i] = same[torch.randint(len(same), (), generator=generator)]
    return images[left], images[right], (labels[left] == labels[right]).float()


if __name__ == "__main__":
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = load_digits().tensors
    held_out = torch.randperm(len(images), generator=generator)
    train, test = held_out[:4000], held_out[4000:]

    model = SameDigit()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(300):
        left, right, same = draw_pairs(images[train], labels[train], 64, generator)
        loss = F.binary_cross_entropy_with_logits(model(left, right), same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    left, right, same = draw_pairs(images[test], labels[test], 500, generator)
    model.eval()
    with torch.no_grad():
        print("accuracy          ", float(((model(left, right) > 0) == same.bool()).float().mean()))

    pair = left[:4], right[:4]
    maps = FullGrad(model).attribute(pair)
    terms = full_gradients(model, pair)
    print("logits            ", terms.output.tolist())
    print("of the left digit ", terms.input_term[0].tolist())
    print("of the right digit", terms.input_term[1].tolist())
    print("of the biases     ", sum(terms.bias_terms.values()).tolist())
    print("completeness error", float(terms.completeness_error.max()))

    overlays, captions = [], []
    for i in range(4):
        for digits, saliency in zip(pair, maps, strict=True):
            overlays.append(overlay(digits[i], saliency[i]))
            captions.append(f"{'same' if same[i] else 'other'}: {terms.output[i]:+.1f}")
    contact_sheet(overlays, captions, title="Are the two digits the same?").save("image_pairs.png")
