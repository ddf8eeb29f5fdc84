"""The monitor in real Trainer runs, read back from what it left."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import Normalize

from fg_lightning import FullGrad, FullGradMonitor, full_gradients
from fg_lightning.history import History
from fg_lightning.recording.explainer import Explainer
from fg_lightning.recording.probe import Probe
from fg_lightning.visualization import to_rgb
from tests.helpers.small_trainings import Classifier, fit, images_and_labels, loader, trainer


def epochs_of(monitor):
    return [snapshot.epoch for snapshot in monitor.history.snapshots]


def test_the_logged_maps_are_those_of_the_network_at_that_moment(tmp_path):
    monitor = FullGradMonitor(num_samples=4)
    module, _ = fit(tmp_path, monitor)
    probe, last = monitor.probe, monitor.history.snapshots[-1]
    expected = FullGrad(module).attribute(probe.images, probe.labels)
    assert torch.equal(monitor.history.last_maps, expected)
    error = full_gradients(module, probe.images, probe.labels).completeness_error.mean()
    assert last.numbers["fullgrad/completeness_error"] == pytest.approx(float(error))


@pytest.mark.parametrize(("stops", "epochs"), [(5, [0, 1, 2]), (1, [0, 1, 1])], ids=["at the last epoch", "early"])
def test_the_last_snapshot_is_of_the_averaged_weights_that_training_ends_with(tmp_path, stops, epochs):
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
def test_snapshots_are_of_the_untrained_net_after_every_nth_epoch_and_of_the_end(tmp_path, every, epochs):
    monitor = FullGradMonitor(every_n_epochs=every, num_samples=2)
    fit(tmp_path, monitor, max_epochs=4)
    assert epochs_of(monitor) == epochs


def test_the_sanity_check_has_no_snapshot_and_the_first_is_of_the_initial_weights(tmp_path):
    monitor = FullGradMonitor(num_samples=4)
    pl.seed_everything(1, verbose=False)
    module = Classifier()
    untrained = Classifier()
    untrained.load_state_dict(module.state_dict())
    trainer(tmp_path, monitor, num_sanity_val_steps=2).fit(module, loader(seed=1), loader(16, seed=2))
    first = monitor.history.snapshots[0]
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
    found = Explainer(Probe(images, labels)).explain(module)
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
    with pytest.warns(UserWarning, match="out of range.*predicted classes of the first snapshot") as caught:
        fit(tmp_path, monitor)
    assert sum("FullGradMonitor" in str(w.message) for w in caught) == 1
    explained = [[row.explained for row in monitor.history.images(index)] for index in range(3)]
    assert explained[0] == explained[1] == explained[2]
    assert explained[0][:3] == [row.prediction for row in monitor.history.images(0)][:3]
    assert explained[0][3] == labels[3]
    with pytest.raises(ValueError, match="out of range"):
        fit(tmp_path, FullGradMonitor(probe=(images, labels), strict=True))


def test_a_second_fit_with_the_same_logger_begins_a_new_history(tmp_path):
    monitor, logger = FullGradMonitor(num_samples=2), CSVLogger(tmp_path, name="run")
    for _ in range(2):
        fit(tmp_path, monitor, logger=logger, max_epochs=1)
    folders = sorted(path.parent.name for path in tmp_path.rglob("history.csv"))
    assert folders == ["fullgrad", "fullgrad_1"]
    assert [len(History.read(tmp_path / "run" / "version_0" / name).snapshots) for name in folders] == [2, 2]


def test_a_fast_dev_run_writes_nothing(tmp_path):
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, fast_dev_run=True)
    assert len(monitor.history.snapshots) == 2
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
    assert [snapshot.epoch for snapshot in monitor.history.snapshots] == [0, 1]


def test_an_untrained_head_of_zeros_has_no_shares(tmp_path):
    module = Classifier()
    torch.nn.init.zeros_(module.head[2].weight)
    torch.nn.init.zeros_(module.head[2].bias)
    monitor = FullGradMonitor(num_samples=2, strict=True)
    fit(tmp_path, monitor, module, max_epochs=1)
    assert "fullgrad/input_share" not in monitor.history.snapshots[0].numbers
    assert "fullgrad/input_share" in monitor.history.snapshots[1].numbers


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
    original = images_and_labels(16, seed=2)[0][monitor.probe.indices[1]].clamp(0, 1)
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
    picture = to_rgb(monitor.probe.images[0])
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
