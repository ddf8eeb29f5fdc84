"""Results as a pandas.DataFrame: a row for every training, one value in each cell, as results.csv."""

from __future__ import annotations

import sys

import pytest

from fg_lightning.roar import CannotRun
from fg_lightning.roar.cells import ALL, MASKS, Cell, CellResult
from fg_lightning.roar.results import TABLE_COLUMNS, ROARResults

RESULTS = ROARResults(
    [
        CellResult(Cell(ALL, 0.0, 0), 1 / 3, total_variation=0.0),
        CellResult(Cell("fullgrad", 0.5, 0, 1, "black"), 0.25, total_variation=0.1),
        CellResult(Cell("fullgrad", 0.5, 0, 1, "", MASKS), reason="Diverged, twice"),
    ],
    "roar",
    "morf",
    3,
)


def test_it_holds_what_the_table_holds(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = RESULTS.to_pandas()
    assert list(frame.columns) == TABLE_COLUMNS
    assert frame.method.tolist() == [ALL, "fullgrad", "fullgrad"]
    assert frame.accuracy.tolist()[:2] == [1 / 3, 0.25]  # exact, not as printed
    assert frame.accuracy.isna().tolist() == [False, False, True]
    assert [str(frame[name].dtype) for name in ("fraction", "network", "accuracy")] == ["float64", "int64", "float64"]
    assert frame.query("control == 'masks'").reason.item() == "Diverged, twice"
    RESULTS.write_table(tmp_path / "results.csv")
    read = pandas.read_csv(tmp_path / "results.csv", keep_default_na=False, na_values={"accuracy": "", "total_variation": ""})
    assert (read.drop(columns="target").round(6).fillna(-1) == frame.drop(columns="target").round(6).fillna(-1)).all(axis=None)


def test_without_pandas_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(CannotRun, match=r"pandas, which is not installed: pip install pandas, or read results\.csv"):
        RESULTS.to_pandas()
