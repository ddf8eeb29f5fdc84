"""A file that is no checkpoint is one sentence, and none of its code runs."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fg_lightning.checkpoints import read_checkpoint
from fg_lightning.cli.fit_options import check_checkpoint
from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import from_import_path

RAN = []


class Code:
    def __reduce__(self):
        return RAN.append, ("it ran",)


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def picture():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def archive(kind):
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("weights"))
    else:
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("data.pkl", b"no pickle")
    return file.getvalue()


def safetensors():
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


WHOLE = saved({"state_dict": {"weight": torch.rand(99)}, "pytorch-lightning_version": "2.6.0"})

NO_CHECKPOINTS = {
    "empty": b"",
    "words": b"no weights",
    "a picture": picture(),
    "a pickle with code": pickle.dumps(Code()),
    "a checkpoint with code": saved({"state_dict": {}, "evil": Code()}),
    "an old file with code": pickle.dumps({"state_dict": {}, "evil": Code()}),
    "tar": archive("tar"),
    "zip": archive("zip"),
    "safetensors": safetensors(),
    "a list": saved([torch.zeros(3)]),
    "numbers as names": saved({1: torch.zeros(3)}),
    "half": WHOLE[: len(WHOLE) // 2],
    "all but the end": WHOLE[:-1],
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("is_mapped", [False, True])
@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path, kind, is_mapped):
    path = tmp_path / "file [red] :x:.ckpt"
    path.write_bytes(NO_CHECKPOINTS[kind])
    try:
        found = read_checkpoint(path, is_mapped)
    except CannotRun as error:
        message = str(error)
        assert "\n" not in message
        assert "weights_only" not in message
        assert str(path) in message
    else:
        assert kind == "safetensors"  # torch reads these itself
        assert list(found) == ["w"]
    assert not RAN


def test_a_folder_and_nothing(tmp_path):
    with pytest.raises(CannotRun, match="is a folder, but a checkpoint is a file"):
        read_checkpoint(tmp_path)
    with pytest.raises(CannotRun, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_an_object_is_named(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"folder": Path("x")}}, tmp_path / "path.ckpt")
    with pytest.raises(CannotRun, match=r"holds a pathlib\.PosixPath, which cannot be loaded without running code"):
        read_checkpoint(tmp_path / "path.ckpt")


def test_arguments_of_a_script_are_read(tmp_path):
    """As timm keeps them."""
    torch.save({"state_dict": {}, "args": Namespace(lr=0.1, sizes=[1, 2])}, tmp_path / "checkpoint-3.pth.tar")
    assert read_checkpoint(tmp_path / "checkpoint-3.pth.tar")["args"] == Namespace(lr=0.1, sizes=[1, 2])
    torch.save({"state_dict": {}, "args": Namespace(code=Code())}, tmp_path / "code.tar")
    with pytest.raises(CannotRun, match="cannot be loaded without running code"):
        read_checkpoint(tmp_path / "code.tar")
    assert RAN == []


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_weights_alone_are_no_checkpoint_of_lightning_s(tmp_path, command):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt")
    with pytest.raises(CannotRun, match=f"not a checkpoint of Lightning's for {command}: it has no state_dict"):
        check_checkpoint(str(tmp_path / "state.pt"), command)


@pytest.mark.parametrize("kind", ["a checkpoint with code", "half", "safetensors"])
def test_explain_refuses_it_too(tmp_path, kind):
    (tmp_path / "file.ckpt").write_bytes(NO_CHECKPOINTS[kind])
    with pytest.raises(CannotRun, match=r"file\.ckpt") as caught:
        from_import_path("fg_lightning.demo.DigitClassifier", tmp_path / "file.ckpt", lambda picture: torch.zeros(1, 28, 28), None)
    assert "\n" not in str(caught.value)
    assert not RAN
