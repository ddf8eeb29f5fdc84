"""A run that is written once."""

import pytest

from fg_lightning.report import write_report
from tests.helpers.written_runs import Page, run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "version_0" / "fullgrad"
    maps = run(folder)
    return folder, maps, Page(write_report(folder))
