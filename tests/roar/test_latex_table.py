"""The table for LaTeX: whole, balanced, escaped, with the numbers of summary.csv."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from fg_lightning.roar.cells import ALL, MASKS, Cell, CellResult
from fg_lightning.roar.latex_table import escape, latex_table
from fg_lightning.roar.results import ROARResults

METHODS = ("random", "fullgrad", r"my_100%\method&{x}~^#$<")


def results(fills=("black", "dataset_mean"), seeds=3, controls=True, target="predicted"):
    found = [CellResult(Cell(ALL, 0.0, seed), 1.0, total_variation=0.0) for seed in range(seeds)]
    for i, method in enumerate(METHODS):
        cells = [Cell(method, 0.5, seed, 0, fill) for fill in fills for seed in range(seeds)]
        found += [CellResult(cell, 0.9 - i * (0.2 + 0.01 * cell.seed), {}, 0.25 * i) for cell in cells]
        if controls:
            found.append(CellResult(Cell(method, 0.5, 0, 0, "", MASKS), 0.1 + i / 10))
    return ROARResults(found, "roar", "morf", target)


def rows_of(table):
    """The cells between the rules, split at & that are not escaped."""
    body = re.search(r"\\toprule\n(.*?)\\bottomrule", table, re.DOTALL)[1]
    lines = [line for line in body.splitlines() if line != r"\midrule"]
    assert all(line.endswith(r" \\") for line in lines)
    return [re.split(r" (?<!\\)& ", line.removesuffix(r" \\")) for line in lines]


@pytest.mark.parametrize("options", [{}, {"fills": ("black",)}, {"seeds": 1, "controls": False}, {"target": 3}])
def test_the_table_is_whole_and_balanced(options):
    table = latex_table(results(**options))
    begun, ended = (re.findall(rf"\\{word}\{{(\w+)\}}", table) for word in ("begin", "end"))
    assert begun == ended[::-1] == ["table", "tabular"]
    braces = re.sub(r"\\[{}]", "", table)
    assert braces.count("{") == braces.count("}")
    assert len(re.findall(r"(?<!\\)\$", table)) % 2 == 0
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", table)
    rows = rows_of(table)
    assert {len(row) for row in rows} == {len(columns)}
    num_fills = len(options.get("fills", ("black", "dataset_mean")))
    assert len(rows) == 1 + num_fills * len(METHODS)
    assert table.count(r"\midrule") == num_fills
    for rule in (r"\toprule", r"\bottomrule", r"\caption", r"\label"):
        assert table.count(rule) == 1


def test_its_numbers_are_those_of_the_scores():
    found = results()
    rows = {(row[0], row[1]): row[2:] for row in rows_of(latex_table(found))}
    score = next(score for score in found.scores("black") if score.method == "fullgrad")
    area, p, variation, masks = rows["black", "fullgrad"]
    assert area == f"${score.area:+.3f} \\pm {score.interval:.3f}^*$"
    assert score.p_holm < 0.05
    assert float(p) == pytest.approx(score.p_holm, abs=5e-4)
    assert (variation, masks) == ("0.25", "0.200")
    assert rows["black", "random"] == ["reference", "--", "0.00", "0.100"]


def test_without_a_p_value_there_is_no_asterisk_and_no_interval():
    table = latex_table(results(seeds=1))
    assert "^*" not in table
    assert r"\pm" not in table
    assert {row[3] for row in rows_of(table)[1:]} == {"--"}


def test_the_caption_says_what_the_numbers_are_over():
    assert "3 seeds of one explained network" in latex_table(results())
    assert "explained class: label" in latex_table(results(target="label"))
    assert "Masks alone" not in latex_table(results(controls=False))


def test_words_of_a_user_are_printed_as_they_are():
    assert escape(METHODS[2]) == (r"my\_100\%\textbackslash{}method\&\{x\}\textasciitilde{}\textasciicircum{}\#\$\textless{}")
    assert escape("fullgrad") == "fullgrad"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_takes_it(tmp_path):
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + latex_table(results()) + r"\end{document}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
