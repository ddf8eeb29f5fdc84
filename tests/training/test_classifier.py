"""The classifier fits itself to the data, and its checkpoints are complete."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from fg_lightning.errors import CannotRun
from fg_lightning.training import ImageClassifier
from fg_lightning.training.image_datamodule import count_classes


class Grey(LightningDataModule):
    """Sixteen grey images of ten classes."""

    def __init__(self):
        super().__init__()
        self.images = TensorDataset(torch.rand(16, 1, 28, 28), torch.arange(16) % 10)

    def train_dataloader(self):
        return DataLoader(self.images, 8)

    val_dataloader = test_dataloader = train_dataloader


def short_trainer(folder, **settings):
    given = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1, "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return Trainer(**{**given, **quiet, **settings})


def test_it_fits_itself_to_the_data_and_its_checkpoint_needs_no_arguments(tmp_path):
    model, trainer = ImageClassifier("mobilenet_v3_small"), short_trainer(tmp_path)
    trainer.fit(model, Grey())
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= set(trainer.callback_metrics)
    images = torch.rand(2, 1, 28, 28)
    again = ImageClassifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path).eval()
    assert again.network.features[0][0].stride == (1, 1)
    assert again(images).shape == (2, 10)
    assert torch.equal(again(images), model.eval()(images))


def test_its_weights_make_an_untrained_one_the_same():
    first = ImageClassifier("squeezenet1_1", num_classes=7, in_channels=1, small_images=True).eval()
    second = ImageClassifier("squeezenet1_1").eval()
    second.load_state_dict(first.state_dict())
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(first(images), second(images))


def test_weight_files_hold_nothing_but_tensors(tmp_path):
    torch.save(ImageClassifier("squeezenet1_1").state_dict(), tmp_path / "weights.pt")
    assert torch.load(tmp_path / "weights.pt", weights_only=True)


def test_the_accuracy_is_the_share_of_right_answers(tmp_path):
    model, data = ImageClassifier("squeezenet1_1"), Grey()
    (scores,) = short_trainer(tmp_path).test(model, data, verbose=False)
    images, labels = next(iter(data.test_dataloader()))
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == labels).float().mean()
    assert scores["test/accuracy"] == pytest.approx(float(right))


def test_predictions_are_probabilities(tmp_path):
    model = ImageClassifier("squeezenet1_1", num_classes=4)
    loader = DataLoader(TensorDataset(torch.rand(3, 3, 64, 64), torch.tensor([0, 1, 2])), 3)
    (found,) = short_trainer(tmp_path).predict(model, loader)
    torch.testing.assert_close(found.sum(1), torch.ones(3))  # float32


def test_images_that_the_network_cannot_take_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(CannotRun, match=r"densenet121 cannot process images of shape \[1, 28, 28\].*--data.size 224"):
        short_trainer(tmp_path).fit(ImageClassifier("densenet121", small_images=False), Grey())


class OnItsWay(Callback):
    """In `setup`, Lightning gives a model the device to which it moves it later."""

    def setup(self, trainer, pl_module, stage):
        pl_module._device = torch.device("meta")


def test_it_fits_itself_to_the_data_before_it_is_moved(tmp_path):
    model, devices = ImageClassifier("squeezenet1_1"), []
    model.network.register_forward_pre_hook(lambda network, images: devices.append(images[0].device.type))
    short_trainer(tmp_path, callbacks=[OnItsWay()]).validate(model, Grey(), verbose=False)
    assert set(devices) == {"cpu"}


@pytest.fixture
def trained(tmp_path):
    trainer = short_trainer(tmp_path)
    trainer.fit(ImageClassifier("squeezenet1_1"), Grey())
    return trainer.checkpoint_callback.best_model_path


class Coloured(Grey):
    def __init__(self):
        super().__init__()
        self.images = TensorDataset(torch.rand(16, 3, 28, 28), torch.arange(16) % 4)

    def predict_dataloader(self):
        return DataLoader(self.images, batch_size=8)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_weights_for_other_images_are_refused(stage, trained, tmp_path):
    what = "trained on 1-channel images of 10 classes, but the data has 3 channels and 4 classes; give the same --data"
    with pytest.raises(CannotRun, match=what):
        getattr(short_trainer(tmp_path), stage)(ImageClassifier("squeezenet1_1"), datamodule=Coloured(), ckpt_path=trained)


def test_a_trained_network_is_measured_as_it_is_and_trained_further_on_other_data(trained, tmp_path):
    model = ImageClassifier.load_from_checkpoint(trained)
    with pytest.raises(CannotRun, match="trained on 1-channel images"):
        short_trainer(tmp_path).test(model, Coloured())
    short_trainer(tmp_path, enable_checkpointing=False).fit(model, Coloured())
    assert model(torch.rand(2, 3, 28, 28)).shape == (2, 4)


def test_several_loaders_are_measured_apart(tmp_path):
    images, model = torch.rand(12, 3, 32, 32), ImageClassifier("squeezenet1_1", num_classes=4).eval()
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[10:] = (labels[10:] + 1) % 4
    right, half = (DataLoader(TensorDataset(images[part], labels[part]), 3) for part in (slice(0, 8), slice(8, 12)))
    first, second = short_trainer(tmp_path, limit_test_batches=None).test(model, [right, half], verbose=False)
    assert first["test/accuracy"] == 1  # batches of three, three and two images
    assert second["test/accuracy/dataloader_idx_1"] == 0.5  # of three and one


def test_with_several_loaders_the_first_one_says_which_weights_are_the_best(tmp_path):
    class Several(Grey):
        def val_dataloader(self):
            return [self.train_dataloader(), self.train_dataloader()]

    kept = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    trainer = short_trainer(tmp_path, callbacks=[kept])
    trainer.fit(ImageClassifier("squeezenet1_1"), Several())
    assert kept.best_model_score == trainer.callback_metrics["val/accuracy"]
    assert "val/accuracy/dataloader_idx_1" in trainer.callback_metrics


def test_no_weights_by_name_are_random_ones(tmp_path):
    model = ImageClassifier("squeezenet1_1", weights="none")
    short_trainer(tmp_path, enable_checkpointing=False).fit(model, Grey())
    assert model.is_small


def test_too_few_outputs_are_refused(tmp_path):
    with pytest.raises(CannotRun, match="the data has 10 classes, but num_classes is 3"):
        short_trainer(tmp_path).fit(ImageClassifier("squeezenet1_1", num_classes=3), Grey())


def test_data_that_does_not_say_how_many_classes_it_has_is_asked_to(tmp_path):
    class Silent(LightningDataModule):
        def train_dataloader(self):
            return DataLoader([(torch.rand(3, 64, 64), 0)] * 4, 2)

        val_dataloader = train_dataloader

    with pytest.raises(CannotRun, match="the number of classes of Silent is unknown"):
        short_trainer(tmp_path).fit(ImageClassifier("squeezenet1_1"), Silent())


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"lr": 0.0}, "lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warmup": 2.0}, "warmup"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"num_classes": 0}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
    ],
)
def test_numbers_out_of_range_are_refused(given, what):
    with pytest.raises(CannotRun, match=what):
        ImageClassifier(**given)


def test_unknown_networks_and_weights_are_refused_with_those_that_exist():
    with pytest.raises(CannotRun, match="did you mean resnet18"):
        ImageClassifier("resnet1")
    with pytest.raises(CannotRun, match="IMAGENET1K_V1"):
        ImageClassifier("resnet18", weights="IMAGENET")


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (torch.tensor([0, 3]), "a label is 3, but there are 3 classes, 0 to 2"),
        (torch.tensor([-1, 0]), "a label is -1"),
        (torch.tensor([0.0, 1.0]), "labels must be integers"),
        (torch.tensor([[0], [1]]), r"labels must be integers \[N\]"),
    ],
)
def test_labels_that_are_no_classes_are_named(labels, why):
    model = ImageClassifier("squeezenet1_1", num_classes=3)
    for step in (model.training_step, model.validation_step, model.test_step):
        with pytest.raises(CannotRun, match=why):
            step((torch.zeros(2, 3, 32, 32), labels), 1)


def test_an_empty_list_of_classes_says_nothing():
    class Unnamed(LightningDataModule):
        classes = ()
        num_classes = 0

    assert count_classes(Unnamed()) is None
