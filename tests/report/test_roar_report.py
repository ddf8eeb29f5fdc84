"""The report of a ROAR experiment, read back from its one file."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fg_lightning.errors import CannotRun
from fg_lightning.removal import removal_mask
from fg_lightning.report import write_report
from fg_lightning.roar.cells import Cell, CellResult, read_results, write_result
from fg_lightning.roar.findings import list_findings
from fg_lightning.roar.results import ROARResults
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


def rows_of(page, width):
    """The rows of the table of methods, whose cells have values."""
    values = [attributes["data-value"] for tag, attributes in page.elements if tag == "td" and "data-value" in attributes]
    return [values[i * width : i * width + width] for i in range(len(values) // width)]


def test_the_table_holds_the_scores_and_accuracies(written):
    folder, _, page = written
    results = ROARResults(read_results(folder)[0], "roar", "morf")
    assert results.accuracies("random")[0].tolist()[0] == 0.9
    first, second = rows_of(page, 11)[:2]
    assert [first[0], second[0]] == ["fullgrad", "random"]
    # the curves part by 0.125 at a quarter and 0.25 at a half: trapezes of 0.25 * 0.125 / 2 + 0.25 * 0.375 / 2, over a range of 0.5
    assert float(first[1]) == pytest.approx(0.125)
    assert second[1:5] == [""] * 4  # random against itself
    assert [float(value) for value in first[6:9]] == pytest.approx([0.9, 0.645, 0.395])
    assert [float(value) for value in first[9:]] == pytest.approx([0.6, 0.6])  # of masks alone
    assert [float(value) for value in second[9:]] == pytest.approx([0.1, 0.1])
    assert float(first[5]) == pytest.approx(0.2)


def curves_of(page, name="accuracy-0"):
    return {trace["name"]: trace for trace in page.data("figures")[name]["data"] if "name" in trace}


def test_curves_have_bars_beside_each_other(written):
    traces = written[2].data("figures")["accuracy-0"]["data"]
    assert list(curves_of(written[2])) == ["fullgrad", "fullgrad, masks alone", "random", "random, masks alone"]
    assert traces[1]["y"] == pytest.approx([0.9, 0.645, 0.395])
    # two seeds, 0.01 apart: Student's t for one degree of freedom, 12.706, times 0.01 / 2
    assert traces[1]["customdata"][1] == " ± 0.064"
    assert traces[0]["y"] == traces[1]["y"]
    bars = traces[0]["error_y"]
    assert (bars["array"][1], bars["arrayminus"][1]) == pytest.approx((0.0635, 0.0635), abs=1e-4)
    assert traces[0]["x"][1] < 0.25 < traces[3]["x"][1]


def test_bars_end_where_accuracies_end_in_per_cent_too(tmp_path):
    experiment(tmp_path)
    for result in read_results(tmp_path)[0]:
        write_result(tmp_path, replace(result, accuracy=100 * result.accuracy + 9 * (result.accuracy > 0.8)))
    bars, line, *_ = Page(write_report(tmp_path)).data("figures")["accuracy-0"]["data"]
    high = [mean + half for mean, half in zip(line["y"], bars["error_y"]["array"], strict=True)]
    assert line["y"][0] == pytest.approx(99)
    assert max(high) <= 100
    assert high[1] > line["y"][1] + 6


def test_masks_alone_are_dashed_and_hidden_with_their_method(written):
    curves = curves_of(written[2])
    for method, accuracy in (("fullgrad", 0.6), ("random", 0.1)):
        dashed = curves[f"{method}, masks alone"]
        assert dashed["line"]["dash"] == "dash"
        assert dashed["line"]["color"] == curves[method]["line"]["color"]
        assert dashed["legendgroup"] == curves[method]["legendgroup"]
        assert (dashed["x"], dashed["y"]) == ([0.25, 0.5], pytest.approx([accuracy] * 2))
    assert curves["random"]["line"]["color"] != curves["fullgrad"]["line"]["color"]


def test_chance_is_a_dotted_line_with_a_label(written):
    layout = written[2].data("figures")["accuracy-0"]["layout"]
    (line,), (label,) = layout["shapes"], layout["annotations"]
    assert (line["y0"], line["y1"], line["line"]["dash"]) == (pytest.approx(0.1), pytest.approx(0.1), "dot")
    assert label["text"] == "chance (random's masks alone): 0.10"
    assert "Dotted line: chance" in written[2].words


def test_several_fills_are_figures_side_by_side_in_the_same_colours_and_range(tmp_path):
    experiment(tmp_path, fills=("black", "dataset_mean"))
    page = Page(write_report(tmp_path))
    figures = page.data("figures")
    assert list(figures) == ["accuracy-0", "accuracy-1"]
    assert "Test accuracy, fill black" in page.words
    assert not any("wide" in attributes.get("class", "") for tag, attributes in page.elements if tag == "section")
    black, mean = (curves_of(page, name) for name in figures)
    assert black["fullgrad"]["line"]["color"] == mean["fullgrad"]["line"]["color"]
    assert black["fullgrad"]["y"] != mean["fullgrad"]["y"]
    assert black["fullgrad, masks alone"]["y"] == mean["fullgrad, masks alone"]["y"]  # fills do not matter to them
    assert figures["accuracy-0"]["layout"]["yaxis"]["range"] == figures["accuracy-1"]["layout"]["yaxis"]["range"]
    rows = rows_of(page, 12)[:4]
    assert [row[:2] for row in rows] == [
        ["fullgrad", "black"],
        ["random", "black"],
        ["fullgrad", "dataset_mean"],
        ["random", "dataset_mean"],
    ]
    assert float(rows[2][2]) < 0 < float(rows[0][2])


@pytest.mark.parametrize("networks", [1, 2])
def test_the_page_says_what_the_numbers_say(tmp_path, networks):
    experiment(tmp_path, target="label", networks=networks, seeds=3)
    page = Page(write_report(tmp_path))
    findings = list_findings(ROARResults(read_results(tmp_path)[0], "roar", "morf", "label"))
    assert len(findings) == 4
    for finding in findings:
        assert finding in page.words
    assert "reach these accuracies: fullgrad 0.60; random 0.10." in page.words
    assert "The label is explained" in page.words
    assert f"{networks} explained network{'s' * (networks > 1)}, 3 seeds" in page.words


def test_without_controls_the_page_says_so(tmp_path):
    experiment(tmp_path, controls=False)
    page = Page(write_report(tmp_path))
    assert "How much the masks alone give away was not measured" in page.words
    assert not any("masks alone" in name for name in curves_of(page))
    assert "shapes" not in page.data("figures")["accuracy-0"]["layout"]
    assert "chance" not in page.words
    assert len(rows_of(page, 9)[0]) == 9


def test_a_whole_experiment_has_nothing_to_note(written):
    page = written[2]
    assert not any(attributes.get("role") == "note" for _, attributes in page.elements)
    assert "Remove and retrain" in page.words
    assert "model Net" in page.words
    assert "data Data" in page.words


def test_an_unfinished_experiment_shows_what_there_is(tmp_path):
    experiment(tmp_path)
    (tmp_path / "cells" / "fullgrad-0.5-dataset_mean-0-1.json").unlink()
    (tmp_path / "cells" / "fullgrad-0.25-dataset_mean-0-1.json").write_text("{")
    failed = Cell("random", 0.5, 1, 0, "dataset_mean")
    write_result(tmp_path, CellResult(failed, reason="Diverged: the loss is <nan>\nlong trace"))
    (tmp_path / "stores" / "random" / "test.ranks").write_bytes(b"12")
    page = Page(write_report(tmp_path))
    assert "1 files in cells/ are damaged" in page.words
    assert "12 of 14 trainings have been run" in page.words
    assert "1 trainings failed: Diverged: the loss is <nan>" in page.words
    assert re.search(r"The masks of random are not shown: .*truncated", page.words)
    assert methods_of(page) == ["fullgrad"]


def test_without_stores_there_are_no_masks(tmp_path):
    experiment(tmp_path)
    shutil.rmtree(tmp_path / "stores")
    page = Page(write_report(tmp_path))
    assert not any(tag == "canvas" for tag, _ in page.elements)
    assert "is not a saliency store" in page.words


def test_without_cells_the_table_is_read(tmp_path):
    experiment(tmp_path)
    expected = Page(write_report(tmp_path)).data("figures")
    from fg_lightning.report.roar_page import read_experiment

    read_experiment(tmp_path).results.write_table(tmp_path / "results.csv")
    with (tmp_path / "results.csv").open("a") as file:
        file.write("random,,dataset_mean,0.5,0,0,pred")
    for name in ("cells", "stores"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "experiment.json").unlink()
    page = Page(write_report(tmp_path))
    assert page.data("figures") == expected
    assert "experiment.json is missing" in page.words
    assert "The last line of results.csv is incomplete and left out." in page.words


def test_an_experiment_without_a_training_is_said_to_be_one(tmp_path):
    experiment(tmp_path, seeds=0)
    with pytest.raises(CannotRun, match=r"it has no finished training yet; wait for one \(results.csv is missing\.\)"):
        write_report(tmp_path)


def test_words_of_a_user_stay_words(tmp_path):
    experiment(tmp_path, methods=("random", "<i>mine & yours<"), seeds=1)
    page = Page(write_report(tmp_path))
    assert "<i>mine & yours<" in page.words
    assert not any(tag == "i" for tag, _ in page.elements)
    names = [trace.get("name") for trace in page.data("figures")["accuracy-0"]["data"]]
    assert "&lt;i&gt;mine &amp; yours&lt;" in names  # plotly takes markup
