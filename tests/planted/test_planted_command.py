"""fg-lightning planted, and the page of what it leaves."""

from __future__ import annotations

import json

import pytest

from fg_lightning.cli.main import main
from fg_lightning.errors import CannotRun
from fg_lightning.report import write_report
from tests.helpers.written_runs import Page

DATA, MODEL = "tests.planted.test_experiment.OnlyTheMark", "tests.planted.test_experiment.Fast"


def planted(output, *more, model=MODEL):
    own = ["--output", str(output), "--data", DATA, "--model", model, "--num_seeds", "1", "--size", "3", "--margin", "1"]
    main(["planted", *own, "--methods", "random,gradient", "--max_epochs", "8", *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command") / "mine"
    planted(folder)
    return folder


def test_it_says_whether_the_networks_live_on_the_mark_and_what_maps_show(finished, capsys):
    planted(finished)  # nothing is run again
    printed = capsys.readouterr().out
    assert "1 of 1 networks rely on the mark (accuracy 1.000 with the mark of the label" in printed
    assert "pointing game and relevance mass on the mark" in printed
    assert "│ gradient │         1.000 │" in printed
    assert "1 network; the mark's share of the pixels is 0.2500; intervals are rough" in printed
    assert f"results.csv  {finished}/results.csv" in printed
    assert f"fg-lightning report {finished}" in printed


def test_it_states_no_result_of_networks_that_do_not_live_on_the_mark(tmp_path, capsys):
    planted(tmp_path, "--strength", "0", "--max_epochs", "1")
    printed = capsys.readouterr().out
    assert "none of 1 networks relies on the mark" in printed
    assert "there are no scores" in printed
    assert "pointing game" not in printed
    page = Page(write_report(tmp_path))
    assert "None of 1 networks relies on the mark" in page.words
    assert "How much of each map" not in page.words
    assert page.data("figures") == {}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--methods", "random,none_such"], "method must be one of"),
        (["--strength", "2"], r"strength must be from 0 to 1, not 2"),
        (["--num_seeds", "0"], "num_seeds must be at least 1"),
        (["--margin", "20"], "cover the whole image"),
        (["--metric", "f1"], "the test logged no metric 'f1'"),
    ],
)
def test_what_has_to_be_changed_is_a_sentence(tmp_path, more, why):
    with pytest.raises(SystemExit, match=f"fg-lightning: .*{why}"):
        planted(tmp_path, *more)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_method_that_fails_ends_with_status_1(tmp_path, monkeypatch):
    from fg_lightning.attribution import METHODS

    def broken(model, **settings):
        raise RuntimeError("a fault [/x]")

    monkeypatch.setitem(METHODS, "broken", broken)
    with pytest.raises(SystemExit, match=r"broken failed, see .*results\.csv; the same command tries again\. The first: .*a fault"):
        planted(tmp_path, "--methods", "gradient,broken", "--max_epochs", "1")
    page = Page(write_report(tmp_path))
    assert "broken failed on the planted network of seed 0: RuntimeError: a fault [/x]" in page.words


# --- the page ---------------------------------------------------------------------------------------------------------------------


def test_the_page_shows_accuracies_scores_and_maps(finished):
    page = Page(write_report(finished))
    assert "1 of 1 networks rely on the mark" in page.words
    assert "trained with random marks" in page.words
    assert "shortcut corner, strength 1" in page.words
    assert "model Fast" in page.words
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 1
    figures = page.data("figures")
    assert list(figures) == ["pointing_game", "relevance_mass"]
    names = [trace["name"] for trace in figures["pointing_game"]["data"]]
    assert names == ["trained with the mark", "trained with random marks"]
    cells = json.loads((finished / "cells" / "planted-0-gradient.json").read_text())["values"]["pointing_game"]
    place = figures["pointing_game"]["layout"]["yaxis"]["ticktext"].index("gradient")
    planted, control = figures["pointing_game"]["data"]
    assert planted["x"][place] == pytest.approx(sum(cells) / len(cells))
    assert planted["y"][place] < place < control["y"][place]  # equal scores do not hide each other
    assert not planted["error_x"]["visible"]  # one network has no interval
    assert planted["customdata"][place] == ["gradient", ""]


def test_an_unfinished_experiment_shows_what_there_is(finished, tmp_path):
    for path in (p for p in finished.rglob("*") if p.is_file()):
        if "gradient" not in path.name and "control" not in path.name:
            (tmp_path / path.relative_to(finished)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(finished)).write_bytes(path.read_bytes())
    page = Page(write_report(tmp_path))
    assert page.data("figures")["pointing_game"]["layout"]["yaxis"]["ticktext"] == ["random"]
    for path in (*(tmp_path / "networks").iterdir(), *(tmp_path / "cells").iterdir()):
        path.unlink()
    with pytest.raises(CannotRun, match="no network has been trained in it yet"):
        write_report(tmp_path)
