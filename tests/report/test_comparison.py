"""Runs compared on one page, read back; and those that cannot be compared."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from fg_lightning.cli.main import main
from fg_lightning.errors import CannotRun
from fg_lightning.metrics.drift import cosine_drift
from fg_lightning.report import write_comparison, write_report
from fg_lightning.report.compared_runs import distinguish, read_compared_runs
from tests.helpers.written_runs import Page, experiment, run


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    top = tmp_path_factory.mktemp("compared")
    folders = [top / name / "version_0" / "fullgrad" for name in ("first", "second")]
    maps = [run(folder, seed=seed) for seed, folder in enumerate(folders)]
    return folders, maps, Page(write_comparison(folders, top / "comparison.html"))


def test_every_image_of_every_run_is_there_with_its_map(two):
    _, maps, page = two
    assert page.data()["runs"] == ["first", "second"]
    tiles = [attributes for tag, attributes in page.elements if tag == "button" and attributes.get("class") == "tile"]
    assert [tile["data-run"] for tile in tiles] == ["0", "1"] * 5
    for of_run in range(2):
        for moment in range(4):
            levels = page.tiles(f"maps-{of_run}-{moment}-fullgrad", 5).astype(float)
            likeness = [np.corrcoef(levels[i].ravel(), maps[of_run][moment][i].numpy().ravel())[0, 1] for i in range(5)]
            assert min(likeness) > 0.95  # the colour map ends at the 99.5th percentile


def test_distances_are_the_cosine_drift_of_the_maps(two):
    _, maps, page = two
    for moment in range(4):
        expected = cosine_drift(maps[0][moment], maps[1][moment])
        # maps are kept as float16, distances with three digits
        assert page.data()["distances"]["fullgrad"][moment] == pytest.approx(expected.tolist(), rel=5e-3, abs=1e-4)


def test_the_largest_differences_come_first(two):
    rows = two[2].data()["differences"]["fullgrad"]
    assert len(rows) == 20
    distances = two[2].data()["distances"]["fullgrad"]
    assert [row["distance"] for row in rows] == sorted(np.ravel(distances), reverse=True)
    assert all(row["distance"] == distances[row["snapshot"]][row["image"]] and row["runs"] == [0, 1] for row in rows)


def test_a_number_is_a_figure_with_a_line_for_each_run(two):
    figures = two[2].data("figures")
    drift = figures["drift-since-the-snapshot-before"]["data"]
    assert [line["name"] for line in drift] == ["first", "second"]
    assert drift[0]["line"]["color"] != drift[1]["line"]["color"]
    for figure in figures.values():
        colours = {line["name"]: line["line"]["color"] for line in figure["data"] if "line" in line}
        assert colours.get("second", drift[1]["line"]["color"]) == drift[1]["line"]["color"]  # the same everywhere
    mean = figures["distance-fullgrad"]["data"]
    assert [line["name"] for line in mean] == ["first and second"]
    assert mean[0]["y"] == pytest.approx(np.mean(two[2].data()["distances"]["fullgrad"], 1).tolist(), rel=5e-3)


def test_more_runs_have_their_distance_to_the_others(tmp_path):
    folders = [tmp_path / f"seed_{seed}" for seed in range(10)]
    for seed, folder in enumerate(folders):
        run(folder, num_snapshots=2, seed=seed)
    page = Page(write_comparison(folders, tmp_path / "page.html", title="Ten seeds"))
    assert "Ten seeds" in page.words
    lines = page.data("figures")["distance-fullgrad"]["data"]
    assert [line["name"] for line in lines] == [f"seed_{i} to the others" for i in range(10)]
    assert [line["line"]["dash"] for line in lines] == ["solid"] * 8 + ["dash"] * 2
    row = page.data()["differences"]["fullgrad"][0]
    assert row["runs"][0] < row["runs"][1]


def test_snapshots_are_matched_by_epoch_and_the_others_are_named(tmp_path):
    run(tmp_path / "often", num_snapshots=5)
    run(tmp_path / "seldom", num_snapshots=3, every=2, seed=1)
    page = Page(write_comparison([tmp_path / "often", tmp_path / "seldom"], tmp_path / "page.html"))
    assert [snapshot["at"] for snapshot in page.data()["snapshots"]] == [0, 2, 4]
    assert "often: 2 of 5 snapshots lie at epochs that other runs do not have" in page.words
    assert len(page.data("figures")["concentration-Gini-index"]["data"][0]["x"]) == 5


def test_runs_that_share_only_the_untrained_network_are_warned_of(tmp_path, capsys):
    run(tmp_path / "often", num_snapshots=2)
    run(tmp_path / "seldom", num_snapshots=2, every=2, seed=1)
    main(["report", str(tmp_path / "often"), str(tmp_path / "seldom"), "--output", str(tmp_path / "page.html")])
    message = "These runs share only the snapshot of the untrained network"
    assert message in capsys.readouterr().err
    assert message in Page(tmp_path / "page.html").words
    with pytest.warns(UserWarning, match=message):
        write_comparison([tmp_path / "often", tmp_path / "seldom"], tmp_path / "page.html")


def test_lost_maps_have_no_distance(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        run(folder, seed=seed)
    entries = np.load(folders[1] / "maps.npy")
    entries[2] = np.nan
    np.save(folders[1] / "maps.npy", entries)
    page = Page(write_comparison(folders, tmp_path / "page.html"))
    distances = page.data()["distances"]["fullgrad"]
    assert [row[0] is None for row in distances] == [False, False, True, False]
    assert 2 not in {row["snapshot"] for row in page.data()["differences"]["fullgrad"]}
    assert page.scripts.get("maps-1-2-fullgrad", "").strip() == ""


def change_about(folder, **changes):
    about = json.loads((folder / "probe.json").read_text()) | changes
    (folder / "probe.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"fingerprint": "x", "images": [4, 3, 12, 12]},
            r"they explain different images: shape \[5, 3, 12, 12\] and shape \[4, 3, 12, 12\]",
        ),
        (
            {"fingerprint": "x", "labels": [0, 0, 0, 0, 0]},
            "the same shape, but different labels; give both runs the same images and labels",
        ),
        ({"fingerprint": "x"}, "the same shape and labels, but different pixels"),
        ({"psi": "signed"}, "psi is absolute in one and signed in the other"),
        ({"reading": "locally_affine"}, "reading is exact in one and locally_affine in the other"),
        ({"target": "3"}, "target is None in one and 3 in the other"),
    ],
)
def test_runs_that_explain_something_else_are_refused_with_the_reason(tmp_path, changes, reason):
    run(tmp_path / "a")
    run(tmp_path / "b")
    change_about(tmp_path / "b", **changes)
    with pytest.raises(CannotRun, match=f"a and b cannot be compared: .*{reason}"):
        write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_what_is_no_other_run_is_refused(tmp_path):
    run(tmp_path / "a")
    experiment(tmp_path / "roar")
    with pytest.raises(CannotRun, match="roar is an experiment, but only monitored runs can be compared"):
        write_comparison([tmp_path / "a", tmp_path / "roar"])
    with pytest.raises(CannotRun, match="was given twice"):
        write_comparison([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(CannotRun, match="does not exist"):
        write_comparison([tmp_path / "a", tmp_path / "nowhere"])
    shutil.copytree(tmp_path / "a", tmp_path / "without")
    (tmp_path / "without" / "probe.json").unlink()
    with pytest.raises(CannotRun, match=r"the probe\.json of without is missing or damaged"):
        write_comparison([tmp_path / "a", tmp_path / "without"])
    run(tmp_path / "later", num_snapshots=2)
    lines = (tmp_path / "later" / "history.csv").read_text().splitlines(keepends=True)
    lines[1:] = [re.sub(r"^(\d+),(\d+),", lambda found: f"{found[1]},{int(found[2]) + 50},", line) for line in lines[1:]]
    (tmp_path / "later" / "history.csv").write_text("".join(lines))
    with pytest.raises(CannotRun, match="have no snapshot at the same epoch"):
        write_comparison([tmp_path / "a", tmp_path / "later"])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["logs/a/version_0/fullgrad", "logs/b/version_0/fullgrad"], ["a", "b"]),
        (["logs/version_0/fullgrad", "logs/version_10/fullgrad"], ["version_0", "version_10"]),
        (["logs/a", "logs/a/b"], ["a", "b"]),
        (["x/a/1/fullgrad", "x/b/2/fullgrad"], ["a/1", "b/2"]),
        (["x/a/v/fullgrad", "x/b/v/fullgrad", "x/a/w/fullgrad"], ["a/v", "b/v", "a/w"]),
        (["a/fullgrad", "a"], ["a/fullgrad", "a"]),
    ],
)
def test_runs_are_named_by_where_their_paths_differ(paths, names, tmp_path):
    folders = [tmp_path / path for path in paths]
    assert distinguish(folders) == (names if names != paths else [str(folder) for folder in folders])


def test_the_command_compares_and_says_where(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(["it's, one", "two"]):
        run(tmp_path / name / "fullgrad", seed=seed)
    main(["report", "it's, one", "--title", "Mine", "two"])
    assert re.search(r"comparison  .*comparison\.html \(2\.\d MB\)", capsys.readouterr().out)
    page = Page(tmp_path / "comparison.html")
    assert page.data()["runs"] == ["it's, one", "two"]
    assert "Mine" in page.words
    with pytest.raises(SystemExit, match=r"there are 2 runs below .*give one, or several to compare them"):
        main(["report", str(tmp_path)])


def test_a_run_has_the_title_that_the_user_gives(tmp_path):
    run(tmp_path / "run")
    experiment(tmp_path / "roar")
    for folder in ("run", "roar"):
        assert "My own & <title>" in Page(write_report(tmp_path / folder, title="My own & <title>")).words


def test_the_findings_of_each_run_stand_beside_a_link_to_its_page(tmp_path):
    names = ["with one", "without", "unfinished", "damaged"]
    folders = [tmp_path / name / "fullgrad" for name in names]
    for seed, folder in enumerate(folders):
        run(folder, seed=seed)
        if names[seed] != "unfinished":
            (folder / "findings.csv").write_text("snapshot,finding,method,value,threshold,message,advice,page\n")
    with (folders[0] / "findings.csv").open("a") as file:
        file.write("3,corner,fullgrad,0.62,0.2,Relevance gathers in a corner,Look <there>,findings.html#corner\n")
    with (folders[3] / "findings.csv").open("a") as file:
        file.write("3,corner\n")
    write_report(folders[0])
    page = Page(write_comparison(folders, tmp_path / "pages" / "page.html"))
    assert next(attributes["href"] for tag, attributes in page.elements if tag == "a") == "../with%20one/fullgrad/report.html"
    cards = page.words.split("Side by side")[0].split(f"{tmp_path}/")
    assert "Relevance gathers in a corner corner (fullgrad): 0.62, threshold 0.2Look <there>." in cards[1]
    # A run without a page has its folder twice: alone, and in the command that writes its page.
    expected = {"without": "No findings.", "unfinished": "Not known.", "damaged": "Not known."}
    for card, (name, words) in zip(cards[3::2], expected.items(), strict=True):
        assert card.startswith(f"{name}/fullgrad")
        assert words in card
    assert cards[2].endswith("fg-lightning report ")
    assert "damaged: 1 of 1 rows of findings.csv are damaged and left out." in page.words


def test_three_dimensional_maps_are_compared_whole(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    volumes = []
    for seed, folder in enumerate(folders):
        run(folder, num_snapshots=2)
        values = torch.rand(2, 5, 1, 3, 12, 12, generator=torch.Generator().manual_seed(seed)).half()
        np.save(folder / "maps.npy", values.numpy())
        volumes.append(values.float())
    distances = read_compared_runs(folders).distances("fullgrad")
    assert distances[1, 0, 1] == pytest.approx(cosine_drift(volumes[0][1], volumes[1][1]).numpy(), abs=1e-6)
