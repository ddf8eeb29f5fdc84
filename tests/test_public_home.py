"""What a code host and a package index read of the repository fits the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests import ROOT
from tests.check_pages import list_files

if not (ROOT / ".github").is_dir():
    pytest.skip("needs the repository", allow_module_level=True)

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PYPROJECT = (ROOT / "pyproject.toml").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def jobs(path: Path) -> dict:
    return yaml.safe_load(path.read_text())["jobs"]


def test_every_python_that_is_promised_is_tested():
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert jobs(ROOT / ".github/workflows/tests.yml")["test"]["strategy"]["matrix"]["python-version"] == promised
    assert f'requires-python = ">={promised[0]}"' in PYPROJECT


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_that_exist_and_say_what_they_may_do(path):
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    for job in jobs(path).values():
        targets = job.get("strategy", {}).get("matrix", {}).get("target", [])
        for step in job["steps"]:
            targets = targets + re.findall(r"make (\w+)", step.get("run", ""))
        for target in targets:
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_the_local_check_runs_what_the_workflow_runs():
    local = set(re.findall(r"^make (\w+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert local == {"test", *jobs(ROOT / ".github/workflows/tests.yml")["check"]["strategy"]["matrix"]["target"]}


def test_the_release_page_names_every_file_with_the_repositorys_address():
    (row,) = [line for line in (ROOT / "RELEASING.md").read_text().splitlines() if line.startswith("FILES=")]
    named = set(row.removeprefix("FILES=").strip("'\"").split())
    paths = [Path(name) for name in list_files()] + [ROOT / "pyproject.toml", ROOT / "mkdocs.yml", ROOT / "CITATION.cff"]
    address = re.compile(r"fg-lightning/fg-lightning|fg-lightning\.github\.io")
    assert {str(path.relative_to(ROOT)) for path in paths if address.search(path.read_text())} - {"RELEASING.md"} == named


def test_a_version_has_its_place_in_the_changelog():
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) and date for version, date in headings[1:])
