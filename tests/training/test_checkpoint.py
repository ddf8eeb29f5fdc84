"""What is said of a checkpoint before anything is loaded."""

import pytest
import torch
from jsonargparse import Namespace

from fg_lightning.cli.fit_options import changed_by_checkpoint, check_checkpoint, model_of
from fg_lightning.errors import CannotRun

MODEL = "fg_lightning.training.ImageClassifier"


def test_what_is_no_checkpoint_is_refused(tmp_path):
    whole, cut_off = tmp_path / "whole.ckpt", tmp_path / "cut_off.ckpt"
    torch.save({"state_dict": {"weight": torch.rand(100)}, "pytorch-lightning_version": "2.6.0"}, whole)
    cut_off.write_bytes(whole.read_bytes()[:-100])
    check_checkpoint(str(whole), "test")
    with pytest.raises(CannotRun, match=r"cut_off\.ckpt is .*not a checkpoint, or is incomplete|cut_off\.ckpt is damaged"):
        check_checkpoint(str(cut_off), "test")
    with pytest.raises(CannotRun, match=rf"there is no checkpoint {tmp_path}/none\.ckpt.*best\.ckpt"):
        check_checkpoint(str(tmp_path / "none.ckpt"), "test")


def test_of_a_run_s_own_words_those_that_a_new_process_can_know_are_taken(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / ".metadata").touch()
    for command, path in (("fit", "last"), ("fit", "hpc"), ("test", "s3://bucket/best.ckpt"), ("test", str(tmp_path / "shards"))):
        check_checkpoint(path, command)
    for command, path in (("fit", "best"), ("validate", "best"), ("test", "last")):
        with pytest.raises(CannotRun, match=r"there is no checkpoint .*; give a file"):
            check_checkpoint(path, command)


@pytest.mark.parametrize("where", ["init_args", "dict_kwargs"])
def test_options_that_differ_from_the_checkpoint_s_are_found_where_they_were_given(where):
    asked = Namespace(class_path=MODEL, init_args=Namespace(name="resnet18", lr=0.5, warmup=0.1, weight_decay=0.05))
    kept = Namespace(class_path=MODEL, **{where: {"name": "resnet50", "lr": 0.001, "warmup": 0.1, "weight_decay": 0.2}})
    assert changed_by_checkpoint(asked, kept) == {"lr": (0.5, 0.001)}


@pytest.mark.parametrize("version", ["abc", 3, None])
def test_a_version_that_is_none_is_refused(tmp_path, version):
    torch.save({"state_dict": {}, "pytorch-lightning_version": version}, tmp_path / "other.ckpt")
    with pytest.raises(
        CannotRun, match=rf"other\.ckpt is not a checkpoint of Lightning's: its pytorch-lightning_version is '?{version}"
    ):
        check_checkpoint(str(tmp_path / "other.ckpt"), "test")


def test_the_model_is_what_a_command_line_kept_or_what_a_script_did(tmp_path):
    path = tmp_path / "kept.ckpt"
    torch.save({"hyper_parameters": {"_class_path": "my.Net", "_instantiator": "lightning", "width": 3}}, path)
    assert model_of(path, MODEL) == {"class_path": "my.Net", "dict_kwargs": {"width": 3}}
    torch.save({"hyper_parameters": {"name": "squeezenet1_1", "lr": 0.01, "noted": "by the script"}}, path)
    assert model_of(path, MODEL) == {"class_path": MODEL, "init_args": {"name": "squeezenet1_1", "lr": 0.01}}
    torch.save({"state_dict": {}}, path)
    assert model_of(path, MODEL) is None
