"""Measure completeness on many architectures: python benchmarks/zoo.py [--only vit,swin] [--output docs/zoo.csv]

There is a row for each model:

- error_float64: the largest completeness error over all samples of batches of 1, 2, 3 and 5 in float64;
- error_float32: the same for a batch of 3 in float32;
- cancellation: the sum of the terms' magnitudes over that of the output; a large one explains a large float32 error;
- time_ratio: the time of a batch of 3 over that of its input gradient;
- fallback_ops: operations for which the general fallback was used;
- missing_ops: operations whose biases are missing.

All weights, biases and statistics of norms are random. The table is written as CSV, and as Markdown beside it. If the script is
started again with the same output, it continues where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import gc
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torchvision
from rich.progress import track
from torch import Tensor, nn
from torchvision.models.video import mvit

from fg_lightning import FullGradients, full_gradients
from fg_lightning.fullgrad import main_output

BATCHES = (1, 2, 3, 5)


class Candidate(NamedTuple):
    name: str
    family: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


class Row(NamedTuple):
    model: str
    family: str
    input: str
    error_float64: float
    error_float32: float
    cancellation: float
    time_ratio: float
    fallback_ops: str
    missing_ops: str


def candidates() -> Iterator[Candidate]:
    """Every classifier, segmentation and video model of torchvision, and small Hugging Face vision models."""
    for name in torchvision.models.list_models(module=torchvision.models):
        yield Candidate(name, "torchvision classifier", lambda name=name: _torchvision(name), _smallest_input(name))
    for name in torchvision.models.list_models(module=torchvision.models.segmentation):
        build = lambda name=name: torchvision.models.get_model(name, weights=None, weights_backbone=None)  # noqa: E731
        yield Candidate(name, "torchvision segmentation", build, (3, 64, 64))
    for name in torchvision.models.list_models(module=torchvision.models.video):
        shape = (3, 16, 224, 224) if name == "s3d" else (3, 8, 64, 64)
        yield Candidate(name, "torchvision video", lambda name=name: _torchvision(name), shape)
    for name in ("vit", "swin", "convnext", "deit", "beit"):
        yield Candidate(name, "Hugging Face", lambda name=name: _hugging_face(name), (3, 32, 32))


def _torchvision(name: str) -> nn.Module:
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        options["image_size"] = _smallest_input(name)[-1]
    # The builders of MViT fix a size that would need minutes.
    build, smaller = mvit._mvit, {"spatial_size": (64, 64), "temporal_size": 8}
    with patch.object(mvit, "_mvit", lambda **chosen: build(**chosen | smaller)):
        return torchvision.models.get_model(name, weights=None, **options)


def _smallest_input(name: str) -> tuple[int, ...]:
    if name.startswith("vit"):
        patch = int(name.split("_")[-1])
        return (3, 2 * patch, 2 * patch)
    side = {"maxvit_t": 224, "inception_v3": 75, "alexnet": 63}.get(name, 32)
    if name.startswith("squeezenet") or name.startswith("densenet"):
        side = 33
    return (3, side, side)


def _hugging_face(name: str) -> nn.Module:
    import transformers

    kind = {"vit": "ViT", "swin": "Swin", "convnext": "ConvNext", "deit": "DeiT", "beit": "Beit"}[name]
    sizes: dict[str, Any] = {"image_size": 32, "num_labels": 5}
    if name == "swin":
        sizes |= {"patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    elif name == "convnext":
        sizes |= {"hidden_sizes": [12, 24], "depths": [2, 2], "num_stages": 2}
    else:
        sizes |= {"patch_size": 8, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
    if name == "beit":
        sizes |= {"use_relative_position_bias": True}
    return getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(**sizes))


def randomised(model: nn.Module) -> nn.Module:
    """A model with random statistics, scales and biases, so that no term is zero by initialization."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if name == "running_mean":
                tensor.data.normal_(generator=generator)
            elif name == "running_var":
                tensor.data.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point() and isinstance(tensor, nn.Parameter):
                if tensor.ndim == 1 and name == "weight":
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
                elif tensor.ndim == 1 or not tensor.any():
                    tensor.data.normal_(0, 0.2, generator=generator)
    return model.eval()


def target_of(output: Any) -> Tensor:
    """The explained number of each sample, [N]: the largest score, at the middle of a dense output."""
    scores = main_output(output)
    while scores.ndim > 2:
        scores = scores[..., scores.shape[-1] // 2]
    return scores.amax(1)


def cancellation(terms: FullGradients) -> Tensor:
    """The sum of the terms' magnitudes over the magnitude of the output, [N]."""
    parts = [terms.input_term, *terms.bias_terms.values(), *terms.implicit_terms.values()]
    return torch.stack(parts).abs().sum(0) / terms.output.abs()


def measured(candidate: Candidate) -> Row:
    """The row of one model."""
    torch.manual_seed(0)
    model = randomised(candidate.build()).double()
    images = torch.randn(max(BATCHES), *candidate.shape, dtype=torch.float64)
    results = [full_gradients(model, images[:n], target_of) for n in BATCHES]
    single = full_gradients(model.float(), images[:3].float(), target_of)
    return Row(
        model=candidate.name,
        family=candidate.family,
        input="x".join(map(str, candidate.shape)),
        error_float64=max(float(result.completeness_error.max()) for result in results),
        error_float32=float(single.completeness_error.max()),
        cancellation=float(cancellation(single).max()),
        time_ratio=_time_ratio(model, images[:3].float()),
        fallback_ops=", ".join(sorted({name.split(" in ")[0] for name in results[0].fallback_ops})),
        missing_ops=", ".join(results[0].missing_ops),
    )


def _time_ratio(model: nn.Module, images: Tensor) -> float:
    def input_gradient() -> None:
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(target_of(model(leaf)).sum(), leaf)

    def timed(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    model.requires_grad_(False)
    input_gradient()
    return timed(lambda: full_gradients(model, images, target_of)) / timed(input_gradient)


def _rows_in(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def _as_table(rows: list[dict[str, str]]) -> str:
    """The table in Markdown, with a row for each model."""
    lines = [" | ".join(Row._fields), " | ".join("---" for _ in Row._fields), *(" | ".join(row.values()) for row in rows)]
    table = "\n".join(f"| {line} |" for line in lines)
    worst = {name: max(float(row[name]) for row in rows) for name in ("error_float64", "error_float32")}
    versions = f"torch {torch.__version__} and torchvision {torchvision.__version__}"
    return (
        f"# The zoo\n\nMade by `python benchmarks/zoo.py` with {versions} on the CPU; the script explains each column.\n"
        "`time_ratio`: the time of `full_gradients` for three images over that of their input gradient, measured once, so it is "
        "rough.\n"
        f"Of {len(rows)} models the worst completeness error is {worst['error_float64']:.1e} in float64 "
        f"and {worst['error_float32']:.1e} in float32.\n\n{table}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of names or families, separated by commas. Default: all")
    parser.add_argument("--output", type=Path, default=Path("docs/zoo.csv"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    wanted = [c for c in candidates() if any(word in c.name + " " + c.family for word in options.only.split(","))]
    if not wanted:
        sys.exit(f"no model matches --only {options.only!r}; give a part of a name or family, such as vit or torchvision")
    done = {row["model"] for row in _rows_in(options.output)}
    wanted = [candidate for candidate in wanted if candidate.name not in done]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a", newline="") as file:
        writer = csv.writer(file)
        if not done:
            writer.writerow(Row._fields)
        for candidate in track(wanted, "models"):
            row = measured(candidate)
            shown = [f"{value:.1e}" if isinstance(value, float) else value for value in row]
            shown[Row._fields.index("time_ratio")] = f"{row.time_ratio:.2f}"
            writer.writerow(shown)
            file.flush()
            print(
                f"{row.model:28s} {row.error_float64:8.1e} {row.error_float32:8.1e}  {row.fallback_ops} {row.missing_ops}",
                flush=True,
            )
            gc.collect()
    options.output.with_suffix(".md").write_text(_as_table(_rows_in(options.output)))


if __name__ == "__main__":
    main()
