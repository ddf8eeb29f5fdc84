"""By what an experiment is known again: the same words in every process, and others for what gives other numbers."""

from __future__ import annotations

from functools import partial
from types import FunctionType

import pytest
from lightning.pytorch.callbacks import Timer

from fg_lightning.attribution import METHODS, method_from
from fg_lightning.attribution.controls import blur_method
from fg_lightning.fullgrad import FullGrad
from fg_lightning.roar import CannotRun
from fg_lightning.roar.experiment_folder import check_identity, describe
from tests.helpers import tiny_squares
from tests.helpers.tiny_squares import Net

LR = 0.05


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"methods": 3}', "[" * 100_000, "\xff"])
def test_what_is_no_experiment_is_one_sentence(tmp_path, content):
    (tmp_path / "experiment.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CannotRun, match=r"experiment\.json is damaged \(.*\); use another folder, or remove this one"):
        check_identity(tmp_path, {"mode": "roar", "methods": {}})


def test_factories_are_described_by_their_import_path():
    assert describe(Net) == f"{tiny_squares.__name__}.Net"
    assert describe(partial(Net, width=8)) == {"calls": f"{tiny_squares.__name__}.Net", "width": 8}
    assert describe({"a": [1, None, object()], "b": Timer()}) == {"a": [1, None, "object"], "b": "Timer"}


def test_methods_are_named_after_what_they_are_made_from():
    assert describe(METHODS["gradient"]) == "fg_lightning.attribution.gradients.gradient"
    assert describe(METHODS["blurred_random"]) == "fg_lightning.attribution.controls.blurred_random"
    assert len({str(describe(factory)) for factory in METHODS.values()}) == len(METHODS)
    assert describe(partial(METHODS["smoothgrad"], noise=0.1)) == {
        "calls": "fg_lightning.attribution.gradients.smoothgrad",
        "noise": 0.1,
    }
    assert describe(blur_method(partial(FullGrad))) != describe(blur_method(partial(FullGrad, implicit=False)))
    own = [method_from(lambda scores, images, scale=scale: scale * images) for scale in (1, 2)]
    assert describe(own[0]) != describe(own[1])


def made(lr):
    return lambda: Net(lr=lr)


def nested(lr):
    def again():
        return [again, Net(lr=lr)]

    return lambda: again()


def with_defaults(lr):
    return lambda lr=lr: Net(lr=lr)


@pytest.mark.parametrize("make", [made, nested, with_defaults])
def test_a_function_without_a_path_is_known_by_what_it_runs(make):
    assert describe(make(0.05)) == describe(make(0.05))
    assert describe(make(0.05)) != describe(make(0.0))


def test_lambdas_are_known_by_their_code_and_the_globals_that_they_read(monkeypatch):
    def reads():
        return lambda: Net(lr=LR).lr

    codes = [
        lambda: Net(lr=0.05),
        lambda: Net(lr=0.0),
        lambda: Net(width=0.05),
        lambda: [Net(lr=0.05)],
        reads(),
    ]
    assert len({describe(code) for code in codes}) == len(codes)
    before = describe(reads())
    monkeypatch.setitem(globals(), "lr", 0.1)  # an attribute in them, no global
    assert describe(reads()) == before
    monkeypatch.setitem(globals(), "LR", 0.1)
    assert describe(reads()) != before


def test_the_order_of_a_set_which_every_process_has_its_own_of_does_not_count():
    def within(numbers):
        code = (lambda x: x in {0, 8}).__code__
        constants = tuple(frozenset(numbers) if isinstance(one, frozenset) else one for one in code.co_consts)
        return FunctionType(code.replace(co_consts=constants), globals(), "<lambda>")

    assert repr(frozenset([0, 8])) != repr(frozenset([8, 0]))
    assert describe(within([0, 8])) == describe(within([8, 0])) != describe(within([0, 9]))
