"""What a GPU needs: hooks that only queue kernels, seen on a CPU. And what it computes, where there is one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models import get_model

from fg_lightning import METHODS, FullGrad, FullGradMonitor, FullGradRecorder, SaliencyStore, SmoothFullGrad, full_gradients
from fg_lightning.demo import DigitClassifier, DigitsDataModule
from fg_lightning.fullgrad import forward_backward, repeated_runs, saliency
from fg_lightning.fullgrad.readings import Reading
from fg_lightning.fullgrad.target import Selection
from fg_lightning.metrics import pointing_game
from fg_lightning.recording.hardest_samples import SampleLosses
from fg_lightning.recording.settings import Settings
from fg_lightning.roar.explained_class import choose_classes
from fg_lightning.roar.image_pixels import fill_with_values
from tests.helpers.second_device import trainer_options

DEVICE = os.environ.get("FG_TEST_DEVICE", "cuda")


def on_a_gpu(test: Callable[..., None]) -> Callable[..., None]:
    is_missing = DEVICE == "cuda" and not torch.cuda.is_available()
    return pytest.mark.cuda(pytest.mark.skipif(is_missing, reason="no GPU")(test))


READING = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero"}
"""Operations that bring values to the CPU, and so make it wait for a GPU."""


ACTIVATIONS: list[type[nn.Module]] = [
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.ELU,
    nn.PReLU,
    nn.Softmax2d,
]


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), activation())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(3)
            module.running_var = 0.5 + torch.rand(3)
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape or (4, 3, 16, 16), generator=torch.Generator().manual_seed(1))


class Waits(TorchDispatchMode):
    """Counts the operations that wait for values in a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._current_autograd_node() is not None and function.__name__.split(".")[0] in READING:
            self.counted.append(function.__name__)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", [FullGrad, SmoothFullGrad])
def test_hooks_only_queue_work(kind: type[FullGrad], activation: type[nn.Module]) -> None:
    settings = {} if kind is FullGrad else {"num_samples": 2}
    with Waits() as waits:
        kind(network(activation), **settings).attribute_with_terms(images())
    assert waits.counted == []


def test_a_hook_that_waits_is_counted() -> None:
    leaf = torch.ones(2, requires_grad=True)
    product = 2 * leaf
    product.register_hook(lambda gradient: print(float(gradient.sum())))
    with Waits() as waits:
        product.sum().backward()
    assert waits.counted == ["_local_scalar_dense.default"]


class Devices(TorchDispatchMode):
    """Collects the operations whose operands are on several devices, which not all kernels of CUDA take."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if len({t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}) > 1:
            self.mixed.add(str(function))
        return function(*args, **kwargs or {})


class WithoutAutocast(nullcontext[None]):
    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


@pytest.fixture
def allow_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out whatever needs values, or a device that computes."""
    monkeypatch.setattr(forward_backward, "check_images", lambda model, images: None)
    monkeypatch.setattr(saliency, "warn_if_incomplete", lambda model, terms, is_rounded: None)
    monkeypatch.setattr(Selection, "_check", lambda self, selected: selected)
    monkeypatch.setattr(torch, "autocast", WithoutAutocast)


PUBLIC = ["resnet18", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_32", "swin_v2_t"]
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{activation.__name__: partial(network, activation) for activation in ACTIVATIONS},
    **{name: partial(get_model, name) for name in PUBLIC},
    "group norm": lambda: nn.Sequential(nn.GroupNorm(1, 3), nn.InstanceNorm2d(3), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
}


@pytest.mark.parametrize("reading", ["exact", "locally_affine"])
@pytest.mark.parametrize("name", NETWORKS)
def test_everything_is_computed_on_the_device_of_the_images(name: str, reading: Reading, allow_meta: None) -> None:
    """Tensors without values stand for those of a GPU."""
    model, batch = NETWORKS[name]().to("meta"), images(2, 3, 224, 224).to("meta")
    with Devices() as devices:
        maps, terms = FullGrad(model, reading=reading).attribute_with_terms(batch, lambda output: output[:, 1])
    assert maps.is_meta
    assert terms.output.is_meta
    assert not devices.mixed


@on_a_gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU])
def test_maps_and_terms_on_a_gpu_are_those_of_the_cpu(activation: type[nn.Module], channels_last: bool) -> None:
    expected, terms = FullGrad(network(activation)).attribute_with_terms(images(), 1)
    model, batch = network(activation).to(DEVICE), images().to(DEVICE)
    if channels_last:
        model, batch = model.to(memory_format=torch.channels_last), batch.to(memory_format=torch.channels_last)
    maps, on_gpu = FullGrad(model).attribute_with_terms(batch, 1)
    torch.testing.assert_close(maps.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))  # kernels sum in another order
    for name in terms.bias_terms:
        torch.testing.assert_close(on_gpu.bias_terms[name].cpu(), terms.bias_terms[name], rtol=1e-3, atol=1e-4)
    assert float(on_gpu.completeness_error.max()) < 1e-3


class Split(nn.Module):
    """A network whose first layers are on one device, the others on another."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        whole = network(nn.SiLU)
        self.first, self.second, self.device = whole[:4].to(first), whole[4:].to(second), second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).to(self.device))


@on_a_gpu
@pytest.mark.parametrize("devices", [(DEVICE, "cpu"), ("cpu", DEVICE)])
@pytest.mark.parametrize("name", ["fullgrad", "smooth_fullgrad", "gradcam"])
def test_a_network_on_two_devices_has_the_maps_of_one(name: str, devices: tuple[str, str]) -> None:
    split, batch = Split(*devices).eval(), images().to(devices[0])
    maps = METHODS[name](split).attribute(batch, 1)
    expected = METHODS[name](network(nn.SiLU)).attribute(images(), 1)
    assert maps.device == batch.device
    torch.testing.assert_close(maps.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))  # kernels sum in another order
    assert float(full_gradients(split, batch, 1).completeness_error.max()) < 1e-3


@on_a_gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="a device without kernels for half precision")
def test_autocast_on_a_gpu_rounds_and_no_more() -> None:
    expected = FullGrad(network()).attribute(images(), 1)
    with torch.autocast(DEVICE, torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = FullGrad(network().to(DEVICE), autocast=True).attribute(images().to(DEVICE), 1)
    similarity = torch.corrcoef(torch.stack([maps.float().cpu().flatten(), expected.flatten()]))[0, 1]
    assert similarity > 0.95  # bfloat16 has 8 bits


NUM_CALLS = 7


@on_a_gpu
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_repeated_runs_on_a_gpu_have_the_maps_of_the_cpu(activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    runs, captured = [], []
    run, capture = saliency.run_forward_backward, repeated_runs.capture
    monkeypatch.setattr(saliency, "run_forward_backward", lambda *args, **kwargs: runs.append(1) or run(*args, **kwargs))
    monkeypatch.setattr(repeated_runs, "capture", lambda *args: captured.append(capture(*args)) or captured[-1])
    model, on_gpu = network(activation), network(activation).to(DEVICE)
    method = FullGrad(on_gpu, graphed=True)
    for number in range(NUM_CALLS):
        if number == NUM_CALLS - 1:
            with torch.no_grad():
                for parameter in (*model.parameters(), *on_gpu.parameters()):
                    parameter.mul_(1.5)
        batch, target = images() + number, [number % 10, 1, 2, 3]
        maps, num_runs = method.attribute(batch.to(DEVICE), target), len(runs)
        expected = FullGrad(model).attribute(batch, target)
        torch.testing.assert_close(maps.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))  # as above
        del runs[num_runs:]
    assert len(runs) == 5  # calls 1, 2, 4 and two recordings; the rest was repeated
    assert len(captured) == (DEVICE == "cuda")


@on_a_gpu
@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.startswith("vit")])
def test_a_recorded_run_reads_nothing_from_the_cpu(name: str) -> None:
    """A CUDA graph cannot copy from a CPU."""
    method = FullGrad(get_model(name).to(DEVICE).eval(), graphed=True)
    method.attribute(images(1, 3, 64, 64).to(DEVICE), 1)
    (run,) = method._repeated._runs.values()
    assert run._recording is not None
    assert {tensor.device.type for tensor in run._recording._outside} == {DEVICE}


@on_a_gpu
@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_a_gpu_has_the_maps_of_the_cpu(name: str) -> None:
    expected = METHODS[name](network(nn.ReLU)).attribute(images(), 1)
    maps = METHODS[name](network(nn.ReLU).to(DEVICE)).attribute(images().to(DEVICE), 1)
    assert maps.device.type == DEVICE
    torch.testing.assert_close(maps.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))  # kernels sum in another order


@on_a_gpu
def test_full_gradients_on_a_gpu_are_complete() -> None:
    terms = full_gradients(network(nn.SiLU).to(DEVICE).double(), images().to(DEVICE).double())
    assert float(terms.completeness_error.max()) < 1e-9


@on_a_gpu
def test_the_monitor_watches_a_training_on_a_gpu(tmp_path: Path) -> None:
    options: dict[str, Any] = {"accelerator": "gpu", "devices": 1} if DEVICE == "cuda" else trainer_options()
    monitor = FullGradMonitor(methods=("fullgrad", "gradcam", "smoothgrad"))
    trainer = Trainer(max_epochs=1, limit_train_batches=4, default_root_dir=tmp_path, callbacks=[monitor], **options)
    trainer.fit(DigitClassifier(width=4), datamodule=DigitsDataModule())
    assert len(monitor.history.snapshots) >= 2
    assert monitor.history.snapshots[-1].numbers["fullgrad/completeness_error_max"] < 1e-3


@on_a_gpu
def test_a_store_made_on_a_gpu_orders_pixels_as_the_cpu_does(tmp_path: Path) -> None:
    data, model = DigitsDataModule(), DigitClassifier(width=4)
    on_cpu = SaliencyStore.make(tmp_path / "cpu", model, data, "fullgrad")
    on_gpu = SaliencyStore.make(tmp_path / "gpu", model.to(DEVICE), data, "fullgrad")
    assert model.device.type == DEVICE  # Lightning leaves it on the CPU
    first, second = (np.asarray(store.read("test", range(50)), dtype=float).reshape(50, -1) for store in (on_cpu, on_gpu))
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)) > 0.99  # near ties change places


@on_a_gpu
def test_what_is_on_the_cpu_meets_what_is_on_a_gpu(tmp_path: Path) -> None:
    mask, maps = images(4, 1, 16, 16) > 0, images(4, 1, 16, 16).abs()
    assert torch.equal(pointing_game(maps.to(DEVICE), mask).cpu(), pointing_game(maps, mask))
    assert torch.equal(fill_with_values(images()[0].to(DEVICE), mask[0, 0].numpy(), np.zeros(3)).cpu(), images()[0] * ~mask[0])
    baseline = torch.full((3, 1, 1), 0.5)
    METHODS["integrated_gradients"](network().to(DEVICE), baseline=baseline).attribute(images().to(DEVICE))
    classes = choose_classes("random", None, network().to(DEVICE), images().to(DEVICE), "test", range(4), 0)
    assert isinstance(classes, Tensor)
    assert classes.device.type == DEVICE
    batch = (images().to(DEVICE), torch.arange(4).to(DEVICE))
    SampleLosses.from_settings(Settings()).measure(network().to(DEVICE), batch)
    kept: dict[str, Any] = {}
    for place in ("cpu", DEVICE):
        options: dict[str, Any] = {"target": torch.arange(4).to(place), "methods": ["smoothgrad"], "strict": True}
        recorder = FullGradRecorder(tmp_path / "run", (images().to(place), torch.arange(4), mask.to(place)), **options)
        recorder.load_state_dict({name: v.to(DEVICE) if isinstance(v, Tensor) else v for name, v in kept.items()})
        recorder.snapshot(network().to(DEVICE), step=len(recorder.history.snapshots), epoch=0)
        kept = recorder.state_dict()
    assert len(recorder.history.snapshots) == 2
