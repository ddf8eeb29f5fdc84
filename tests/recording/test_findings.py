"""Each finding fires on a constructed run, and not on its neighbour."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fg_lightning.history.records import Answers, Explanation
from fg_lightning.loggers import Log
from fg_lightning.metrics import rank_correlation
from fg_lightning.recording.findings import COLUMNS, MIN_IMAGES, RULES, Observations, find
from fg_lightning.recording.findings_log import FindingsLog, summarize
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.sanity_checks import SanityCheck, check_sanity, mean_rank_correlation


def flat_maps(num_images: int = 8, size: tuple[int, ...] = (20, 20)) -> Tensor:
    """Highest in the middle."""
    maps = torch.rand(num_images, 1, *size, generator=torch.Generator().manual_seed(0))
    maps[:, 0].view(num_images, -1)[:, maps[0].numel() // 2 + (size[-1] // 2 if len(size) > 1 else 0)] = 2
    return maps


def explain(maps: Tensor, missed: float = 0.0, **settings: Any) -> Explanation:
    ones = torch.ones(len(maps))
    terms = {"output": ones, "input_term": 0.75 * ones, "bias_term": (0.25 - missed) * ones, "implicit_term": 0 * ones}
    return Explanation(maps, Answers(), {**terms, "completeness_error": missed * ones}, [], **{"num_drawn": 3, **settings})


def peaks_at(row: int, column: int, num_peaks: int, maps: Tensor) -> Tensor:
    changed = maps.clone()
    changed[:num_peaks, 0, row, column] = 3
    return changed


def learned(*args: Any, accuracy: float | None = 1.0, **settings: Any) -> Observations:
    """What is observed of a network that predicts all images correctly."""
    return Observations(*args, accuracy=accuracy, **settings)


def names(observations: Observations, *, is_last: bool = False) -> list[str]:
    return [finding.name for finding in find(observations, is_last=is_last).findings]


def threshold_of(name: str) -> float:
    (rule,) = (rule for rule in RULES if rule.name == name)
    return rule.threshold


def test_a_plain_run_has_no_finding() -> None:
    result = find(learned(1, explain(flat_maps())))
    assert result.findings == ()
    assert result.checked == ("the sum of the terms", "missing operations", "lost operations", "the corners", "the border")
    assert result.unchecked == {"jumps of FullGrad's maps": "there is no snapshot before"}


@pytest.mark.parametrize(("missed", "fires"), [(0.0, False), (0.0099, False), (0.0101, True), (-0.5, True)])
def test_a_sum_that_misses_a_hundredth_is_incomplete(missed: float, fires: bool) -> None:
    assert ("incomplete" in names(learned(1, explain(flat_maps(), missed)))) == fires


def test_an_output_of_zero_has_no_share_that_is_missed() -> None:
    explanation = explain(flat_maps())
    explanation.terms.update(output=torch.zeros(8))
    assert "the sum of the terms" in find(learned(1, explanation)).unchecked


def test_missing_operations_are_named() -> None:
    (finding,) = find(learned(1, explain(flat_maps(), missing_ops=("a: sort", "b: fft")))).findings
    assert (finding.name, finding.value, finding.method) == ("missing_operations", 2, "")
    assert "2 operations have no bias: a: sort, b: fft" in finding.message


@pytest.mark.parametrize(("num_drawn", "fires"), [(3, False), (2, True), (1, True)])
def test_operations_that_are_lost_are_named_if_they_are_half(num_drawn: int, fires: bool) -> None:
    found = find(learned(1, explain(flat_maps(), lost_ops=("linear in a", "linear in b"), num_drawn=num_drawn))).findings
    assert [finding.name for finding in found] == ["lost_operations"] * fires
    assert all("2 of" in finding.message and "linear in a, linear in b" in finding.message for finding in found)


@pytest.mark.parametrize(("drift", "fires"), [(None, False), (0.49, False), (0.51, True)])
def test_maps_that_jump_are_found(drift: float | None, fires: bool) -> None:
    assert names(learned(2, explain(flat_maps()), drift=drift)) == ["jumped"] * fires
    assert names(learned(2, explain(-flat_maps()), drift=drift)) == []  # distances of signed maps go up to 2


@pytest.mark.parametrize(
    ("snapshot", "told"),
    [
        (1, "those of the untrained network is 0.60; a healthy training can reach this, too, in its first snapshot"),
        (2, "the last ones is 0.60"),
    ],
)
def test_a_jump_tells_from_where(snapshot: int, told: str) -> None:
    (jump,) = find(learned(snapshot, explain(flat_maps()), drift=0.6, untrained={"fullgrad": flat_maps()})).findings
    assert jump.message == f"The maps jumped: their mean cosine distance to {told}"


def test_without_a_plane_nothing_is_lost() -> None:
    assert "lost operations" in find(learned(1, explain(flat_maps(), num_drawn=0))).unchecked


@pytest.mark.parametrize(
    ("accuracy", "reason"),
    [
        (None, "there are no labels to compare the predicted classes with"),
        (0.4, "fewer than 50% of the images are predicted correctly"),
        (0.5, None),
    ],
)
def test_corners_and_border_need_a_network_that_predicts_half_of_the_images(accuracy: float | None, reason: str | None) -> None:
    observations = learned(3, explain(peaks_at(0, 0, 10, flat_maps(10))), accuracy=accuracy)
    assert ("corner" in names(observations)) == (reason is None)
    assert find(observations).unchecked.get("the corners") == reason
    assert find(observations).unchecked.get("the border") == reason


@pytest.mark.parametrize(
    ("row", "column", "where"),
    [(0, 0, "top left"), (3, 3, "top left"), (0, 19, "top right"), (16, 0, "bottom left"), (19, 19, "bottom right")],
)
def test_a_corner_is_found_at_its_threshold(row: int, column: int, where: str) -> None:
    enough, maps = round(threshold_of("corner") * 10), flat_maps(10)
    (finding,) = find(learned(3, explain(peaks_at(row, column, enough, maps)))).findings
    assert (finding.name, finding.method, finding.snapshot) == ("corner", "fullgrad", 3)
    assert (finding.value, finding.threshold) == (enough / 10, threshold_of("corner"))
    assert f"{enough} of 10 maps are highest in the {where} corner" in finding.message
    assert not find(learned(3, explain(peaks_at(row, column, enough - 1, maps)))).findings


@pytest.mark.parametrize(("row", "column"), [(4, 3), (3, 4), (9, 0)])
def test_beside_a_corner_is_no_corner(row: int, column: int) -> None:
    assert "corner" not in names(learned(1, explain(peaks_at(row, column, 8, flat_maps()))))


def test_peaks_in_different_corners_are_no_finding() -> None:
    maps = flat_maps()
    for image, (row, column) in enumerate([(0, 0), (0, 19), (19, 0), (19, 19)]):
        maps[image, 0, row, column] = 3
    assert "corner" not in names(learned(1, explain(maps)))


@pytest.mark.parametrize(
    ("row", "column", "fires"), [(0, 10, True), (1, 10, True), (2, 10, False), (10, 18, True), (10, 17, False)]
)
def test_the_border_is_the_outer_tenth(row: int, column: int, fires: bool) -> None:
    assert names(learned(1, explain(peaks_at(row, column, 8, flat_maps())))) == ["border"] * fires


def test_a_corner_is_told_once_and_not_as_border_too() -> None:
    assert names(learned(1, explain(peaks_at(0, 0, 8, flat_maps())))) == ["corner"]


@pytest.mark.parametrize(
    ("maps", "reason"),
    [
        (flat_maps(MIN_IMAGES - 1), "7 images are too few; 8 are needed"),
        (flat_maps(8, (20,)), "not planes"),
        (flat_maps(8, (9, 9, 9)), "not planes"),
        (flat_maps(8, (7, 20)), "fewer than 8 pixels"),
    ],
)
def test_no_corner_is_found_where_it_would_mean_nothing(maps: Tensor, reason: str) -> None:
    maps[:, 0, 0] = 3
    result = find(learned(1, explain(maps)))
    assert not result.findings
    assert reason in result.unchecked["the corners"]
    assert reason in result.unchecked["the border"]


def test_maps_of_an_untrained_network_are_no_finding() -> None:
    observations = learned(0, explain(peaks_at(0, 0, 8, flat_maps())), is_trained=False)
    assert not find(observations).findings


def test_a_flat_map_has_its_peak_everywhere() -> None:
    assert not find(learned(1, explain(torch.zeros(8, 1, 20, 20)))).findings


def test_signed_maps_count_by_magnitude() -> None:
    assert names(learned(1, explain(-peaks_at(0, 0, 8, flat_maps())))) == ["corner"]


def test_each_method_has_findings_of_its_own() -> None:
    observations = learned(1, explain(flat_maps(), method_maps={"gradcam": peaks_at(0, 0, 8, flat_maps())}))
    assert [(finding.name, finding.method) for finding in find(observations).findings] == [("corner", "gradcam")]


def test_maps_like_those_of_the_untrained_network() -> None:
    maps = flat_maps()
    same, other = ({"fullgrad": untrained} for untrained in (2 * maps, maps.flip(-1)))
    assert names(learned(1, explain(maps), untrained=same), is_last=True) == ["like_untrained"]
    assert not names(learned(1, explain(maps), untrained=same))  # training has not ended
    assert not names(learned(1, explain(maps), untrained=other), is_last=True)
    assert not names(learned(0, explain(maps), is_trained=False, untrained=same), is_last=True)


def test_pixels_that_are_zero_in_both_maps_do_not_make_them_alike() -> None:
    shown = (torch.arange(20)[:, None] - 10).abs() < 2
    maps, untrained = (torch.rand(8, 1, 20, 20, generator=torch.Generator().manual_seed(seed)) * shown for seed in (1, 2))
    assert float(rank_correlation(maps, untrained).mean()) > threshold_of("like_untrained")
    assert not names(learned(1, explain(maps), untrained={"fullgrad": untrained}), is_last=True)
    check = check_sanity(torch.nn.Linear(1, 1), {"fullgrad": maps}, lambda *_: {"fullgrad": untrained}, None)["fullgrad"]
    assert abs(check.randomized or 1) < 0.3
    assert mean_rank_correlation(maps, torch.where(untrained > 0, maps, 0)) == pytest.approx(1)
    assert mean_rank_correlation(0 * maps, 0 * maps) == 0


@pytest.mark.parametrize(("field", "name"), [("randomized", "like_random_weights"), ("runner_up", "not_class_specific")])
def test_sanity_checks_are_found_at_their_threshold(field: str, name: str) -> None:
    threshold = threshold_of(name)
    observations = learned(1, explain(flat_maps()))
    for value, expected in ((threshold, [name]), (threshold - 0.001, [])):
        checked = replace(
            observations,
            checks={"fullgrad": SanityCheck(randomized=value) if field == "randomized" else SanityCheck(runner_up=value)},
        )
        assert names(checked, is_last=True) == expected


def test_what_was_not_checked_is_said() -> None:
    check = SanityCheck(None, None, "TypeError: cannot pickle it", "there is no other class")
    result = find(learned(1, explain(flat_maps()), checks={"fullgrad": check}), is_last=True)
    assert result.unchecked == {
        "jumps of FullGrad's maps": "there is no snapshot before",
        "the untrained network": "the maps of the untrained network are not known",
        "random weights": "TypeError: cannot pickle it",
        "the next class": "there is no other class",
    }
    text = summarize(result)
    assert text.startswith(
        "no findings\n  checked: the sum of the terms, missing operations, lost operations, the corners, the border\n"
    )
    assert "random weights (TypeError: cannot pickle it)" in text


# --- telling


def observed(num_peaks: int, snapshot: int = 1) -> Observations:
    return learned(snapshot, explain(peaks_at(0, 0, num_peaks, flat_maps())))


class AlertLog(Log):
    """Keeps alerts, or fails to send them."""

    sends_alerts = True

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(None)
        self.alerts = list[tuple[str, str]]()
        self._error = error

    def alert(self, title: str, text: str) -> None:
        if self._error is not None:
            raise self._error
        self.alerts.append((title, text))


def make_log(notes: list[str], alert_log: AlertLog | None = None) -> FindingsLog:
    messages = Messages("FullGradMonitor", strict=True, inform=notes.append)
    return FindingsLog(messages, [] if alert_log is None else [alert_log], alert=alert_log is not None)


def test_a_finding_is_told_once_when_two_snapshots_have_it(tmp_path: Path) -> None:
    notes, alert_log = list[str](), AlertLog()
    log = make_log(notes, alert_log)
    for snapshot, (num_peaks, is_told) in enumerate([(0, False), (8, False), (0, False), (8, False), (8, True), (8, True)], 1):
        log.update(observed(num_peaks, snapshot), tmp_path)
        assert len(notes) == len(alert_log.alerts) == is_told
    assert len(log.findings) == 1
    assert notes[0].startswith("FullGradMonitor: finding: 8 of 8 maps are highest in the top left corner (fullgrad)")
    assert alert_log.alerts[0][0] == "corner (fullgrad)"
    assert "8 of 8 maps" in alert_log.alerts[0][1]


def test_a_finding_about_the_terms_is_told_at_once(tmp_path: Path) -> None:
    notes = list[str]()
    make_log(notes).update(learned(0, explain(flat_maps(), 0.5), is_trained=False), tmp_path)
    assert "The terms miss 50.0% of the output" in notes[0]


def test_at_the_end_one_snapshot_is_enough(tmp_path: Path) -> None:
    alert_log = AlertLog()
    log = make_log([], alert_log)
    log.update(observed(8), tmp_path, is_last=True)
    assert [finding.name for finding in log.findings] == ["corner"]
    assert len(alert_log.alerts) == 1


def test_the_end_sums_up_once(tmp_path: Path) -> None:
    notes = list[str]()
    log = make_log(notes)
    log.update(observed(8), tmp_path, is_last=True)
    assert notes == []
    log.conclude()
    log.conclude()
    assert len(notes) == 1
    assert "1 finding\n  - 8 of 8 maps" in notes[0]


def test_alerts_need_a_logger_that_sends_them() -> None:
    notes = list[str]()
    FindingsLog(Messages("FullGradMonitor", inform=notes.append), [Log(None)], alert=True)
    assert notes == ["FullGradMonitor: alert=True has no effect: there is no logger of Weights & Biases; add a WandbLogger"]


def test_findings_csv_holds_what_the_last_snapshot_finds(tmp_path: Path) -> None:
    log = make_log([])
    log.update(observed(8, 2), tmp_path, is_last=True)
    with (tmp_path / "findings.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == COLUMNS
    assert (row["snapshot"], row["finding"], row["method"], row["value"]) == ("2", "corner", "fullgrad", "1")
    assert row["page"] == "findings.html#corner"
    log.update(observed(0, 3), tmp_path)
    assert (tmp_path / "findings.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_findings_csv_is_replaced_only_if_it_changes(tmp_path: Path) -> None:
    log, path = make_log([]), tmp_path / "findings.csv"
    log.update(observed(0, 1), tmp_path)
    first = path.stat()
    log.update(observed(0, 2), tmp_path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    log.update(observed(8, 3), tmp_path, is_last=True)
    assert len(path.read_text().splitlines()) == 2


def test_a_resumed_run_does_not_tell_again(tmp_path: Path) -> None:
    make_log([]).update(observed(8), tmp_path, is_last=True)
    notes, alert_log = list[str](), AlertLog()
    log = make_log(notes, alert_log)
    log.resume(tmp_path)
    for snapshot in (2, 3):
        log.update(observed(8, snapshot), tmp_path)
    assert (notes, alert_log.alerts) == ([], [])
    assert log.findings


def test_a_fault_of_an_alert_is_a_warning(tmp_path: Path) -> None:
    log = FindingsLog(Messages("FullGradMonitor", inform=lambda note: None), [AlertLog(ConnectionError("offline"))], alert=True)
    with pytest.warns(UserWarning, match="offline"):
        log.update(observed(8), tmp_path, is_last=True)
    assert (tmp_path / "findings.csv").exists()


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    log = make_log([])
    for folder in (None, tmp_path / "none"):
        log.update(observed(8), folder, is_last=True)
    assert list(tmp_path.iterdir()) == []
    assert log.findings
