"""What an engine says of parts that end in one way or another."""

from __future__ import annotations

import errno

import pytest

from fg_lightning.roar import CannotRun
from fg_lightning.roar.engines import LocalEngine, Outcome


def work(item):
    if isinstance(item, BaseException):
        raise item
    return item + 1


def test_a_part_that_raises_is_done_with_its_reason_and_the_others_go_on():
    done = list(LocalEngine().run(work, [1, ValueError("no"), OSError(errno.ENOENT, "gone"), 2]))
    assert [one.value for one in done] == [2, None, None, 3]
    assert done[0] == Outcome(1, 2)
    assert done[1].reason.startswith("ValueError: no (test_engines.py, line ")
    assert "gone" in done[2].reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"^No space left on device: make room"),
        (OSError(errno.ENOSPC, "No space left on device", "a.ranks"), r"^No space left on device \(a.ranks\): make room"),
        (CannotRun("change it"), "^change it$"),
    ],
)
def test_what_the_user_has_to_change_ends_it(error, said):
    with pytest.raises(CannotRun, match=said):
        list(LocalEngine().run(work, [error]))


def test_ctrl_c_in_a_training_ends_it():
    with pytest.raises(KeyboardInterrupt):
        list(LocalEngine().run(work, [SystemExit(1)]))  # what Lightning raises
