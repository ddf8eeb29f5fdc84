"""The networks that are explained."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from torch import nn

from fg_lightning.roar import CannotRun, ROARExperiment
from fg_lightning.roar.experiment_folder import hash_file
from fg_lightning.roar.explained_networks import read_weights, write_weights
from tests.helpers.tiny_squares import Data, Net


class Late(Net):
    """Its layers are made in `configure_model`."""

    def __init__(self):
        super().__init__()
        self.network = None

    def configure_model(self):
        if self.network is None:
            self.network = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
            self.network(torch.zeros(1, 1, 8, 8))


def test_weights_come_back_from_a_checkpoint_and_from_a_state(tmp_path):
    weights = {"a": torch.arange(3.0)}
    write_weights(tmp_path / "state.pt", weights)
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "net.ckpt")
    for name in ("state.pt", "net.ckpt"):
        assert torch.equal(read_weights(tmp_path / name)["a"], weights["a"])
    assert not list(tmp_path.glob(".state*"))


@pytest.mark.parametrize("found", [[1, 2], {"state_dict": [torch.zeros(1)]}])
def test_what_is_no_checkpoint(tmp_path, found):
    torch.save(found, tmp_path / "list.pt")
    with pytest.raises(CannotRun, match=r"list.pt holds list, but a Lightning checkpoint or a state_dict is needed"):
        read_weights(tmp_path / "list.pt")


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(CannotRun, match=r"text.pt is not a checkpoint, or is incomplete"):
        read_weights(tmp_path / "text.pt")
    with pytest.raises(CannotRun, match=r"there is no checkpoint .*nowhere.pt"):
        read_weights(tmp_path / "nowhere.pt")
    with pytest.raises(CannotRun, match=r"nowhere.pt cannot be read: No such file"):
        hash_file(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("change", [lambda raw: raw[:-9], lambda raw: raw[:2000] + b"x" + raw[2001:], None])
def test_a_base_network_that_was_changed_is_refused(tmp_path, change):
    def run(**more):
        settings = {"methods": ["random"], "fractions": [0.5], "num_seeds": 1, "max_epochs": 1} | more
        return ROARExperiment(tmp_path, Data, Net, console=Console(quiet=True), **settings).run()

    run()
    path = tmp_path / "networks" / "0.pt"
    before = path.read_bytes()
    if change is None:  # another network of the same kind
        write_weights(path, Net().state_dict())
    else:
        path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(
        CannotRun, match=r"networks/0.pt was changed: its weights are not those that this experiment explains. Restore it"
    ):
        run(num_seeds=2)
    path.write_bytes(before)
    run(num_seeds=2)


@pytest.mark.parametrize("given", [False, True])
def test_a_network_that_lightning_makes_whole(tmp_path, given):
    model = Late()
    model.configure_model()
    torch.save(model.state_dict(), tmp_path / "late.pt")
    settings = {"checkpoint": tmp_path / "late.pt"} if given else {}
    quiet = Console(quiet=True)
    run = ROARExperiment(
        tmp_path / "out", Data, Late, methods=["random"], fractions=[0.5], num_seeds=1, max_epochs=1, console=quiet, **settings
    )
    assert not run.run().failures
