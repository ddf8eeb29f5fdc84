"""Compare noisy linear imputation with a sparse solver per image: python benchmarks/imputation.py [--rounds 7]

It uses crops of 224 x 224 pixels of scikit-image's photographs, in 0..1, on one thread. In every round, one image is imputed with
scipy's `spsolve` (without the time to set up the equations) and with the authors' code in pytorch-grad-cam, and a batch with
`noisy_linear`. A row has the largest difference from the exact solution (without noise), the times per image, and the ratios of our
time to theirs: lowest, median and highest over the rounds. The table is also written as CSV.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from rich.progress import track
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from skimage import data
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fg_lightning.removal import noisy_linear, top_pixels

SIDE = 224
OFFSETS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]

Array = npt.NDArray[np.float64]


class Row(NamedTuple):
    masks: str
    fraction: float
    batch: int
    error: str
    ms: str
    spsolve_ms: str
    ratio_min: str
    ratio: str
    ratio_max: str
    authors_ms: str
    to_authors_min: str
    to_authors: str
    to_authors_max: str


def photographs(n: int) -> Tensor:
    """Crops of photographs, [N, 3, 224, 224], in 0..1."""
    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    chosen = np.random.default_rng(0)
    crops = []
    for i in range(n):
        photo = sources[i % len(sources)]
        top, left = (int(chosen.integers(side - SIDE + 1)) for side in photo.shape[:2])
        crops.append(torch.from_numpy(photo[top : top + SIDE, left : left + SIDE].copy()).permute(2, 0, 1))
    return torch.stack(crops).float() / 255


def removals(n: int) -> dict[tuple[str, float], Tensor]:
    """Masks [N, 1, 224, 224]: scattered pixels, regions of a smooth map, and the top half."""
    noise = torch.randn(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    smooth = gaussian_blur(noise, [89, 89], [22.0, 22.0])
    kinds = {"scattered": noise, "compact": smooth}
    masks = {(kind, share): top_pixels(maps, share) for share in (0.1, 0.5, 0.9) for kind, maps in kinds.items()}
    masks["top half", 0.5] = (torch.arange(SIDE)[:, None] < SIDE // 2).expand(n, 1, SIDE, SIDE)
    return masks


def system(image: Array, mask: npt.NDArray[np.bool_]) -> tuple[csc_matrix, Array]:
    """The equations of the removed pixels and their right-hand sides, [P, C], for an image [C, H, W] and its mask [H, W]."""
    places = np.full(mask.shape, -1)
    places[mask] = np.arange(mask.sum())
    y, x = np.nonzero(mask)
    rows, columns, weights = [], [], []
    sums, right = np.zeros(len(y)), np.zeros((len(y), len(image)))
    for dy, dx in OFFSETS:
        weight = 1 / 6 if 0 in (dy, dx) else 1 / 12
        inside = (y + dy >= 0) & (y + dy < SIDE) & (x + dx >= 0) & (x + dx < SIDE)
        own = np.flatnonzero(inside)
        sums[own] += weight
        other = places[y[own] + dy, x[own] + dx]
        rows.append(own[other >= 0])
        columns.append(other[other >= 0])
        weights.append(np.full(len(rows[-1]), -weight))
        left = own[other < 0]
        right[left] += weight * image[:, y[left] + dy, x[left] + dx].T
    rows.append(np.arange(len(y)))
    columns.append(np.arange(len(y)))
    entries = (np.concatenate([*weights, sums]), (np.concatenate(rows), np.concatenate(columns)))
    return csc_matrix(entries, shape=(len(y), len(y))), right


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compared(masks: str, fraction: float, images: Tensor, mask: Tensor, rounds: int) -> Row:
    authors = NoisyLinearImputer(noise=0.01)
    times: dict[str, list[float]] = {"own": [], "spsolve": [], "authors": []}
    errors = []
    noisy_linear(images, mask)
    for i in (i % len(images) for i in range(rounds)):
        holes = mask[i, 0].numpy()
        matrix, right = system(images[i].double().numpy(), holes)
        seconds, exact = timed(lambda matrix=matrix, right=right: spsolve(matrix, right))
        times["spsolve"].append(seconds)
        times["authors"].append(timed(lambda i=i: authors(images[i], (~mask[i, 0]).float()))[0])
        times["own"].append(timed(lambda: noisy_linear(images, mask))[0] / len(images))
        imputed = noisy_linear(images[i : i + 1], mask[i : i + 1], noise=0)[0]
        errors.append(float(np.abs(imputed.numpy()[:, holes].T - exact).max()))
    ms = {who: f"{1000 * statistics.median(seconds):.1f}" for who, seconds in times.items()}
    to_spsolve, to_authors = (spread(times["own"], times[who]) for who in ("spsolve", "authors"))
    error = f"{max(errors):.1e}"
    return Row(masks, fraction, len(images), error, ms["own"], ms["spsolve"], *to_spsolve, ms["authors"], *to_authors)


def spread(own: list[float], other: list[float]) -> tuple[str, str, str]:
    """Lowest, median and highest ratio."""
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    return f"{min(ratios):.3f}", f"{statistics.median(ratios):.3f}", f"{max(ratios):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--output", type=Path, default=Path("docs/imputation.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = photographs(max(options.batches))
    cases = [(batch, *case) for batch in options.batches for case in removals(len(images)).items()]
    rows = []
    for batch, (kind, fraction), mask in track(cases, "imputing"):
        rows.append(compared(kind, fraction, images[:batch], mask[:batch], options.rounds))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)
    for row in (Row._fields, *rows):
        print("".join(f"{cell!s:>{max(len(name), 9) + 1}s}" for name, cell in zip(Row._fields, row, strict=True)))


if __name__ == "__main__":
    main()
