"""The report of a run of which something is missing or damaged shows the rest, and says so."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from fg_lightning import FullGradMonitor
from fg_lightning.errors import CannotRun
from fg_lightning.history.records import METHOD_COLUMNS
from fg_lightning.report import write_report
from tests.helpers.small_trainings import Classifier, loader, trainer
from tests.helpers.written_runs import Page, run


def note_of(folder):
    page = Page(write_report(folder))
    start = page.words.find("What the network looks at")
    return page, page.words[:start]


def test_a_whole_run_has_nothing_to_note(written):
    assert not any(attributes.get("role") == "note" for _, attributes in written[2].elements)


@pytest.mark.parametrize(
    ("name", "content", "noted"),
    [
        ("maps.npy", None, "maps.npy is missing: images are shown without maps"),
        ("maps.npy", b"\x93NUMPY", "maps.npy is damaged"),
        ("maps.npy", b"", "maps.npy is damaged"),
        ("maps.npy", 0.9, "maps.npy holds the maps of 3 of 4 snapshots"),
        ("images.csv", None, "images.csv is missing"),
        ("images.csv", b"", "images.csv holds the images of 0 of 4 snapshots"),
        (
            "images.csv",
            0.5,
            "images.csv is incomplete and is left out. images.csv holds the images of 1 of 4 snapshots",
        ),
        ("images.csv", 0.9, "images.csv holds the images of 3 of 4 snapshots"),
        ("layers.csv", None, "layers.csv is missing"),
        ("layers.csv", b"", "layers.csv holds the layers of 0 of 4 snapshots"),
        (
            "layers.csv",
            0.5,
            "layers.csv is incomplete and is left out. layers.csv holds the layers of 2 of 4 snapshots",
        ),
        ("layers.csv", 0.9, "The last line of layers.csv is incomplete"),
        ("probe.json", None, "probe.json is missing: classes have no names"),
        ("probe.json", b"{", "probe.json is damaged"),
        ("probe/002.png", None, "1 of 5 images are missing"),
        ("probe/002.png", b"no picture", "1 of 5 images are missing"),
        ("film_strip.png", None, "the run is not finished, or it was killed"),
    ],
)
def test_what_is_missing_or_damaged_is_said_and_the_rest_is_shown(tmp_path, name, content, noted):
    run(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(whole[: int(len(whole) * content)] if isinstance(content, float) else content)
    page, notes = note_of(tmp_path)
    assert noted in " ".join(notes.split())
    assert len(page.data()["snapshots"]) == 4
    assert sum(attributes.get("class") == "tile" for _, attributes in page.elements) == 5


@pytest.mark.parametrize("name", ["history.csv", "images.csv", "layers.csv"])
def test_damaged_rows_are_counted_and_left_out(tmp_path, name):
    run(tmp_path)
    lines = (tmp_path / name).read_text().splitlines()
    lines[2] = "\0garbage,,\xff"
    lines[3] = lines[3][:4]
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="latin-1")
    page, notes = note_of(tmp_path)
    assert re.search(rf"2 of \d+ rows of {name} are damaged", notes)
    assert len(page.data()["snapshots"]) == (2 if name == "history.csv" else 4)


def test_fewer_maps_than_snapshots(tmp_path):
    run(tmp_path)
    entries = np.load(tmp_path / "maps.npy")
    entries[1] = np.nan
    np.save(tmp_path / "maps.npy", entries[:3])
    page, notes = note_of(tmp_path)
    assert "the maps of 3 of 4 snapshots" in notes
    assert [bool(page.scripts.get(f"maps-{index}")) for index in range(4)] == [True, False, True, False]


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_fewer_snapshots_than_maps(tmp_path, share):
    run(tmp_path)
    whole = (tmp_path / "history.csv").read_bytes()
    (tmp_path / "history.csv").write_bytes(whole[: int(len(whole) * share)])
    page, notes = note_of(tmp_path)
    left = len(page.data()["snapshots"])
    assert 0 < left < 4
    assert "The last line of history.csv is incomplete" in notes
    assert f"maps.npy holds the maps of 4 snapshots, of which history.csv has {left}" in notes


@pytest.mark.parametrize("name", ["history.csv", "images.csv", "layers.csv"])
@pytest.mark.parametrize("garbage", [b"\r", b"\r\n", b'"', b"\0", b"\xff"])
def test_stray_bytes_in_a_table_cost_no_more_than_rows(tmp_path, name, garbage):
    run(tmp_path)
    whole = (tmp_path / name).read_bytes()
    middle = whole.index(b"\n", len(whole) // 2) + 2  # behind the first cell of a row
    (tmp_path / name).write_bytes(whole[:middle] + garbage + whole[middle:])
    page, notes = note_of(tmp_path)
    assert name in notes
    assert len(page.data()["snapshots"]) >= 2


def test_a_line_that_is_no_csv_is_said_and_the_rows_around_it_are_kept(tmp_path):
    run(tmp_path)
    lines = (tmp_path / "layers.csv").read_text().splitlines(keepends=True)
    lines.insert(3, '4,0,"' + 200_000 * "x" + "\n")
    (tmp_path / "layers.csv").write_text("".join(lines))
    page, notes = note_of(tmp_path)
    assert "1 of 13 rows of layers.csv are damaged and left out" in notes
    assert [len(layers) for layers in page.data()["layers"]] == [3] * 4


@pytest.mark.parametrize("largest", [100, 50], ids=["warned of", "refused"])
def test_a_picture_that_pillow_takes_for_an_attack_counts_as_missing(tmp_path, monkeypatch, largest):
    run(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", largest)  # they have 144
    assert "5 of 5 images are missing" in note_of(tmp_path)[1]


@pytest.mark.parametrize("lost", ["cut", "nan"])
def test_maps_keep_their_size_where_those_of_the_last_snapshot_are_lost(tmp_path, lost):
    run(tmp_path)
    entries = np.load(tmp_path / "maps.npy")
    entries[-1] = np.nan
    np.save(tmp_path / "maps.npy", entries[:3] if lost == "cut" else entries)
    page = Page(write_report(tmp_path))
    assert (page.data()["height"], page.data()["width"]) == page.tiles("maps-0", 5).shape[1:] == (12, 12)
    assert "Maps are 12 by 12" in page.words


def test_where_the_output_is_zero_no_layer_has_a_share(tmp_path):
    module = Classifier()
    torch.nn.init.zeros_(module.head[2].weight)
    torch.nn.init.zeros_(module.head[2].bias)
    monitor = FullGradMonitor(num_samples=4, report=True, strict=True)
    trainer(tmp_path, monitor).fit(module, loader(seed=1), loader(16, seed=2))
    assert {layer.share for layer in monitor.history.layers(0)} == {None}
    numbers = monitor.history.snapshots[0].numbers
    assert not {f"fullgrad/{share}" for share in ("input_share", "bias_share", "implicit_share")} & set(numbers)
    page = Page(monitor.history.folder / "report.html")
    assert not any(attributes.get("role") == "note" for _, attributes in page.elements)
    assert {layer["share"] for layer in page.data()["layers"][0]} == {None}
    shares = page.data("figures")["layers"]["data"][0]["z"]
    assert {row[0] for row in shares} == {None}
    assert all(None not in row[1:] for row in shares)


def test_a_run_with_one_snapshot(tmp_path):
    run(tmp_path, num_snapshots=1)
    page = Page(write_report(tmp_path))
    slider = next(attributes for _, attributes in page.elements if attributes.get("id") == "snapshot")
    assert (slider["max"], "disabled" in slider) == ("0", True)


def test_a_run_is_found_below_the_folder_that_is_named(tmp_path):
    run(tmp_path / "logs" / "version_0" / "fullgrad")
    assert write_report(tmp_path) == tmp_path / "logs" / "version_0" / "fullgrad" / "report.html"
    run(tmp_path / "logs" / "version_1" / "fullgrad")
    with pytest.raises(CannotRun, match=r"2 runs below .*The newest first: .*version_1.*version_0"):
        write_report(tmp_path)
    assert write_report(tmp_path / "logs" / "version_1", tmp_path / "new" / "x.html") == tmp_path / "new" / "x.html"


def test_where_there_is_nothing_to_report_the_reason_is_said(tmp_path):
    with pytest.raises(CannotRun, match="does not exist"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(CannotRun, match="is a file"):
        write_report(tmp_path / "file")
    with pytest.raises(CannotRun, match="neither a monitored run"):
        write_report(tmp_path)
    run(tmp_path / "begun", num_snapshots=0)
    with pytest.raises(CannotRun, match=r"its history\.csv holds no snapshot"):
        write_report(tmp_path / "begun")
    run(tmp_path / "run")
    with pytest.raises(CannotRun, match=r"cannot be written: .*--output"):
        write_report(tmp_path / "run", tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    ("name", "content", "noted"),
    [
        ("history.csv", "epoch,loss\n0,0.5\n", "; its history.csv is not that of a run;"),
        ("history.csv", ",".join(METHOD_COLUMNS) + "\n", "; its history.csv is not that of a run;"),  # in <method>/ of a run
        ("history.csv", "\0", "; its history.csv is not that of a run;"),
        ("experiment.json", '{"model": "resnet"}', "; its experiment.json is not that of an experiment;"),
        ("probe.json", "[1, 2]", "does; give the folder"),
        ("cells/1.png", "", "does; give the folder"),
    ],
)
def test_files_of_other_programs_are_no_run(tmp_path, name, content, noted):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(CannotRun, match=f"holds neither a monitored run .*{re.escape(noted)}"):
        write_report(tmp_path)
    run(tmp_path / "fullgrad")
    assert write_report(tmp_path) == tmp_path / "fullgrad" / "report.html"
