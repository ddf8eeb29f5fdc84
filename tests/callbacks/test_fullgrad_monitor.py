"""The monitor in real Trainer runs, read back from what it left."""

import inspect
import re
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import Normalize

from fg_lightning import FullGrad, FullGradMonitor, full_gradients
from fg_lightning.history.history import History
from fg_lightning.recording.normalization import Facts
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.snapshot import Looker
from fg_lightning.visualization import displayed
from tests.helpers.small_trainings import LIGHTNINGS_OWN, Classifier, fit, images_and_labels, loader, trainer

pytestmark = LIGHTNINGS_OWN


def epochs_of(monitor):
    return [look.epoch for look in monitor.history.looks]


def test_the_logged_maps_are_those_of_the_network_at_that_moment(tmp_path):
    monitor = FullGradMonitor(num_samples=4)
    module, _ = fit(tmp_path, monitor)
    probe, last = monitor.probe, monitor.history.looks[-1]
    expected = FullGrad(module).attribute(probe.images, probe.labels)
    assert torch.equal(monitor.history.last_maps, expected)
    error = full_gradients(module, probe.images, probe.labels).completeness_error.mean()
    assert last.numbers["fullgrad/completeness_error"] == pytest.approx(float(error))


@pytest.mark.parametrize(("stops", "epochs"), [(5, [0, 1, 2]), (1, [0, 1, 1])], ids=["at the last epoch", "early"])
def test_the_last_look_is_at_the_averaged_weights_that_training_ends_with(tmp_path, stops, epochs):
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging").EMAWeightAveraging(decay=0.5)

    class Stops(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = trainer.current_epoch + 1 == stops

    monitor, module = FullGradMonitor(num_samples=4, strict=True), Classifier()
    trainer(tmp_path, averaging, Stops(), monitor).fit(module, loader(seed=1), loader(16, seed=2))
    assert epochs_of(monitor) == epochs
    expected = FullGrad(module).attribute(monitor.probe.images, monitor.probe.labels)
    assert torch.equal(monitor.history.last_maps, expected)


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4])])
def test_it_looks_at_the_untrained_net_after_every_nth_epoch_and_at_the_end(tmp_path, every, epochs):
    monitor = FullGradMonitor(every_n_epochs=every, num_samples=2)
    fit(tmp_path, monitor, max_epochs=4)
    assert epochs_of(monitor) == epochs


def test_nothing_is_looked_at_in_the_sanity_check_and_the_first_look_is_at_the_initial_weights(tmp_path):
    monitor = FullGradMonitor(num_samples=4)
    pl.seed_everything(1, verbose=False)
    module = Classifier()
    untrained = Classifier()
    untrained.load_state_dict(module.state_dict())
    trainer(tmp_path, monitor, num_sanity_val_steps=2).fit(module, loader(seed=1), loader(16, seed=2))
    first = monitor.history.looks[0]
    assert (first.epoch, first.step) == (0, 0)
    assert torch.equal(monitor.history.first_maps, FullGrad(untrained).attribute(monitor.probe.images, monitor.probe.labels))


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


def test_a_share_is_of_what_speaks_for_the_output_whatever_its_sign():
    torch.manual_seed(0)
    module, (images, _) = Classifier().eval(), images_and_labels(6)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    found = Looker(Probe(images, labels)).look(module, torch.device("cpu"))
    terms = full_gradients(module, images, labels)
    assert (terms.output > 0).any()
    assert (terms.output < 0).any()
    shares = {(layer.kind, layer.module): layer.share for layer in found.layers}
    for name, term in terms.bias_terms.items():
        for_it = sum(float(t if f > 0 else -t) for t, f in zip(term, terms.output, strict=True))
        assert shares["explicit", name] == pytest.approx(for_it / float(terms.output.abs().sum()), abs=1e-5)  # float32
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)  # float32


# --- labels that are no classes of the output


@pytest.mark.parametrize("label", [-100, 255])
def test_the_first_predictions_are_explained_where_labels_are_no_classes(tmp_path, label):
    images, labels = images_and_labels(4, seed=9)
    labels[:3] = label
    monitor = FullGradMonitor(probe=(images, labels))
    with pytest.warns(UserWarning, match="out of range.*predicted classes of the first look") as caught:
        fit(tmp_path, monitor)
    assert sum("FullGradMonitor" in str(w.message) for w in caught) == 1
    explained = [[int(row["explained"]) for row in monitor.history.images(look)] for look in range(3)]
    assert explained[0] == explained[1] == explained[2]
    assert explained[0][:3] == [int(row["prediction"]) for row in monitor.history.images(0)][:3]
    assert explained[0][3] == labels[3]
    with pytest.raises(ValueError, match="out of range"):
        fit(tmp_path, FullGradMonitor(probe=(images, labels), strict=True))


def test_a_second_fit_with_the_same_logger_begins_a_new_history(tmp_path):
    monitor, logger = FullGradMonitor(num_samples=2), CSVLogger(tmp_path, name="run")
    for _ in range(2):
        fit(tmp_path, monitor, logger=logger, max_epochs=1)
    folders = sorted(path.parent.name for path in tmp_path.rglob("history.csv"))
    assert folders == ["fullgrad", "fullgrad_1"]
    assert [len(History.read(tmp_path / "run" / "version_0" / name).looks) for name in folders] == [2, 2]


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


def test_an_untrained_head_of_zeros_has_no_shares(tmp_path):
    module = Classifier()
    torch.nn.init.zeros_(module.head[2].weight)
    torch.nn.init.zeros_(module.head[2].bias)
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, module, max_epochs=1)
    assert "fullgrad/input_share" not in monitor.history.looks[0].numbers
    assert "fullgrad/input_share" in monitor.history.looks[1].numbers


# --- what is shown


class Named(TensorDataset):
    """Photographs of three kinds, normalized as the transform says."""

    classes = ("cat", "dog", "owl")

    def __init__(self):
        super().__init__(*images_and_labels(16, seed=2))
        self.transform = Normalize((0.5,), (2.0,))

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return self.transform(image.clamp(0, 1)), label


def test_images_are_shown_as_they_were_and_classes_by_name(tmp_path):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, val=DataLoader(Named(), 8), max_epochs=1)
    about = monitor.history.about()
    assert about["class_names"] == ["cat", "dog", "owl"]
    assert about["normalization"] == {"mean": [0.5], "std": [2.0]}
    original = images_and_labels(16, seed=2)[0][5].clamp(0, 1)
    from matplotlib.image import imread

    shown = imread(monitor.history.folder / "probe" / "001.png")[..., :1]
    assert torch.allclose(torch.from_numpy(shown).permute(2, 0, 1), original, atol=1 / 255)


def test_what_the_user_says_goes_before_what_the_data_says(tmp_path):
    monitor = FullGradMonitor(num_samples=4, normalization=([0.0], [1.0]), class_names=["a", "b", "c"], strict=True)
    fit(tmp_path, monitor, val=DataLoader(Named(), 8), max_epochs=1)
    about = monitor.history.about()
    assert about["class_names"] == ["a", "b", "c"]
    assert about["normalization"] == {"mean": [0.0], "std": [1.0]}


def test_without_a_normalization_images_are_shown_by_their_own_range(tmp_path):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    fit(tmp_path, monitor, max_epochs=1)
    assert monitor.history.about()["normalization"] is None
    picture = displayed(monitor.probe.images[0])
    assert (picture.min(), picture.max()) == (0, 255)


@pytest.mark.parametrize("shape", [(2, 40), (1, 4, 6, 8)], ids=["signals", "volumes"])
def test_signals_and_volumes_are_drawn_too(tmp_path, shape):
    class Any(pl.LightningModule):
        def __init__(self):
            super().__init__()
            axes = len(shape) - 1
            convolution = {1: nn.Conv1d, 3: nn.Conv3d}[axes](shape[0], 4, 3, padding=1)
            self.net = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
            self.net(torch.zeros(1, *shape))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = DataLoader(TensorDataset(torch.rand(8, *shape), torch.randint(3, (8,))), 4)
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, Any(), data, data, max_epochs=1)
    assert monitor.history.maps(-1).shape == (2, 1, *shape[1:])
    for name in ("film_strip.png", "saliency/epoch_0001.png", "probe/001.png"):
        assert (monitor.history.folder / name).stat().st_size > 100


# --- what goes wrong is said once, and training goes on


class Raising(Classifier):
    def forward(self, images):
        raise RuntimeError("this module is called otherwise")

    def training_step(self, batch, batch_idx):
        return self.head(self.features(batch[0])).sum()

    def validation_step(self, batch, batch_idx):
        pass


class Routed(pl.LightningModule):
    """No forward, and more than one network that could be it."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64)), nn.Linear(64, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.decoder(self.encoder(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Paired(Classifier):
    def forward(self, images, ages):
        return super().forward(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0], None), batch[1])

    def validation_step(self, batch, batch_idx):
        pass


class Unfitted(Classifier):
    def forward(self, images):
        if not self.training:
            raise RuntimeError("not fitted yet")
        return super().forward(images)

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
        (Raising, loader(16), "called otherwise"),
        (Routed, loader(16), "has no forward, and the networks in it are encoder, decoder; say how it is called"),
        (Paired, loader(16), "missing 1 required positional argument: 'ages'.*if it takes something else, say how it is called"),
        (Unfitted, loader(16), r"not fitted yet .raised by the forward of Unfitted, called on images .8, 1, 8, 8"),
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
    assert re.search(reason, messages[0])
    assert "training goes on" in messages[0]
    with pytest.raises(Exception, match=reason):
        fit(tmp_path, FullGradMonitor(strict=True), module(), val=val)


def test_data_that_cannot_be_asked_for_its_classes_costs_no_look(tmp_path, monkeypatch):
    def fails(self, count):
        raise RuntimeError("not downloaded")

    monkeypatch.setattr(Facts, "class_names", fails)
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match="not downloaded .*training goes on"):
        fit(tmp_path, monitor, max_epochs=1)
    assert epochs_of(monitor) == [0, 1]
    assert monitor.history.about()["class_names"] is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"psi": "squared"}, "psi must be one of absolute, positive, signed"),
        ({"every_n_epochs": 1.5}, "every_n_epochs must be at least 1, an integer, not 1.5"),
        ({"num_samples": True}, "num_samples must be at least 1, an integer, not True"),
        ({"normalization": (0.5, 0.5)}, r"normalization must be \(mean, std\)"),
        ({"normalization": ([0.5], [0.5, 0.5])}, "a mean and a std for each channel, not 1 and 2"),
        ({"normalization": ([0.5], [0.0])}, "must not be zero"),
        ({"probe": torch.zeros(3)}, "probe must be images"),
        ({"probe": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "probe must be images"),
        ({"probe": []}, "probe must be images"),
        ({"probe": (torch.zeros(2, 1, 8, 8), torch.zeros(3).long())}, "a row for each of 2 images"),
        ({"probe": (torch.zeros(2, 1, 8, 8), [0, 1])}, "a row for each of 2 images"),
    ],
)
@pytest.mark.ill_typed
def test_bad_arguments_are_refused_at_once(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        FullGradMonitor(**arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"target": "cat"}, "target must be a class, a list of them or a function of the output, not 'cat'"),
        ({"target": True}, "target must be a class"),
        ({"forward": "call"}, "forward must be a function of the module and a batch"),
        ({"class_names": "cat"}, "class_names must be a list of names"),
    ],
)
@pytest.mark.ill_typed
def test_arguments_of_another_kind_are_refused_at_once(arguments, reason):
    with pytest.raises(TypeError, match=reason):
        FullGradMonitor(**arguments)


def test_it_keeps_its_word_on_the_arguments_of_its_configuration():
    """What callbacks/*.yaml and FG_LIGHTNING may name."""
    assert list(inspect.signature(FullGradMonitor).parameters) == [
        *("every_n_epochs", "num_samples", "probe", "target", "forward", "psi", "normalization", "class_names"),
        *("task", "animation", "report", "strict"),
    ]
