"""Every kind of training comes out bit for bit as without the monitor, which has taken snapshots of it."""

import logging
import warnings
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.loggers import WandbLogger
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fg_lightning import FullGradMonitor
from fg_lightning.attribution import METHODS
from tests.helpers.small_trainings import Classifier, images_and_labels, loader, trainer


class Stream(IterableDataset):
    """Read once by each worker, in order."""

    def __init__(self, n, seed):
        self.n, self.seed = n, seed

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        samples = list(TensorDataset(*images_and_labels(self.n, self.seed)))
        yield from samples if worker is None else samples[worker.id :: worker.num_workers]


class Manual(Classifier):
    """Two optimizers, stepped by the module itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.features.parameters(), 0.1), torch.optim.SGD(self.head.parameters(), 0.1)


class Compiled(Classifier):
    """One part compiled in place, one by its call."""

    def __init__(self):
        super().__init__()
        self.features.compile(backend="eager")
        self.head = torch.compile(self.head, backend="eager")


class Frozen(Classifier):
    """A backbone under no_grad that does not train."""

    def __init__(self):
        super().__init__()
        self.features.requires_grad_(False)

    def forward(self, images):
        with torch.no_grad():
            features = self.features(images)
        return self.head(features)


class Own(Classifier):
    """Brings its loaders, which draw random numbers when they are made."""

    def train_dataloader(self):
        return loader(seed=1, shuffle=True)

    def val_dataloader(self):
        return loader(16, seed=int(torch.randint(100, ())))


def streams(workers):
    return lambda: (DataLoader(Stream(24, 1), 8, num_workers=workers), DataLoader(Stream(16, 2), 8, num_workers=workers))


def maps(**options):
    return lambda: (loader(seed=1, shuffle=True, **options), loader(16, seed=2, shuffle=True, **options))


TRAININGS = {
    "plain": {},
    "without sanity check": {"num_sanity_val_steps": 0},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "64-true": {"precision": "64-true"},
    "two workers": {"data": maps(num_workers=2)},
    "persistent workers": {"data": maps(num_workers=1, persistent_workers=True)},
    "accumulated gradients": {"accumulate_grad_batches": 2},
    "manual optimization": {"module": Manual},
    "compiled parts": {"module": Compiled},
    "compiled module": {"module": lambda: torch.compile(Classifier(), backend="eager")},
    "frozen backbone": {"module": Frozen},
    "several validation loaders": {"data": lambda: (loader(seed=1, shuffle=True), {"a": loader(16, seed=2), "b": loader(8)})},
    "no validation loader": {"data": lambda: (loader(seed=1, shuffle=True), None)},
    "limit_val_batches=0": {"limit_val_batches": 0},
    "fast_dev_run": {"fast_dev_run": True, "snapshots": [0, 1]},
    "overfit_batches": {"overfit_batches": 2},
    "check_val_every_n_epoch": {"check_val_every_n_epoch": 2},
    "no validation in the first epoch": {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0},
    "the module's own loaders": {
        "module": Own,
        "data": lambda: (None, None),
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 2,
    },
    "val_check_interval": {"val_check_interval": 2, "check_val_every_n_epoch": None},
    "reloaded loaders": {"reload_dataloaders_every_n_epochs": 1, "module": Own, "data": lambda: (None, None)},
    "iterable": {"data": streams(0)},
    "iterable with workers": {"data": streams(2)},
    "iterable without validation": {"data": lambda: (DataLoader(Stream(24, 1), 8), None)},
    "steps instead of epochs": {"max_steps": 4, "max_epochs": -1, "snapshots": [0, 1, 2]},
    "deterministic": {"deterministic": True},
    "anomaly detection": {"detect_anomaly": True},
    "gradient clipping": {"gradient_clip_val": 0.1},
    "EMA": {"callbacks": lambda: [EMAWeightAveraging(decay=0.5, update_every_n_steps=1)]},
    "SWA": {"callbacks": lambda: [StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)], "snapshots": [0, 1, 2, 3]},
    "W&B": {"logger": "wandb"},
}


def trained(folder, monitor, options):
    """The weights and the random state that a training ends with."""
    options = dict(options)
    module, data, callbacks = options.pop("module", Classifier), options.pop("data", maps()), options.pop("callbacks", list)
    if options.get("logger") == "wandb":
        options["logger"] = WandbLogger(save_dir=folder, offline=True)
    pl.seed_everything(1, verbose=False)
    run = trainer(folder, *callbacks(), *([] if monitor is None else [monitor]), **options)
    module = module()
    run.fit(module, *data())
    if isinstance(run.logger, WandbLogger):
        run.logger.experiment.finish()
    return {**module.state_dict(), "random state": torch.get_rng_state()}, run


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.filterwarnings("ignore:.*sampler is not", "ignore:Anomaly Detection", "ignore:The .grad attribute")
def test_weights_are_bit_identical_with_and_without_the_monitor(tmp_path, name):
    options = dict(TRAININGS[name])
    epochs = options.pop("snapshots", [0, 1, 2])
    without, _ = trained(tmp_path / "without", None, options)
    monitor = FullGradMonitor(num_samples=4, strict=True)
    with_monitor, _ = trained(tmp_path / "with", monitor, options)
    for key, value in without.items():
        assert torch.equal(value, with_monitor[key]), key
    assert [snapshot.epoch for snapshot in monitor.history.snapshots] == epochs


def gradients_with_hooks(model):
    """A method of the user's that cleans up nothing: it leaves hooks, training mode and gradients."""

    class Leaves:
        def attribute(self, x, target=None, additional_forward_args=None):
            for module in model.modules():
                module.register_forward_hook(lambda *_: None)
                module.train()
            x = x.detach().requires_grad_()
            (model(x, *(additional_forward_args or ())).sum() * torch.rand(())).backward()
            return x.grad.abs()

    return Leaves()


@pytest.mark.parametrize("name", [name for name in TRAININGS if name not in ("two workers", "persistent workers", "W&B")])
@pytest.mark.filterwarnings("ignore:.*sampler is not", "ignore:Anomaly Detection", "ignore:The .grad attribute")
def test_weights_are_bit_identical_with_several_methods_and_steps(tmp_path, name):
    options = dict(TRAININGS[name])
    options.pop("snapshots", None)
    without, _ = trained(tmp_path / "without", None, options)
    methods = ["fullgrad", "gradcam", "guided_backprop", partial(METHODS["smoothgrad"], num_samples=2)]
    methods += [gradients_with_hooks] if name != "frozen backbone" else []  # it does not get through no_grad
    monitor = FullGradMonitor(methods=methods, every_n_steps=2, num_samples=4, strict=True)
    with_monitor, _ = trained(tmp_path / "with", monitor, options)
    for key, value in without.items():
        assert torch.equal(value, with_monitor[key]), key
    snapshots = monitor.history.snapshots
    assert [s.num_steps for s in snapshots[1:-1] if s.num_steps % 2] == []
    assert len(snapshots) >= 1 + (snapshots[-1].num_steps + 1) // 2
    assert {f"{key}/concentration" for key in monitor.settings.methods} <= set(snapshots[-1].numbers)


@pytest.mark.parametrize("name", ["no validation loader", "limit_val_batches=0", "iterable without validation"])
def test_without_validation_data_a_note_tells_that_training_data_is_explained(tmp_path, name, caplog):
    """No warning: nothing went wrong, as in a self-supervised run."""
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.filterwarnings("error", "FullGradMonitor")
        trained(tmp_path, FullGradMonitor(num_samples=4, strict=True), dict(TRAININGS[name]))
    notes = [record for record in caplog.records if "training data" in record.message]
    assert [record.levelname for record in notes] == ["INFO"]


def test_nothing_is_compiled_again_because_of_a_snapshot(tmp_path):
    def compilations(folder, *monitors):
        graphs = []
        torch.compiler.reset()

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        trainer(folder, *monitors).fit(torch.compile(Classifier(), backend=backend), loader(seed=1), loader(16))
        return len(graphs)

    monitor = FullGradMonitor(num_samples=3, strict=True)
    assert compilations(tmp_path / "without") == compilations(tmp_path / "with", monitor) > 0
    assert len(monitor.history.snapshots) == 3


def test_another_seed_ends_with_other_weights(tmp_path):
    """What the test above would notice."""
    first, _ = trained(tmp_path, None, {})
    second, _ = trained(tmp_path, None, {"data": lambda: (loader(seed=1), loader(16))})
    assert not torch.equal(first["head.2.weight"], second["head.2.weight"])
