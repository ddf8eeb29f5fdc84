"""What newcomers write, and what they are told."""

import pytest

from fg_lightning.cli.fit_options import check_options, option_names
from fg_lightning.errors import CannotRun
from fg_lightning.training import ImageClassifier, TorchvisionDataModule


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("fit --model resnet18", "write --model.name resnet18"),
        ("fit --data CIFAR10 --config mine.yaml", "write --data TorchvisionDataModule --data.name CIFAR10"),
        ("fit --data=MNIST", "write --data TorchvisionDataModule --data.name MNIST"),
        ("fit --data ImageFolder --data.root photos", "did you mean ImageFolderDataModule"),
        ("fit --data .", None),  # Lightning's own, a path to a configuration
        ("fit --data photos", "write --data ImageFolderDataModule --data.root photos"),
        ("fit --model ImageClasifier", "did you mean ImageClassifier"),
        ("fit --model.nmae resnet18", "did you mean --model.name"),
        ("fit --model.zzz 1", "its options are name, weights, num_classes"),
        ("fit --data.name CIFAR10", "TorchvisionDataModule has it: --data TorchvisionDataModule"),
        ("fit --data TorchvisionDataModule --data.batch_sise 3", "did you mean --data.batch_size"),
        ("fit --data ImageFolderDataModule --data.size 64", "--data.root FOLDER"),
    ],
)
def test_what_is_easily_written_wrong_is_said_with_what_was_meant(line, told, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    if told is None:
        return check_options(line.split())
    with pytest.raises(CannotRun, match=told):
        check_options(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "fit",
        "fit --model ImageClassifier --model.name=resnet18 --model.help",
        "fit --model fg_lightning.training.ImageClassifier --model.init_args.lr 0.1 --data.batch_size 8",
        "fit --data.help TorchvisionDataModule",
        "fit --data TorchvisionDataModule --data.name SVHN --data.val_share 0.2 --data.root data",
        "fit --data ImageFolderDataModule --data.root photos",
        "fit --data ImageFolderDataModule --config mine.yaml",
        "fit --config mine.yaml --model.width 3 --data.length 4",
        "fit --model my.Net --model.width 3 --data my.Data --data.length 4",
        "fit --model Net --model.width 3 --data Data --data.length 4",
        "fit --trainer.callbacks+ FullGradMonitor --trainer.callbacks.report true",
    ],
)
def test_what_may_be_right_is_left_to_the_parser(line):
    check_options(line.split())


def test_options_are_those_that_a_class_hands_on_too():
    assert set(option_names(TorchvisionDataModule)) == set(
        "name root size mean std batch_size num_workers augment val_share max_images seed".split()
    )
    assert "kwargs" not in option_names(ImageClassifier)
