"""The report of a ROAR experiment, read back from its one file."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fg_lightning.errors import CannotRun
from fg_lightning.removal import removal_mask
from fg_lightning.report import write_report
from fg_lightning.roar.results import Cell, CellResult, ROARResults, read_result, write_result
from tests.helpers.written_runs import Page, decoded, experiment


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roar") / "mine"
    ranks = experiment(folder)
    return folder, ranks, Page(write_report(folder))


def methods_of(page):
    """By place, as the sprites of their masks are."""
    names = [attributes["data-method"] for tag, attributes in page.elements if tag == "canvas"]
    return list(dict.fromkeys(names))


@pytest.mark.parametrize(("order", "mode"), [("morf", "roar"), ("lerf", "roar"), ("morf", "kar")])
def test_the_masks_of_every_fraction_are_those_that_images_lose(tmp_path, order, mode):
    ranks = experiment(tmp_path, order=order, mode=mode)
    page = Page(write_report(tmp_path))
    data = page.data()
    assert data["fractions"] == [0.25, 0.5]
    assert data["keep"] == (mode == "kar")
    shown = [0, 1, 2, 4, 5, 6]  # six of seven, evenly spaced
    for place, method in enumerate(methods_of(page)):
        tiles = page.tiles(f"ranks-{place}", 6)
        for step, fraction in enumerate(data["fractions"]):
            expected = removal_mask(ranks[method], fraction, order)[shown].numpy()
            assert ((tiles <= step) == expected).all()


def test_images_stand_behind_their_masks_where_the_folder_holds_them(tmp_path):
    ranks = experiment(tmp_path)
    (tmp_path / "examples").mkdir()
    pictures = {i: np.random.default_rng(i).integers(0, 255, (6, 6, 3), dtype=np.uint8) for i in (1, 4)}
    for i, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / "examples" / f"{i:06d}.png")
    page = Page(write_report(tmp_path))
    shown = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(shown) == 2
    assert (decoded(shown[1].removeprefix("data:image/webp;base64,")) == pictures[4]).all()
    assert "does not hold the images" not in page.words
    tiles = page.tiles("ranks-0", 2)
    assert ((tiles <= 0) == removal_mask(ranks[methods_of(page)[0]], 0.25)[[1, 4]].numpy()).all()


def test_the_table_holds_the_scores_and_accuracies(written):
    folder, _, page = written
    results = ROARResults([read_result(folder, Cell("all", 0.0, seed)) for seed in (0, 1)], "roar", "morf")
    assert results.accuracies("random")[0].tolist()[0] == 0.9
    values = [attributes["data-value"] for tag, attributes in page.elements if tag == "td" and "data-value" in attributes]
    rows = [values[i * 9 : i * 9 + 9] for i in range(2)]
    assert [row[0] for row in rows] == ["fullgrad", "random"]
    # the curves part by 0.125 at a quarter and 0.25 at a half: trapezes of 0.25 * 0.125 / 2 + 0.25 * 0.375 / 2
    assert float(rows[0][1]) == pytest.approx(0.0625)
    assert rows[1][1:5] == [""] * 4  # random against itself
    assert [float(value) for value in rows[0][6:]] == pytest.approx([0.9, 0.645, 0.395])
    assert float(rows[0][5]) == pytest.approx(0.2)


def test_curves_have_bands(written):
    traces = written[2].data("figures")["accuracy"]["data"]
    assert [trace["name"] for trace in traces[1::2]] == ["fullgrad", "random"]
    assert traces[1]["y"] == pytest.approx([0.9, 0.645, 0.395])
    assert traces[0]["fill"] == "toself"
    # two seeds, 0.01 apart: Student's t for one degree of freedom, 12.706, times 0.01 / 2
    assert traces[1]["customdata"][1] == pytest.approx(0.0635, abs=1e-4)
    assert max(traces[0]["y"][1:2]) == pytest.approx(0.645 + 0.0635, abs=1e-4)


def test_a_whole_experiment_has_nothing_to_note(written):
    page = written[2]
    assert not any(attributes.get("role") == "note" for _, attributes in page.elements)
    assert "Remove and retrain" in page.words
    assert "model Net" in page.words
    assert "data Data" in page.words


def test_an_unfinished_experiment_shows_what_there_is(tmp_path):
    experiment(tmp_path)
    (tmp_path / "cells" / "fullgrad-0.5-1.json").unlink()
    (tmp_path / "cells" / "fullgrad-0.25-1.json").write_text("{")
    write_result(tmp_path, CellResult(Cell("random", 0.5, 1), reason="Diverged: the loss is <nan>\nlong trace"))
    (tmp_path / "stores" / "random" / "test.ranks").write_bytes(b"12")
    page = Page(write_report(tmp_path))
    assert "1 files in cells/ are damaged" in page.words
    assert "8 of 10 trainings have been run" in page.words
    assert "1 trainings failed: Diverged: the loss is <nan>" in page.words
    assert re.search(r"The masks of random are not shown: .*truncated", page.words)
    assert methods_of(page) == ["fullgrad"]


def test_without_stores_there_are_no_masks(tmp_path):
    experiment(tmp_path)
    shutil.rmtree(tmp_path / "stores")
    page = Page(write_report(tmp_path))
    assert not any(tag == "canvas" for tag, _ in page.elements)
    assert "is no saliency store" in page.words


def test_without_cells_the_table_is_read(tmp_path):
    experiment(tmp_path)
    expected = Page(write_report(tmp_path)).data("figures")
    from fg_lightning.report.roar_page import read_experiment

    read_experiment(tmp_path).results.write_table(tmp_path / "results.csv")
    with (tmp_path / "results.csv").open("a") as file:
        file.write("roar,morf,random,0.5,9")
    for name in ("cells", "stores"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "experiment.json").unlink()
    page = Page(write_report(tmp_path))
    assert page.data("figures") == expected
    assert "experiment.json is missing" in page.words
    assert "The last line of results.csv was not ended and is left out." in page.words


def test_an_experiment_without_a_training_is_said_to_be_one(tmp_path):
    experiment(tmp_path, seeds=0)
    with pytest.raises(CannotRun, match=r"no training has been recorded in it yet \(results.csv is missing\.\)"):
        write_report(tmp_path)


def test_words_of_a_user_stay_words(tmp_path):
    experiment(tmp_path, methods=("random", "<i>mine & yours<"), seeds=1)
    page = Page(write_report(tmp_path))
    assert "<i>mine & yours<" in page.words
    assert not any(tag == "i" for tag, _ in page.elements)
    names = [trace.get("name") for trace in page.data("figures")["accuracy"]["data"]]
    assert "&lt;i&gt;mine &amp; yours&lt;" in names  # plotly takes markup
