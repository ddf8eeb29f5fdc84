"""The saliency store against maps that are ranked one at a time; interrupted, shared and damaged."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from fg_lightning.attribution import METHODS, method_from
from fg_lightning.errors import UnfitData
from fg_lightning.fullgrad import saliency
from fg_lightning.removal import ranks
from fg_lightning.roar import CannotRun, RandomImages, SaliencyStore, StoreError
from fg_lightning.roar.dataset_views import views_of
from fg_lightning.roar.image_pixels import images_and_labels
from fg_lightning.roar.saliency_store_files import StoreWriter
from tests import ROOT
from tests.helpers.tiny_squares import SIDE, TENSOR, Data, Net, Squares

pytestmark = pytest.mark.filterwarnings("error")  # the package silences Lightning's advice itself


def set_up(**settings):
    data = Data(**settings)
    data.setup("fit")
    return data


def test_ranks_are_those_of_the_maps_of_batches(store, net):
    for split, dataset in (("train", set_up().train), ("val", set_up().val), ("test", set_up().test)):
        images = torch.stack([image for image, _ in dataset])
        for start in range(0, len(dataset), 7):
            maps = METHODS["gradient"](net).attribute(images[start : start + 7])
            expected = ranks(maps, list(range(start, start + len(maps))))
            assert np.array_equal(store.ranks(split)[start : start + 7], expected.numpy())


@pytest.mark.parametrize("method", ["fullgrad", "blurred_fullgrad"])
def test_runs_of_fullgrad_are_repeated_and_the_ranks_stay(net, tmp_path, monkeypatch, method):
    runs, run = [], saliency.run_forward_backward
    monkeypatch.setattr(saliency, "run_forward_backward", lambda *given, **options: runs.append(1) or run(*given, **options))
    repeated = SaliencyStore.make(tmp_path / "repeated", net, Data(), method, batch_size=3)
    num_repeated = len(runs)
    by_code = SaliencyStore.make(tmp_path / "code", net, Data(), method, batch_size=3, settings={"graphed": False})
    assert len(runs) - num_repeated == 25  # 14, 4 and 7 batches
    assert num_repeated < 15
    for split in repeated.splits:
        assert np.array_equal(repeated.ranks(split), by_code.ranks(split))


def test_two_bytes_a_pixel_and_mapped(store):
    assert store.splits == ["train", "val", "test"]
    assert isinstance(store.ranks("train"), np.memmap)
    assert store.ranks("train").dtype == np.uint16
    assert (store.path / "train.ranks").stat().st_size == 40 * SIDE * SIDE * 2
    names = {f"{split}.{kind}" for split in store.splits for kind in ("ranks", "checksums")}
    assert {path.name for path in store.path.iterdir()} == names | {"manifest.json"}


def test_the_manifest_says_what_it_is_of(store):
    manifest = store.manifest
    assert (manifest.method, manifest.target, manifest.shape, manifest.finished) == ("gradient", "predicted", (SIDE, SIDE), True)
    assert manifest.model.startswith("Net ")
    assert [split.length for split in manifest.splits.values()] == [40, 10, 20]
    train = Squares(50).pixels[:40]
    assert manifest.channel_mean == pytest.approx([train.mean()], rel=1e-12)  # float64 sums of bytes are exact


def test_sent_to_another_process_it_is_mapped_there_again(store):
    sent = pickle.dumps(store)
    assert len(sent) < 5000
    assert np.array_equal(pickle.loads(sent).ranks("test"), store.ranks("test"))


def test_what_is_finished_is_only_opened(store, net):
    before = (store.path / "train.ranks").stat().st_mtime_ns
    SaliencyStore.make(store.path, net, Data(), "gradient", batch_size=7)
    assert (store.path / "train.ranks").stat().st_mtime_ns == before


def test_interrupted_it_goes_on_where_it_stopped(store, net, tmp_path, monkeypatch):
    written = []
    real = StoreWriter.write

    def write(self, split, number, *rest):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append((split, number))
        real(self, split, number, *rest)

    monkeypatch.setattr(StoreWriter, "write", write)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        SaliencyStore.make(tmp_path / "s", net, Data(), "gradient", batch_size=7)
    with pytest.raises(StoreError, match=r"unfinished: 4 of 11 batches of 7 images"):
        SaliencyStore(tmp_path / "s")
    monkeypatch.setattr(StoreWriter, "write", lambda self, *given: (written.append(given[:2]), real(self, *given)))
    again = SaliencyStore.make(tmp_path / "s", net, Data(), "gradient", batch_size=7)
    assert len(written) == len(set(written)) == 11
    assert again.manifest == store.manifest
    for split in store.splits:
        assert np.array_equal(again.ranks(split), store.ranks(split))


@pytest.mark.slow
def test_two_processes_make_the_same_store_as_one(store, tmp_path):
    script = tmp_path / "share.py"
    script.write_text(
        "import sys, torch\n"
        "from lightning.pytorch import Trainer\n"
        "from tests.helpers.tiny_squares import Data, Net\n"
        "from fg_lightning.roar import SaliencyStore\n"
        "torch.set_num_threads(1)\n"
        "torch.manual_seed(0)\n"
        "trainer = Trainer(accelerator='cpu', devices=2, strategy='ddp', logger=False, enable_progress_bar=False,\n"
        "                  enable_checkpointing=False, enable_model_summary=False)\n"
        "SaliencyStore.make(sys.argv[1], Net(), Data(), 'gradient', batch_size=7, trainer=trainer)\n"
        "print('rank', trainer.global_rank, 'of', trainer.world_size)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(tmp_path / "shared")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of 2" in done.stdout
    shared = SaliencyStore(tmp_path / "shared")
    assert shared.manifest == store.manifest
    for split in store.splits:
        assert (shared.path / f"{split}.ranks").read_bytes() == (store.path / f"{split}.ranks").read_bytes()


def test_something_else_in_the_folder_is_not_overwritten(store, net):
    with pytest.raises(StoreError, match=r"another saliency store: method 'gradient' there, 'edges' here"):
        SaliencyStore.make(store.path, net, Data(), "edges", batch_size=7)
    torch.manual_seed(1)
    other = Net()
    with pytest.raises(StoreError, match=r"model 'Net "):
        SaliencyStore.make(store.path, other, Data(), "gradient", batch_size=7)


def test_other_data_is_refused_with_what_differs(store):
    views = views_of(set_up())
    for view in views.values():
        store.check(view)
    with pytest.raises(StoreError, match=r"train data set has 30 images, but .* is for 40"):
        store.check(views_of(set_up(n=30))["train"])
    data = set_up()
    data.test = Squares(20, seed=5, transform=TENSOR)
    with pytest.raises(StoreError, match=r"test images are not those that .* if setup splits at random"):
        store.check(views_of(data)["test"])
    with pytest.raises(StoreError, match=r"images are 6 x 6 before their transform, but .* is for 8 x 8"):
        store.check(views_of(set_up(), prepare=lambda image: image.resize((6, 6)))["train"])


def test_random_images_and_streams_are_refused(net, tmp_path):
    class Jittering(Squares):
        def __getitem__(self, index):
            return TENSOR(Image.fromarray(self.pixels[index])) + torch.randn(()), 0

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(Squares(4))

    class Other(Data):
        def train_dataloader(self):
            return DataLoader(self.own)

    data = Other()
    data.own = Jittering(40)
    with pytest.raises(RandomImages, match=r"the train data set gives a different image each time for index 0"):
        SaliencyStore.make(tmp_path / "a", net, data, "edges")
    data.own = Stream()
    with pytest.raises(TypeError, match=r"Stream has no index, but each map belongs to an image"):
        SaliencyStore.make(tmp_path / "b", net, data, "edges")


def test_the_label_can_be_explained(net, tmp_path):
    made = SaliencyStore.make(tmp_path / "s", net, Data(), "gradient", target="label", batch_size=10)
    images, labels = zip(*set_up().val, strict=True)
    expected = ranks(METHODS["gradient"](net).attribute(torch.stack(images), torch.tensor(labels)), list(range(10)))
    assert np.array_equal(made.ranks("val"), expected.numpy())


@pytest.mark.parametrize("kind", [dict, tuple])
def test_a_number_before_the_image_is_no_label(net, tmp_path, kind):
    class Numbered(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            sample = {"id": index // 2 % 2, "image": image, "label": label}
            return sample if kind is dict else tuple(sample.values())

    class Other(Data):
        def train_dataloader(self):
            return DataLoader(Numbered(10, transform=TENSOR), 5)

        def val_dataloader(self):
            return self.train_dataloader()

        test_dataloader = train_dataloader

    made = SaliencyStore.make(tmp_path / "s", net, Other(), "gradient", target="label", batch_size=10)
    images, labels = zip(*Squares(10, transform=TENSOR), strict=True)
    expected = ranks(METHODS["gradient"](net).attribute(torch.stack(images), torch.tensor(labels)), list(range(10)))
    assert np.array_equal(made.ranks("train"), expected.numpy())


def test_without_a_label_none_can_be_explained(net, tmp_path):
    class Numbered(Squares):
        def __getitem__(self, index):
            return index, super().__getitem__(index)[0]

    class Other(LightningDataModule):
        def test_dataloader(self):
            return DataLoader(Numbered(10, transform=TENSOR), 5)

    assert SaliencyStore.make(tmp_path / "a", net, Other(), "gradient")
    with pytest.raises(CannotRun, match=r"no integers \[N\] were found behind the images"):
        SaliencyStore.make(tmp_path / "b", net, Other(), "gradient", target="label")


def test_images_are_found_where_the_data_set_has_them_else_where_they_can_be():
    depth, image, label = torch.rand(4, 1, 3, 3), torch.rand(4, 3, 3, 3), torch.arange(4)
    batch = {"depth": depth, "image": image, "score": torch.rand(4), "label": label}
    found, labels = images_and_labels(batch, "image")
    assert found is image
    assert labels is label
    found, labels = images_and_labels([label.double(), image, label], "image")
    assert found is image
    assert labels is label
    assert images_and_labels([label, image], 1)[1] is None
    with pytest.raises(UnfitData, match="no images were found in a batch"):
        images_and_labels([label, image.byte()], 1)


def test_images_are_explained_as_they_are_tested(store, net, tmp_path):
    """The training images without their augmentation, which does not change what a store is of."""
    made = SaliencyStore.make(tmp_path / "s", net, Data(augment=True), "gradient", batch_size=7)
    assert made.manifest == store.manifest
    assert np.array_equal(made.ranks("train"), store.ranks("train"))


def test_settings_and_factories_are_what_a_store_is_of(net, tmp_path):
    def powered(scores, images, *, powers=(1, 2)):
        return sum(images.abs() ** power for power in powers).sum(1, keepdim=True)

    made = [
        SaliencyStore.make(tmp_path / "a", net, Data(), method_from(powered), settings={"powers": (1, 3)}, batch_size=50)
        for _ in range(2)
    ]
    assert made[0].manifest == made[1].manifest
    with pytest.raises(StoreError, match=r"another saliency store: settings {'powers': \[1, 3\]} there, {'powers': \[1, 2\]} here"):
        SaliencyStore.make(tmp_path / "a", net, Data(), method_from(powered), settings={"powers": (1, 2)}, batch_size=50)
    SaliencyStore.make(tmp_path / "b", net, Data(), METHODS["gradient"])
    with pytest.raises(StoreError, match=r"another saliency store: method '[\w.]+gradient' there, '[\w.]+edges' here"):
        SaliencyStore.make(tmp_path / "b", net, Data(), METHODS["edges"])


def test_what_a_draft_says_is_done_is_on_disk(store, tmp_path, monkeypatch):
    """Sums too: a batch's are written at their place, and before it is marked."""
    draft = StoreWriter(tmp_path, store.manifest)
    draft.begin()
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name))
    draft.write("val", 1, np.zeros((3, SIDE, SIDE)), np.array([5.0, 6.0]))
    draft.write("val", 0, np.zeros((7, SIDE, SIDE)), np.array([1.0, 2.0]))
    assert set(synced[:3]) == {"val.ranks", "val.sums", "val.checksums"}
    assert synced[3] == "val.done"
    written = np.fromfile(tmp_path / "val.sums", [("sums", "<f8", 2), ("checksum", "<u4")])
    assert written["sums"].tolist() == [[1, 2], [5, 6]]


def test_a_progress_bar_is_for_terminals(net, tmp_path, monkeypatch, capsys):
    SaliencyStore.make(tmp_path / "a", net, Data(), "edges")
    assert not capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    SaliencyStore.make(tmp_path / "b", net, Data(), "edges")
    assert "Predicting" in capsys.readouterr().out


def test_wrong_arguments_are_refused(net, tmp_path):
    with pytest.raises(ValueError, match="method must be one of"):
        SaliencyStore.make(tmp_path / "s", net, Data(), "none_such")
    with pytest.raises(ValueError, match="target must be"):
        SaliencyStore.make(tmp_path / "s", net, Data(), "edges", target="both")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        SaliencyStore.make(tmp_path / "s", net, Data(), "edges", batch_size=0)


def test_a_trainer_of_ones_own_is_left_without_our_writer(net, tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    before = list(trainer.callbacks)
    SaliencyStore.make(tmp_path / "s", net, Data(), "edges", trainer=trainer)
    assert trainer.callbacks == before
