"""Which images become the probe: by number, the hardest, by a hook; and what they carry along."""

import re

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fg_lightning import FullGradMonitor
from fg_lightning.history import History
from fg_lightning.metrics import pointing_game, relevance_mass
from tests.helpers.small_trainings import Classifier, Stream, fit, images_and_labels, loader, trainer

IMAGES, LABELS = images_and_labels(16, seed=2)
BALANCED = (3, 10, 11, 8)
OF_FIRST_BATCH = [1, 5, 7, 4]


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader(seed=1, shuffle=True)

    def val_dataloader(self):
        return loader(16, seed=2)


def warned(caught):
    return [str(w.message) for w in caught if "FullGradMonitor" in str(w.message)]


# --- by number


@pytest.mark.parametrize("numbers", [[3, 15, 0], (3, 15, 0), torch.tensor([3, 15, 0]), range(2, 5)], ids=str)
def test_images_are_chosen_by_their_numbers(tmp_path, numbers):
    monitor = FullGradMonitor(probe=numbers, strict=True)
    fit(tmp_path, monitor, max_epochs=1)
    expected = [int(i) for i in numbers]
    assert torch.equal(monitor.probe.images, IMAGES[expected])
    assert monitor.history.about()["indices"] == expected


def test_a_number_without_an_image_is_a_warning(tmp_path):
    message = r"there is no image 16, because the data set has 16 images; give indices from 0 to 15"
    with pytest.warns(UserWarning, match=message) as caught:
        _, run = fit(tmp_path, FullGradMonitor(probe=[2, 16]), max_epochs=1)
    assert len(warned(caught)) == 1
    assert run.current_epoch == 1


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("easiest", 'probe must be "balanced", "hardest", indices or images, not \'easiest\''),
        ([-1, 2], "counted from 0"),
        ([], "one or more indices"),
        (3, "probe must be images"),
        ({"image": IMAGES}, "probe must be images"),
        ([True, False], "probe must be images"),
        ([0.5], "probe must be images"),
        ((IMAGES, LABELS, IMAGES, 1), "probe must be images"),
    ],
)
def test_what_no_probe_is_is_refused_at_once(asked, message):
    with pytest.raises(ValueError, match=message):
        FullGradMonitor(probe=asked)


# --- the hardest


def losses_after(epochs, labels=LABELS):
    """Of all validation images, after a training without a monitor."""
    pl.seed_everything(1, verbose=False)
    module = Classifier()
    trainer(None, max_epochs=epochs).fit(module, loader(seed=1, shuffle=True), loader(16, seed=2))
    with torch.no_grad():
        return F.cross_entropy(module.eval()(IMAGES), labels, reduction="none")


def test_the_hardest_images_are_those_with_the_largest_loss_after_the_first_epoch(tmp_path):
    monitor = FullGradMonitor(probe="hardest", num_samples=4, strict=True)
    fit(tmp_path, monitor, max_epochs=3)
    expected = losses_after(1).sort(descending=True)
    assert monitor.history.about()["indices"] == expected.indices[:4].tolist()
    assert torch.equal(monitor.probe.images, IMAGES[expected.indices[:4]])
    assert [snapshot.epoch for snapshot in monitor.history.snapshots] == [1, 2, 3]
    assert not any("fullgrad/drift_from_untrained" in snapshot.numbers for snapshot in monitor.history.snapshots)
    most, least = f"{expected.values[0]:.3g}", f"{expected.values[3]:.3g}"
    assert monitor.history.about()["chosen"] == f"the hardest 4 of 16 images (cross-entropy {least} to {most})"


def test_by_steps_the_first_snapshot_of_the_hardest_is_that_of_the_first_epoch(tmp_path):
    monitor = FullGradMonitor(probe="hardest", num_samples=4, every_n_steps=2, strict=True)
    fit(tmp_path, monitor)
    assert [snapshot.num_steps for snapshot in monitor.history.snapshots] == [3, 4, 6]
    assert monitor.history.about()["indices"] == losses_after(1).argsort(descending=True)[:4].tolist()


def test_the_hardest_are_searched_among_some_and_read_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr("fg_lightning.callbacks.probe_source.POOL", 5)
    read = []

    class Counted(Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            read.append(index)
            return IMAGES[index], LABELS[index]

    monitor = FullGradMonitor(probe="hardest", num_samples=2, strict=True)
    pl.seed_everything(1, verbose=False)
    run = trainer(tmp_path, monitor, max_epochs=1, num_sanity_val_steps=0, limit_val_batches=1)
    run.fit(Classifier(), loader(seed=1, shuffle=True), DataLoader(Counted(), 2))
    pool = [0, 3, 7, 11, 15]
    hardest = sorted(pool, key=lambda i: -float(losses_after(1)[i]))[:2]
    assert read == [0, 1, *pool, *hardest]


def test_the_hardest_stay_when_a_run_resumes(tmp_path):
    def run(monitor, epochs, path=None):
        pl.seed_everything(1, verbose=False)
        saved = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, filename="{epoch}")
        fitted = trainer(tmp_path, monitor, saved, max_epochs=epochs, enable_checkpointing=True)
        fitted.fit(Classifier(), loader(seed=1, shuffle=True), loader(16, seed=2), ckpt_path=path, weights_only=False)

    first = FullGradMonitor(probe="hardest", num_samples=4, strict=True)
    run(first, 1)
    second = FullGradMonitor(probe="hardest", num_samples=4, strict=True)
    run(second, 3, tmp_path / "saved/epoch=0.ckpt")
    assert torch.equal(first.probe.images, second.probe.images)
    assert second.probe.chosen == first.probe.chosen
    assert [snapshot.epoch for snapshot in History.read(second.history.folder).snapshots] == [1, 2, 3]
    anew = FullGradMonitor(probe="hardest", num_samples=4, reading="locally_affine")
    with pytest.warns(UserWarning, match="reading was exact and is locally_affine"):
        run(anew, 3, tmp_path / "saved/epoch=0.ckpt")
    assert (anew.probe.indices, anew.probe.chosen) == (first.probe.indices, first.probe.chosen)
    ordinary = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match="images of the checkpoint are still explained"):
        run(ordinary, 3, tmp_path / "saved/epoch=0.ckpt")
    assert torch.equal(first.probe.images, ordinary.probe.images)


def test_hardest_after_a_run_with_others_begins_anew(tmp_path):
    def run(monitor, epochs, path=None):
        saved = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, filename="{epoch}")
        fitted = trainer(tmp_path, monitor, saved, max_epochs=epochs, enable_checkpointing=True)
        fitted.fit(Classifier(), loader(seed=1), loader(16, seed=2), ckpt_path=path, weights_only=False)

    run(FullGradMonitor(num_samples=4, strict=True), 1)
    monitor = FullGradMonitor(num_samples=4, probe="hardest")
    with pytest.warns(UserWarning, match='the probe became "hardest".*a new history begins'):
        run(monitor, 2, tmp_path / "saved/epoch=0.ckpt")
    assert monitor.probe.chosen.startswith("the hardest")
    assert [snapshot.epoch for snapshot in monitor.history.snapshots] == [1, 2]


def test_a_training_that_ends_in_its_first_epoch_has_hardest_images(tmp_path):
    monitor = FullGradMonitor(probe="hardest", num_samples=2, strict=True)
    fit(tmp_path, monitor, max_steps=1)
    assert monitor.probe.chosen.startswith("the hardest 2 of 16")
    assert len(monitor.history.snapshots) == 1


class Unlabelled(Classifier):
    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass


def test_without_labels_others_are_explained(tmp_path):
    val = DataLoader(TensorDataset(IMAGES), 8)
    monitor = FullGradMonitor(probe="hardest", num_samples=4)
    with pytest.warns(UserWarning, match="without labels that belong to the output.*others are explained"):
        fit(tmp_path, monitor, Unlabelled(), val=val)
    assert monitor.probe.chosen == "evenly spread"
    assert len(monitor.history.snapshots) == 2


def test_images_without_a_class_are_never_the_hardest(tmp_path):
    labels = LABELS.clone()
    labels[::2] = -100
    monitor = FullGradMonitor(probe="hardest", num_samples=4, strict=True)
    fit(tmp_path, monitor, Silent(), val=DataLoader(TensorDataset(IMAGES, labels), 8), max_epochs=1)
    assert all(i % 2 for i in monitor.probe.indices)


class Silent(Classifier):
    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize("asked", ["hardest", [3, 5]])
def test_a_stream_has_neither_numbers_nor_hardest_images(tmp_path, asked):
    monitor = FullGradMonitor(probe=asked, num_samples=4)
    with pytest.warns(UserWarning, match=re.escape("the data is streamed (so images of the first batch are explained")) as caught:
        fit(tmp_path, monitor, val=DataLoader(Stream(seed=2), 8))
    assert len(warned(caught)) == 1
    assert torch.equal(monitor.probe.images, IMAGES[OF_FIRST_BATCH])


# --- by a hook


def with_hook(kind, answer):
    def fullgrad_probe(self):
        return answer() if callable(answer) else answer

    return type(kind.__name__, (kind,), {"fullgrad_probe": fullgrad_probe})


@pytest.mark.parametrize("of_module", [True, False])
def test_a_method_of_the_datamodule_or_module_chooses(tmp_path, of_module):
    data, module = (
        (Data if of_module else with_hook(Data, [2, 3]))(),
        (with_hook(Classifier, [2, 3]) if of_module else Classifier)(),
    )
    monitor = FullGradMonitor(num_samples=4, strict=True)
    trainer(tmp_path, monitor, max_epochs=1).fit(module, datamodule=data)
    assert torch.equal(monitor.probe.images, IMAGES[[2, 3]])
    asked = FullGradMonitor(num_samples=4, probe=[7], strict=True)
    trainer(tmp_path, asked, max_epochs=1).fit(module, datamodule=data)
    assert torch.equal(asked.probe.images, IMAGES[[7]])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("hardest", None), (None, BALANCED), ((IMAGES[:2], LABELS[:2], IMAGES[:2] > 0.5), (0, 1)), (torch.tensor([4, 5]), (4, 5))],
)
def test_a_hook_answers_as_the_argument_does(tmp_path, answer, expected):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    trainer(tmp_path, monitor, max_epochs=1).fit(Classifier(), datamodule=with_hook(Data, answer)())
    if expected is None:
        assert monitor.probe.chosen.startswith("the hardest")
    else:
        assert torch.equal(monitor.probe.images, IMAGES[list(expected)])
    assert ("fullgrad/relevance_mass" in monitor.history.snapshots[-1].numbers) is isinstance(answer, tuple)


def broken():
    raise KeyError("lungs")


@pytest.mark.parametrize("answer", [broken, "easiest"])
def test_a_fault_of_the_hook_costs_the_choice_alone(tmp_path, answer):
    monitor = FullGradMonitor(num_samples=4)
    with pytest.warns(UserWarning, match="raised by fullgrad_probe, so images are chosen as without it") as caught:
        trainer(tmp_path, monitor, max_epochs=1).fit(Classifier(), datamodule=with_hook(Data, answer)())
    assert len(warned(caught)) == 1
    assert monitor.probe.indices == BALANCED


# --- as text


@pytest.mark.parametrize(
    ("text", "expected"), [("hardest", "hardest"), ("[3, 5]", [3, 5]), ("balanced", "balanced"), ("null", None)]
)
def test_the_choice_can_be_given_as_text(text, expected):
    parser = ArgumentParser()
    parser.add_class_arguments(FullGradMonitor, "monitor")
    assert parser.parse_args([f"--monitor.probe={text}"]).monitor.probe == expected


# --- masks


def ink(batch):
    return batch[0] > 0.5


@pytest.mark.parametrize("options", [{"probe": (IMAGES[:6], LABELS[:6], ink((IMAGES[:6],)))}, {"masks": ink, "num_samples": 6}])
def test_relevance_on_the_masks_is_measured_at_every_snapshot(tmp_path, options):
    monitor = FullGradMonitor(**options, strict=True)
    fit(tmp_path, monitor)
    history = History.read(monitor.history.folder)
    images, _ = history.probe()
    assert torch.equal(history.probe_masks(), images > 0.5)
    for index, snapshot in enumerate(history.snapshots):
        maps = history.maps(index).abs()
        expected = float(relevance_mass(maps, images > 0.5).mean())
        assert snapshot.numbers["fullgrad/relevance_mass"] == pytest.approx(expected, abs=1e-3)  # maps are kept as float16
        assert snapshot.numbers["fullgrad/pointing_game"] == float(pointing_game(maps, images > 0.5).mean())
    assert history.about()["chance"]["relevance_mass"] == pytest.approx(float((images > 0.5).float().mean()))


def test_wrong_masks_are_one_sentence_and_training_goes_on(tmp_path):
    monitor = FullGradMonitor(probe=(IMAGES, LABELS, torch.ones(16, 3, 3)))
    with pytest.warns(UserWarning, match=r"mask of image 0 has shape \[3, 3\], and the image \[8, 8\] pixels") as caught:
        fit(tmp_path, monitor, max_epochs=1)
    assert len(warned(caught)) == 1
    assert len(monitor.history.snapshots) == 2
    assert monitor.history.about()["masks"] is None
    with pytest.raises(ValueError, match="there are 2 masks or boxes for 4 images"):
        fit(tmp_path, FullGradMonitor(num_samples=4, masks=lambda batch: torch.ones(2, 8, 8), strict=True), max_epochs=1)


@pytest.mark.ill_typed
def test_masks_that_are_no_function_are_refused():
    with pytest.raises(TypeError, match=r"probe=\(images, labels, masks\)"):
        FullGradMonitor(masks=torch.ones(16, 8, 8))


def test_masks_go_on_when_a_run_resumes(tmp_path):
    def run(monitor, epochs, path=None):
        saved = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, filename="{epoch}")
        fitted = trainer(tmp_path, monitor, saved, max_epochs=epochs, enable_checkpointing=True)
        fitted.fit(Classifier(), loader(seed=1), loader(16, seed=2), ckpt_path=path, weights_only=False)
        return ["fullgrad/relevance_mass" in snapshot.numbers for snapshot in monitor.history.snapshots]

    path = tmp_path / "saved/epoch=0.ckpt"
    assert run(FullGradMonitor(num_samples=4, masks=ink, strict=True), 1) == [True, True]
    without = FullGradMonitor(num_samples=4, strict=True)
    assert run(without, 2, path) == [True, True, True]
    assert torch.equal(without.probe.masks, without.probe.images > 0.5)
    others = FullGradMonitor(num_samples=4, masks=lambda batch: batch[0] < 0.5)
    with pytest.warns(UserWarning, match="the masks differ.*a new history begins"):
        assert run(others, 2, path) == [True, True]
    (tmp_path / "saved").rename(tmp_path / "first")
    assert run(FullGradMonitor(num_samples=4, strict=True), 1) == [False, False]
    assert run(FullGradMonitor(num_samples=4, masks=ink, strict=True), 2, path) == [False, False, True]


class Segmenter(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["image"]), batch["mask"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)

    validation_step = training_step


def segmented(n, seed, **fields):
    images, labels = images_and_labels(n, seed)
    maps = (images[:, 0] > 0.5).long() * labels[:, None, None]
    columns = {"image": images, "mask": maps, **fields}
    return [{name: column[i] for name, column in columns.items()} for i in range(n)]


def test_in_segmentation_the_region_of_the_explained_class_is_the_mask(tmp_path):
    monitor = FullGradMonitor(num_samples=16, strict=True)
    fit(tmp_path, monitor, Segmenter(), DataLoader(segmented(24, 1), 8), DataLoader(segmented(16, 2), 8))
    has_object = LABELS > 0  # of class 0 there is background alone
    expected = (IMAGES > 0.5) & has_object[:, None, None, None]
    assert torch.equal(monitor.probe.masks, expected)
    assert torch.equal(History.read(monitor.history.folder).probe_masks(), expected)
    assert monitor.history.about()["masks"] == "the region of the explained class in the label map"
    assert all("fullgrad/relevance_mass" in snapshot.numbers for snapshot in monitor.history.snapshots)


@pytest.mark.parametrize("kind", ["label map", "field of its own", "function"])
def test_masks_of_a_segmentation_data_set(tmp_path, kind):
    """A field called mask is the label map itself, of which only the explained class counts, or says where to look."""
    _, labels = images_and_labels(16, seed=2)
    own = torch.zeros(16, 8, 8, dtype=torch.bool)
    own[:, 4:7, 4:7] = True
    fields = {"boxes": torch.tensor([[4, 4, 7, 7]] * 16)} if kind == "field of its own" else {"label": labels}
    options = {"masks": lambda batch: batch["mask"] != 0} if kind == "function" else {}
    monitor = FullGradMonitor(num_samples=16, **options, strict=True)
    fit(tmp_path, monitor, Segmenter(), DataLoader(segmented(24, 1), 8), DataLoader(two_classes(fields), 8), max_epochs=1)
    masks = monitor.probe.masks[:, 0]
    maps = torch.stack([item["mask"] for item in two_classes(fields)])[list(monitor.probe.indices)]
    expected = {"label map": maps == 2, "field of its own": own, "function": maps != 0}[kind]
    assert torch.equal(masks, expected)


def two_classes(fields):
    """Each image has a small region of class 1 and a larger one of class 2."""
    maps = torch.zeros(16, 8, 8, dtype=torch.long)
    maps[:, 0, :3], maps[:, 4:, 4:] = 1, 2
    return [{"image": IMAGES[i], "mask": maps[i], **{name: column[i] for name, column in fields.items()}} for i in range(16)]


# --- what is wrong


def test_what_the_network_gets_wrong_is_written(tmp_path):
    monitor = FullGradMonitor(num_samples=16, strict=True)
    fit(tmp_path, monitor)
    for index in range(3):
        rows = monitor.history.images(index)
        assert [row.correct for row in rows] == [int(row.prediction == row.label) for row in rows]
    assert {row.correct for row in monitor.history.images(0)} == {0, 1}


# --- no harm


@pytest.mark.parametrize("options", [{"probe": "hardest"}, {"probe": [1, 2]}, {"masks": ink}])
def test_training_comes_out_bit_for_bit(tmp_path, options):
    plain, _ = fit(tmp_path, pl.Callback())
    watched, _ = fit(tmp_path, FullGradMonitor(num_samples=4, **options, strict=True))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
