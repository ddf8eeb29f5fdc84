"""Measure the cost of attributions in units of one input gradient of the same model and batch: python benchmarks/cost.py

Measurements are paired: the baseline and a method run alternately in one process after a warm-up. Reported are the minimum, median
and maximum of the ratios of neighbours. The baseline is the gradient of the explained output at the input, with frozen parameters.

    operations number of operations of torch for one image, without views, on the code path of a GPU: a count, no timing
    small      processor time of one image on one thread, where Python's overhead matters: 32^2, and 224^2 for the transformer
    networks   eight of torchvision's networks at 224^2: time, alternately, and peak memory, each in its own process
    samples    methods of many passes (Captum's and grad-cam's) on one image of 224^2: time and peak memory, likewise
    growth     FullGrad for growing batch, image side and depth

The first two, and on a GPU the third, measure both FullGrad and FullGrad with graphed=True, which repeats a recorded run.

Networks have random weights, statistics and biases: the term of a zero bias would cost nothing. `--only` runs some measurements
and keeps the others' results in the files.
Writes docs/cost.csv, docs/cost.md and docs/images/cost.png; `--output` changes their folder. `--device cuda --batch 64`
measures on a GPU, with or without `--channels_last` and `--autocast`.
"""

from __future__ import annotations

import argparse
import csv
import gc
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil
import torch
import torchvision
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from fg_lightning import FullGrad, SmoothFullGrad

NETWORKS = ["resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "densenet121", "efficientnet_b0", "convnext_tiny", "vit_b_32"]
SAMPLED = ["resnet18", "resnet50", "mobilenet_v2", "vit_b_32"]  # for the methods of many passes, which are slow
SAMPLES = 50  # number of integration steps and noisy samples, as in Sundararajan et al. 2017 and Smilkov et al. 2017
GROWTH = {"batch": [1, 2, 4, 8, 16, 32, 64], "side": [64, 128, 224, 320, 512], "depth": [18, 34, 50, 101, 152]}
COLUMNS = ["measurement", "network", "method", "batch", "side", "repetitions", "minimum", "median", "maximum", "memory"]
COLUMNS += ["operations"]
COUNTED = ["resnet18", "mobilenet_v2", "vit_b_32", "efficientnet_b0"]
SMALL = {"resnet18": 32, "mobilenet_v2": 32, "densenet121": 32, "vit_b_32": 224}
FREE = frozenset(
    "alias as_strided chunk detach detach_ diagonal empty empty_like empty_strided expand expand_as flatten item lift_fresh "
    "mT movedim narrow new_empty permute reshape resolve_conj result_type select set_ slice split split_with_sizes squeeze t "
    "to transpose unbind unflatten unsqueeze view view_as _local_scalar_dense _reshape_alias _unsafe_view".split()
)
"""Operations that compute nothing: views, allocations and queries."""

Run = Callable[[], object]


def input_gradient(model: nn.Module, images: Tensor, target: int) -> Tensor:
    leaf = images.detach().clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, target].sum(), leaf)[0]


def integrated_gradients(model: nn.Module, images: Tensor, target: int) -> Tensor:
    return IntegratedGradients(model).attribute(images, target=target, n_steps=SAMPLES, internal_batch_size=8)


def smoothgrad(model: nn.Module, images: Tensor, target: int) -> Tensor:
    tunnel = NoiseTunnel(Saliency(model))
    return tunnel.attribute(images, target=target, nt_samples=SAMPLES, nt_samples_batch_size=8, stdevs=0.15)


def gradcams_fullgrad(model: nn.Module, images: Tensor, target: int) -> object:
    from pytorch_grad_cam import FullGrad as GradCamsFullGrad
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with GradCamsFullGrad(model, []) as cam:
        return cam(images, [ClassifierOutputTarget(target)] * len(images))


METHODS: dict[str, Callable[[nn.Module, Tensor, int], object]] = {
    "input gradient": input_gradient,
    "FullGrad": lambda model, images, target: FullGrad(model).attribute(images, target),
    f"SmoothFullGrad, {SAMPLES} samples": lambda m, x, t: SmoothFullGrad(m, num_samples=SAMPLES).attribute(x, t),
    "grad-cam's FullGrad": gradcams_fullgrad,
    f"Captum's IntegratedGradients, {SAMPLES} steps": integrated_gradients,
    f"Captum's NoiseTunnel of Saliency, {SAMPLES} samples": smoothgrad,
}
MANY_PASSES = list(METHODS)[2:]
GRAPHED = {"FullGrad": False, "FullGrad, graphed": True}
TO_REPEAT = 5  # calls before those that are repeated


def count_operations(run: Run) -> int:
    """Number of torch's operations in a run. Each may launch a kernel; operations inside another are not counted."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    return sum(event.name not in {f"aten::{name}" for name in FREE} for event in profiler.events() if _is_outermost(event))


def _is_outermost(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("aten::"):
            return False
        parent = parent.cpu_parent
    return bool(event.name.startswith("aten::"))


def randomize(model: nn.Module) -> None:
    """Make biases and statistics nonzero, and the head of a transformer, which torchvision initializes with zeros."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and (tensor.ndim == 1 or not tensor.any()):
                tensor += 0.1 * torch.rand_like(tensor)


# --- one case --------------------------------------------------------------------------------------------------------------------


class Case:
    """A network, images, and the settings of a run."""

    def __init__(self, network: str, options: argparse.Namespace, batch: int, side: int = 224) -> None:
        torch.manual_seed(0)
        self.network, self.batch, self.side, self.device = network, batch, side, options.device
        size = {"image_size": side} if network.startswith("vit") else {}
        self.model = torchvision.models.get_model(network, weights=None, **size).eval().requires_grad_(False)
        randomize(self.model)
        self.model = self.model.to(options.device)
        self.images = torch.randn(batch, 3, side, side).to(options.device)
        if options.channels_last:
            self.model, self.images = (t.to(memory_format=torch.channels_last) for t in (self.model, self.images))
        self.autocast = options.autocast

    def run(self, method: str) -> Run:
        fullgrad = FullGrad(self.model, autocast=self.autocast, graphed=GRAPHED.get(method, False))

        def once() -> None:
            with torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if method in GRAPHED:
                    fullgrad.attribute(self.images, 1)
                else:
                    METHODS[method](self.model, self.images, 1)
            if self.device == "cuda":
                torch.cuda.synchronize()

        return once


def ratios(
    method: Run, baseline: Run, repetitions: int, warm_up: int = 1, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    for _ in range(warm_up):
        baseline(), method()
    gc.collect()
    found = []
    for _ in range(repetitions):
        start = clock()
        baseline()
        middle = clock()
        method()
        found.append((clock() - middle) / (middle - start))
    return found


def peak_bytes(case: Case, method: str) -> int:
    """The peak memory of one run in bytes, in addition to model and images, in this process."""
    run = case.run(method)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Case("resnet18", argparse.Namespace(device="cpu", channels_last=False, autocast=False), 1, 32).run(
        method
    )()  # loads the libraries
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = psutil.Process().memory_info().rss
    run()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 - before


def peak_ratio(case: Case, method: str, options: argparse.Namespace, runs: int = 3) -> float:
    """A method's peak memory over that of the input gradient: medians of runs in separate processes (allocators vary)."""

    def peak(method: str) -> int:
        command = [sys.executable, __file__, "--peak", case.network, method, "--device", options.device, "--batch", str(case.batch)]
        command += [f"--{name}" for name in ("channels_last", "autocast") if getattr(options, name)]
        done = subprocess.run([*command, "--threads", str(options.threads)], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    return median(peak(method) for _ in range(runs)) / median(peak("input gradient") for _ in range(runs))


# --- the measurements ------------------------------------------------------------------------------------------------------------


def row(
    measurement: str, case: Case, method: str, found: list[float], memory: float | None = None, operations: int | None = None
) -> dict[str, object]:
    numbers = [f"{number:.3f}" for number in (min(found), median(found), max(found))]
    values = [measurement, case.network, method, case.batch, case.side, len(found), *numbers]
    return dict(
        zip(COLUMNS, [*values, "" if memory is None else f"{memory:.3f}", "" if operations is None else operations], strict=True)
    )


def operations(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    for network, method in product(options.networks or COUNTED, GRAPHED):
        case = Case(network, options, 1)
        run = case.run(method)
        with patch("fg_lightning.fullgrad.term_map.works_in_blocks", lambda device: False):
            for _ in range(TO_REPEAT):  # the first calls make checks and recordings
                run()
            counted = count_operations(run)
        ratio = counted / count_operations(case.run("input gradient"))
        yield row("operations", case, method, [ratio], operations=counted)


def small(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for network, method in product(options.networks or SMALL, GRAPHED):
        case = Case(network, options, 1, SMALL.get(network, 32))
        found = ratios(case.run(method), case.run("input gradient"), 101, 20, time.process_time)
        yield row("small", case, method, found)
    torch.set_num_threads(threads)


def networks(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    methods = GRAPHED if options.device == "cuda" else ["FullGrad"]  # on a CPU, a batch this large is not repeated
    for network, method in product(options.networks or NETWORKS, methods):
        case = Case(network, options, options.batch)
        found = ratios(case.run(method), case.run("input gradient"), options.repetitions, TO_REPEAT if len(methods) > 1 else 1)
        yield row("networks", case, method, found, peak_ratio(case, method, options, options.memory_runs))


def samples(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    for network, method in product(options.networks or SAMPLED, MANY_PASSES):
        case = Case(network, options, 1)
        case.run("input gradient")()
        try:
            found = ratios(case.run(method), case.run("input gradient"), min(3, options.repetitions), warm_up=0)
        except Exception as error:  # that a method fails on a network is a result
            print(f"{method} fails on {network}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        yield row("samples", case, method, found, peak_ratio(case, method, options, runs=1))


def growth(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    largest = max(options.batch, 8)
    cases = [("batch", "resnet18", batch, 112) for batch in GROWTH["batch"]]
    cases += [("side", "resnet18", largest // 4, side) for side in GROWTH["side"]]
    cases += [("depth", f"resnet{depth}", largest // 4, 224) for depth in GROWTH["depth"]]
    for grows, network, batch, side in cases:
        case = Case(network, options, batch, side)
        found = ratios(case.run("FullGrad"), case.run("input gradient"), options.repetitions)
        yield row(f"growth: {grows}", case, "FullGrad", found)


# --- the files -------------------------------------------------------------------------------------------------------------


def machine(options: argparse.Namespace) -> str:
    if options.device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpu = next((x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "?")
    return f"{cpu}, {options.threads} thread(s), {platform.system()}, torch {torch.__version__}"


def markdown(rows: list[dict[str, object]], options: argparse.Namespace) -> str:
    lines = [f"{machine(options)}. Time and peak memory over those of one input gradient."]
    lines += ["", "[What a map costs](benchmarks.md) explains the measurements, and which tables are from an earlier version."]
    if of_counts := [r for r in rows if r["measurement"] == "operations"]:
        lines += ["", "Operations of one map, one image of {side}^2, on the path of a GPU:".format_map(of_counts[0]), ""]
        lines += ["| network | method | operations | over those of an input gradient |", "|---|---|---|---|"]
        lines += [f"| {r['network']} | {r['method']} | {r['operations']} | {r['median']} |" for r in of_counts]
    if of_small := [r for r in rows if r["measurement"] == "small"]:
        lines += ["", "One image, processor time on one thread, {repetitions} pairs:".format_map(of_small[0]), ""]
        lines += ["| network | side | method | time: minimum | median | maximum |", "|---|---|---|---|---|---|"]
        columns = ["network", "side", "method", "minimum", "median", "maximum"]
        lines += ["| " + " | ".join(str(r[column]) for column in columns) + " |" for r in of_small]
    if of_networks := [r for r in rows if r["measurement"] == "networks"]:
        lines += ["", "{batch} images of {side}^2, {repetitions} pairs:".format_map(of_networks[0]), ""]
        lines += ["| network | method | time: minimum | median | maximum | peak memory |", "|---|---|---|---|---|---|"]
        columns = ["network", "method", "minimum", "median", "maximum", "memory"]
        lines += ["| " + " | ".join(str(r[column]) for column in columns) + " |" for r in of_networks]
        for method in dict.fromkeys(str(r["method"]) for r in of_networks):
            medians = [float(str(r["median"])) for r in of_networks if r["method"] == method]
            lines.append(f"| median of all | {method} | | {median(medians):.3f} | | |")
    if of_methods := [r for r in rows if r["measurement"] == "samples"]:
        lines += ["", "Methods of many passes, one image of {side}^2, {repetitions} pairs:".format_map(of_methods[0]), ""]
        lines += ["| network | method | time: minimum | median | maximum | peak memory |", "|---|---|---|---|---|---|"]
        columns = ["network", "method", "minimum", "median", "maximum", "memory"]
        lines += ["| " + " | ".join(str(r[column]) for column in columns) + " |" for r in of_methods]
    if of_growth := [r for r in rows if str(r["measurement"]).startswith("growth")]:
        lines += ["", "FullGrad as work grows, {repetitions} pairs:".format_map(of_growth[0]), ""]
        lines += ["| grows | network | batch | side | time: median |", "|---|---|---|---|---|"]
        lines += [
            f"| {str(r['measurement'])[8:]} | {r['network']} | {r['batch']} | {r['side']} | {r['median']} |" for r in of_growth
        ]
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, object]]) -> Figure:
    grown = [grows for grows in GROWTH if any(r["measurement"] == f"growth: {grows}" for r in rows)]
    figure = Figure((11, 6.5 if grown else 3.5), layout="constrained")
    axes = figure.subplot_mosaic([["networks"] * max(1, len(grown)), *([grown] if grown else [])])
    of_networks = [r for r in rows if r["measurement"] == "networks" and r["method"] == "FullGrad"]
    middle = [float(str(r["median"])) for r in of_networks]
    spread = [[m - float(str(r["minimum"])) for m, r in zip(middle, of_networks, strict=True)]]
    spread += [[float(str(r["maximum"])) - m for m, r in zip(middle, of_networks, strict=True)]]
    axes["networks"].bar([str(r["network"]) for r in of_networks], middle, yerr=spread, capsize=4, color="#4c72b0")
    axes["networks"].set_title("FullGrad, time over that of one input gradient (median, minimum to maximum)")
    for grows in grown:
        of_one = [r for r in rows if r["measurement"] == f"growth: {grows}"]
        at = [int(str(r["network"])[6:]) if grows == "depth" else int(str(r[grows])) for r in of_one]
        reached = [float(str(r["median"])) for r in of_one]
        axes[grows].plot(at, reached, marker="o", color="#4c72b0")
        axes[grows].set_xlabel(f"{grows} (resnet)" if grows == "depth" else grows)
        axes[grows].set_ylim(0, 1.1 * max(reached))
    for axis in axes.values():
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", help=f"Default: {' '.join(NETWORKS)}; for samples {' '.join(SAMPLED)}")
    measurements = {"operations": operations, "small": small, "networks": networks, "samples": samples, "growth": growth}
    parser.add_argument("--only", nargs="+", choices=list(measurements), default=list(measurements))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument(
        "--memory_runs", type=int, default=3, help="number of processes that measure the peak memory of a network. Default: 3"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "METHOD"), help="only print the peak memory of one run in bytes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak_bytes(Case(options.peak[0], options, options.batch), options.peak[1]))
        return
    console, path = Console(), options.output / "cost.csv"
    rows: list[dict[str, object]] = list(csv.DictReader(path.open())) if path.exists() else []
    rows = [r for r in rows if str(r["measurement"]).split(":")[0] not in options.only]
    for name in options.only:
        for found in measurements[name](options):
            rows.append(found)
            console.print(*(f"{found[column]}" for column in COLUMNS), sep="  ")
    (options.output / "images").mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (options.output / "cost.md").write_text(f"<!-- made by benchmarks/cost.py -->\n\n{markdown(rows, options)}")
    plot(rows).savefig(options.output / "images" / "cost.png", dpi=120)


if __name__ == "__main__":
    main()
