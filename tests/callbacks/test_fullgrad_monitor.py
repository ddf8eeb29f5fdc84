"""The monitor in real Trainer runs, read back from what it left."""

import csv
import warnings
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from matplotlib.image import imread
from networks import Classifier, images_and_labels, loader, trainer
from offline_wandb import history, media_folder
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from fg_lightning import FullGrad, FullGradMonitor, full_gradients

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled"),
    pytest.mark.filterwarnings("ignore:Total length of .* is zero"),
    # Lightning's own use of torch and wandb
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
]


def fit(folder, monitor, module=None, train=None, val=None, **options):
    pl.seed_everything(1, verbose=False)
    run = trainer(folder, monitor, **options) if monitor else trainer(folder, **options)
    module = module or Classifier()
    train, val = loader(seed=1, shuffle=True) if train is None else train, loader(16, seed=2) if val is None else val
    run.fit(module, train, val)
    return module, run


def rows(folder):
    (path,) = folder.rglob("history.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


# --- what it logs


def test_wandb_gets_images_and_numbers_of_every_look_at_lightnings_global_step(tmp_path):
    monitor = FullGradMonitor(num_samples=4)
    _, run = fit(tmp_path, monitor, logger=WandbLogger(save_dir=tmp_path, offline=True))
    run.logger.experiment.finish()

    looks = [row for row in history(tmp_path) if "fullgrad/saliency" in row]
    assert [row["trainer/global_step"] for row in looks] == [0, 3, 6]
    for row, look in zip(looks, monitor.history.looks, strict=True):
        assert row["fullgrad/completeness_error"] == pytest.approx(look.numbers["fullgrad/completeness_error"])
        assert row["fullgrad/completeness_error_max"] < 1e-4  # float32
        shares = [row[f"fullgrad/{kind}_share"] for kind in ("input", "bias", "implicit")]
        assert sum(shares) == pytest.approx(1, abs=1e-4)  # float32
        assert ("fullgrad/drift" in row) == (look.epoch > 0)
        pictures = row["fullgrad/saliency"]["filenames"]
        assert len(pictures) == 4
        for picture in pictures:
            assert imread(media_folder(tmp_path) / picture).shape[:2] == (112, 112)
    assert looks[0]["fullgrad/saliency"]["captions"][0].startswith("untrained, class ")


def test_the_logged_maps_are_those_of_the_network_at_that_moment(tmp_path):
    monitor = FullGradMonitor(num_samples=4)
    module, _ = fit(tmp_path, monitor)
    probe, last = monitor.history.probe, monitor.history.looks[-1]
    expected = FullGrad(module).attribute(probe.images, probe.labels)
    assert torch.equal(last.maps, expected)
    error = full_gradients(module, probe.images, probe.labels).completeness_error.mean()
    assert last.numbers["fullgrad/completeness_error"] == pytest.approx(float(error))


def test_csv_maps_strip_and_png_where_there_is_no_logger(tmp_path):
    monitor = FullGradMonitor(num_samples=4)
    fit(tmp_path, monitor)
    folder = tmp_path / "fullgrad" / "version_0"
    assert [(row["epoch"], row["step"]) for row in rows(tmp_path)] == [("0", "0"), ("1", "3"), ("2", "6")]
    stored = np.load(folder / "maps" / "epoch_0002.npy")
    # float16 keeps 11 bits
    assert torch.allclose(torch.from_numpy(stored).float(), monitor.history.looks[-1].maps, rtol=1e-3)
    assert imread(folder / "saliency" / "epoch_0002.png").shape[:2] == (112, 4 * 112)
    assert imread(folder / "film_strip.png").shape[0] > 4 * 112
    fit(tmp_path, FullGradMonitor(num_samples=4))
    assert len(rows(tmp_path / "fullgrad" / "version_1")) == 3


def test_a_logger_without_images_gets_the_numbers_and_the_images_go_to_disk(tmp_path):
    fit(tmp_path, FullGradMonitor(num_samples=2), logger=CSVLogger(tmp_path, name="run"))
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["fullgrad/completeness_error"]]
    assert [row["step"] for row in logged] == ["0", "3", "6"]
    assert (tmp_path / "run" / "version_0" / "fullgrad" / "saliency" / "epoch_0001.png").exists()


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3])])
def test_it_looks_at_the_untrained_net_and_after_every_nth_epoch(tmp_path, every, epochs):
    fit(tmp_path, FullGradMonitor(every_n_epochs=every, num_samples=2), max_epochs=4)
    assert [int(row["epoch"]) for row in rows(tmp_path)] == epochs


def test_nothing_is_looked_at_in_the_sanity_check_and_the_first_look_is_at_the_initial_weights(tmp_path):
    monitor = FullGradMonitor(num_samples=4)
    pl.seed_everything(1, verbose=False)
    module = Classifier()
    untrained = Classifier()
    untrained.load_state_dict(module.state_dict())
    trainer(tmp_path, monitor, num_sanity_val_steps=2).fit(module, loader(seed=1), loader(16, seed=2))
    first = monitor.history.looks[0]
    assert (first.epoch, first.step) == (0, 0)
    assert torch.equal(first.maps, FullGrad(untrained).attribute(monitor.history.probe.images, monitor.history.probe.labels))


# --- training is not disturbed


def weights_after(folder, monitor, seed=1, **options):
    pl.seed_everything(seed, verbose=False)
    module = Classifier()
    data = options.pop("data", {"num_workers": 0})
    fit(folder, monitor, module, loader(seed=1, shuffle=True, **data), loader(16, seed=2, shuffle=True), **options)
    return module.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_sanity_val_steps": 0},
        {"precision": "bf16-mixed"},
        {"data": {"num_workers": 2}},
        {"accumulate_grad_batches": 2},
        {"logger": "wandb"},
    ],
    ids=str,
)
def test_weights_are_bit_identical_with_and_without_the_monitor(tmp_path, options):
    states = []
    for monitor in (None, FullGradMonitor(num_samples=4, strict=True)):
        chosen = dict(options)
        if chosen.get("logger") == "wandb":
            chosen["logger"] = WandbLogger(save_dir=tmp_path / str(len(states)), offline=True)
        states.append(weights_after(tmp_path, monitor, **chosen))
        if "logger" in chosen:
            chosen["logger"].experiment.finish()
    assert len(monitor.history.looks) == 3
    for name, without in states[0].items():
        assert torch.equal(without, states[1][name]), name
    chosen.pop("logger", None)
    assert not torch.equal(states[0]["head.2.weight"], weights_after(tmp_path, None, seed=2, **chosen)["head.2.weight"])


def test_flags_gradients_and_hooks_are_as_lightning_left_them(tmp_path):
    seen = []

    class Witness(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            flags = [m.training for m in module.modules()]
            hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
            grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
            seen.append((flags, hooks, grads, torch.get_rng_state()))

    before, after = Witness(), Witness()
    pl.seed_everything(1, verbose=False)
    trainer(tmp_path, before, FullGradMonitor(num_samples=2, strict=True), after, max_epochs=1).fit(
        Classifier(), loader(seed=1), loader(16)
    )
    (flags, hooks, grads, state), (flags2, hooks2, grads2, state2) = seen
    assert (flags, hooks) == (flags2, hooks2)
    assert torch.equal(state, state2)
    assert all(g is h or torch.equal(g, h) for g, h in zip(grads, grads2, strict=True))


def test_the_decomposition_works_inside_lightnings_inference_mode_validation(tmp_path):
    errors = []

    class Explaining(Classifier):
        def validation_step(self, batch, batch_idx):
            assert torch.is_inference_mode_enabled()
            errors.append(full_gradients(self, batch[0], batch[1]).completeness_error.max())

    trainer(tmp_path, FullGradMonitor(strict=True)).validate(Explaining(), loader(16), verbose=False)
    assert len(errors) == 2
    assert max(errors) < 1e-4  # float32


# --- the probe


@dataclass
class Batch:
    picture: torch.Tensor
    kind: torch.Tensor


def collated(kind):
    def collate(samples):
        images, labels = (torch.stack(column) for column in zip(*samples, strict=True))
        return {
            "tuple": (images, labels),
            "list": [images, labels],
            "dict": {"label": labels, "image": images},
            "nested": {"meta": [labels], "inputs": (images,)},
            "dataclass": Batch(images, labels),
        }[kind]

    return collate


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "nested", "dataclass"])
def test_the_probe_is_read_from_any_kind_of_batch(tmp_path, kind):
    class Any(Classifier):
        def training_step(self, batch, batch_idx):
            return self(torch.zeros(2, 1, 8, 8)).sum()

        def validation_step(self, batch, batch_idx):
            pass

    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, Any(), val=loader(16, seed=2, collate_fn=collated(kind)), max_epochs=1)
    images, labels = images_and_labels(16, seed=2)
    spread = [0, 5, 10, 15]
    assert torch.equal(monitor.history.probe.images, images[spread])
    assert torch.equal(monitor.history.probe.labels, labels[spread])


class Stream(IterableDataset):
    def __init__(self, seed):
        self.seed = seed
        self.opened = 0

    def __iter__(self):
        self.opened += 1
        yield from TensorDataset(*images_and_labels(16, self.seed))


@pytest.mark.parametrize(("sanity_steps", "epochs"), [(2, [0, 1, 2]), (0, [1, 2])])
def test_streamed_validation_data_is_taken_as_it_comes_by(tmp_path, sanity_steps, epochs):
    stream = Stream(seed=2)
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, val=DataLoader(stream, 8), num_sanity_val_steps=sanity_steps)
    assert stream.opened == (3 if sanity_steps else 2)  # Lightning's own passes
    assert [look.epoch for look in monitor.history.looks] == epochs
    assert torch.equal(monitor.history.probe.images, images_and_labels(16, 2)[0][:4])


def test_fields_called_image_and_label_go_before_others_that_fit(tmp_path):
    def collate(samples):
        images, labels = (torch.stack(column) for column in zip(*samples, strict=True))
        return {"index": torch.arange(len(labels)), "mask": torch.zeros_like(images), "image": images, "label": labels}

    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, Blind(), val=with_batches_of(collate), max_epochs=1)
    images, labels = images_and_labels(16, seed=2)
    assert torch.equal(monitor.history.probe.images, images[[0, 5, 10, 15]])
    assert torch.equal(monitor.history.probe.labels, labels[[0, 5, 10, 15]])


def test_whole_batches_from_a_batch_sampler_are_taken_as_they_come_by(tmp_path):
    dataset = TensorDataset(*images_and_labels(16, seed=2))
    val = DataLoader(dataset, batch_size=None, sampler=BatchSampler(SequentialSampler(dataset), 8, drop_last=False))
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, val=val, max_epochs=1)
    assert torch.equal(monitor.history.probe.images, images_and_labels(16, seed=2)[0][:4])


def test_images_given_by_the_user_go_before_a_stream(tmp_path):
    images, labels = images_and_labels(3, seed=9)
    monitor = FullGradMonitor(probe=(images, labels), strict=True)
    fit(tmp_path, monitor, val=DataLoader(Stream(seed=2), 8), max_epochs=1)
    assert torch.equal(monitor.history.probe.images, images)


def test_images_given_by_the_user_are_looked_at(tmp_path):
    images, labels = images_and_labels(3, seed=9)
    monitor = FullGradMonitor(probe=(images, labels), strict=True)
    fit(tmp_path, monitor, max_epochs=1)
    assert torch.equal(monitor.history.probe.images, images)
    unlabelled = FullGradMonitor(probe=images, strict=True)
    module, _ = fit(tmp_path, unlabelled, max_epochs=1)
    last = unlabelled.history.looks[-1]
    assert torch.equal(last.targets, module.eval()(images).argmax(1))


def test_without_validation_data_it_looks_at_training_data_and_says_so(tmp_path):
    monitor = FullGradMonitor(num_samples=2)
    with pytest.warns(UserWarning, match="no validation data") as caught:
        trainer(tmp_path, monitor).fit(Classifier(), loader(seed=1))
    assert sum("no validation data" in str(w.message) for w in caught) == 1
    assert [look.epoch for look in monitor.history.looks] == [0, 1, 2]
    with pytest.raises(ValueError, match="no validation data"):
        trainer(tmp_path, FullGradMonitor(strict=True)).fit(Classifier(), loader(seed=1))


# --- labels that are no classes of the output


class Binary(Classifier):
    """One logit, trained on labels 0 and 1."""

    def forward(self, images):
        return super().forward(images)[:, :1]

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0]).squeeze(1), (batch[1] > 0).float())

    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize(("module", "label"), [(Binary, 1), (Classifier, -100), (Classifier, 255)])
def test_the_first_predictions_are_explained_where_labels_are_no_classes(tmp_path, module, label):
    images, _ = images_and_labels(4, seed=9)
    monitor = FullGradMonitor(probe=(images, torch.full((4,), label)))
    with pytest.warns(UserWarning, match="out of range.*predicted classes of the first look") as caught:
        fit(tmp_path, monitor, module())
    assert sum("FullGradMonitor" in str(w.message) for w in caught) == 1
    targets = [look.targets for look in monitor.history.looks]
    assert len(targets) == 3
    assert all(torch.equal(target, targets[0]) for target in targets)
    with pytest.raises(ValueError, match="out of range"):
        fit(tmp_path, FullGradMonitor(probe=(images, torch.full((4,), label)), strict=True), module())


# --- how runs differ


@pytest.mark.parametrize("options", [{"precision": "64-true"}, {"precision": "bf16-true"}, {"limit_val_batches": 0}], ids=str)
@pytest.mark.filterwarnings("ignore:FullGradMonitor. NoProbe. there is no validation data")
def test_it_looks_in_any_precision_and_without_validation(tmp_path, options):
    monitor = FullGradMonitor(num_samples=2)
    fit(tmp_path, monitor, **options)
    assert [look.epoch for look in monitor.history.looks] == [0, 1, 2]


@pytest.mark.parametrize(
    "nest", [lambda val: [val, loader(4)], lambda val: {"first": val, "second": loader(4)}], ids=["list", "dict"]
)
def test_of_several_validation_loaders_the_first_is_looked_at(tmp_path, nest):
    class Several(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, Several(), val=nest(loader(16, seed=2)), max_epochs=1)
    assert torch.equal(monitor.history.probe.images, images_and_labels(16, seed=2)[0][[0, 5, 10, 15]])


def test_a_second_fit_with_the_same_logger_begins_a_new_history(tmp_path):
    monitor, logger = FullGradMonitor(num_samples=2), CSVLogger(tmp_path, name="run")
    for _ in range(2):
        fit(tmp_path, monitor, logger=logger, max_epochs=1)
    folders = sorted(path.parent.name for path in tmp_path.rglob("history.csv"))
    assert folders == ["fullgrad", "fullgrad_1"]
    assert [len(rows(tmp_path / "run" / "version_0" / name)) for name in folders] == [2, 2]


def test_a_fast_dev_run_writes_nothing(tmp_path):
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, fast_dev_run=True)
    assert len(monitor.history.looks) == 2
    assert not list(tmp_path.rglob("*"))


def test_an_interrupted_run_keeps_its_film_strip(tmp_path):
    class Interrupted(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise ZeroDivisionError

    monitor = FullGradMonitor(num_samples=2)
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, monitor, Interrupted()).fit(Classifier(), loader(seed=1), loader(16))
    assert monitor.history.strip_path.exists()
    assert [look.epoch for look in monitor.history.looks] == [0, 1]


def test_weights_spread_over_processes_are_not_looked_at(tmp_path):
    class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
        """Called as Lightning's, which needs a GPU."""

    monitor = FullGradMonitor()
    with pytest.warns(UserWarning, match="FSDPStrategy spreads the weights") as caught:
        fit(tmp_path, monitor, strategy=FSDPStrategy("cpu"))
    assert sum("FullGradMonitor" in str(w.message) for w in caught) == 1
    assert monitor.history is None


def test_an_untrained_head_of_zeros_has_no_shares(tmp_path):
    module = Classifier()
    torch.nn.init.zeros_(module.head[2].weight)
    torch.nn.init.zeros_(module.head[2].bias)
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, module, max_epochs=1)
    assert "fullgrad/input_share" not in monitor.history.looks[0].numbers
    assert "fullgrad/input_share" in monitor.history.looks[1].numbers


# --- what goes wrong is said once, and training goes on


class NoForward(Classifier):
    def forward(self, images):
        raise RuntimeError("this module is called otherwise")

    def training_step(self, batch, batch_idx):
        return self.head(self.features(batch[0])).sum()

    def validation_step(self, batch, batch_idx):
        pass


class NotANumber(Classifier):
    def forward(self, images):
        output = super().forward(images)
        return output if self.training else output * torch.nan


def with_batches_of(collate):
    return loader(16, seed=2, collate_fn=collate)


class Blind(Classifier):
    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize(
    ("module", "val", "reason"),
    [
        (NoForward, loader(16), "called otherwise"),
        (NotANumber, loader(16), "not finite for samples"),
        (Blind, with_batches_of(lambda samples: torch.stack([label for _, label in samples])), "found no images in a batch"),
        (Blind, with_batches_of(lambda samples: "no tensor at all"), "found no images in a batch of type str"),
        (Blind, DataLoader(TensorDataset(torch.empty(0, 1, 8, 8)), 4), "empty"),
    ],
)
def test_a_fault_warns_once_and_training_goes_on(tmp_path, module, val, reason):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, run = fit(tmp_path, FullGradMonitor(), module(), val=val)
    assert run.global_step == 6
    messages = [str(w.message) for w in caught if "FullGradMonitor" in str(w.message)]
    assert len(messages) == 1
    assert reason in messages[0]
    assert "training goes on" in messages[0]
    with pytest.raises(Exception, match=reason):
        fit(tmp_path, FullGradMonitor(strict=True), module(), val=val)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"psi": "squared"}, "psi must be one of absolute, positive, signed"),
        ({"probe": torch.zeros(3)}, "probe must be images"),
        ({"probe": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "probe must be images"),
        ({"probe": []}, "probe must be images"),
        ({"probe": (torch.zeros(2, 1, 8, 8), torch.zeros(3).long())}, "labels must be a tensor of 2 integers"),
        ({"probe": (torch.zeros(2, 1, 8, 8), torch.zeros(2))}, "labels must be a tensor of 2 integers"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        FullGradMonitor(**arguments)
