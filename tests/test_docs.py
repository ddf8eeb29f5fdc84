"""The manual agrees with the code, builds with warnings as errors, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import yaml

import fg_lightning
from fg_lightning.cli.main import COMMANDS
from fg_lightning.explain import PerturbationScore
from fg_lightning.history.records import COLUMNS, HISTORY, IMAGES, LAYERS, NUMBERS
from fg_lightning.planted import results as planted_results
from fg_lightning.recording import findings
from fg_lightning.roar import results as roar_results
from tests import ROOT
from tests.helpers.browser_pages import IN_CHROMIUM, started, until

pytest.importorskip("mkdocs", reason="needs the extra docs")
pytest.importorskip("material", reason="needs the extra docs")
pytest.importorskip("mkdocstrings", reason="needs the extra docs")

LOADED = re.compile(
    r"""<(?:script|img|iframe)[^>]*\bsrc=["']?(https?://[^"'\s>]+)|<link[^>]*rel=["']?stylesheet[^>]*href=["']?(https?://[^"'\s>]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_every_page_is_in_the_navigation():
    pages = {
        str(path.relative_to(ROOT / "docs").with_suffix(".md"))
        for kind in ("md", "ipynb")
        for path in (ROOT / "docs").rglob(f"*.{kind}")
    }
    assert pages == set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))


# --- the reference agrees with the code ------------------------------------------------------------------------------------------


def tables_of(page: str) -> dict[str, list[list[str]]]:
    """The rows of the last table below each heading, without the heads, each a list of cells without backticks."""
    tables = {}
    for part in re.split(r"^##+ ", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
        rows = [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
        tables[title] = [row for row in rows if "---" not in row[0]]
    return tables


SCORE_COLUMNS = [field.name for field in fields(PerturbationScore)]

COLUMNS_OF = {
    "history.csv": COLUMNS[HISTORY],
    "images.csv": COLUMNS[IMAGES],
    "layers.csv": COLUMNS[LAYERS],
    "results.csv of roar": roar_results.TABLE_COLUMNS,
    "summary.csv of roar": roar_results.SUMMARY_COLUMNS,
    "perturbation_summary.csv": [SCORE_COLUMNS[0], "order", "fill", *SCORE_COLUMNS[1:], "note"],
    "findings.csv": findings.COLUMNS,
    "results.csv of planted": planted_results.TABLE_COLUMNS,
    "summary.csv of planted": planted_results.SUMMARY_COLUMNS,
}


@pytest.mark.parametrize("heading", COLUMNS_OF)
def test_the_reference_has_every_column_with_type_and_meaning(heading):
    _, *rows = tables_of("reference/keys_and_files.md")[heading]
    assert [row[0] for row in rows] == list(COLUMNS_OF[heading])
    assert all(len(row) == 4 and row[1] and row[3] for row in rows)


def test_the_reference_has_every_logged_number():
    rows = tables_of("reference/keys_and_files.md")["Logged numbers"]
    keys = [row[0] for row in rows if row[0].startswith("fullgrad/")]
    assert keys == [f"fullgrad/{name}" for name in NUMBERS]
    assert all(all(row[1:3]) for row in rows)


PACKAGES = sorted(path.parent.name for path in (ROOT / "fg_lightning").glob("*/__init__.py"))

ELSEWHERE = {"metrics.TotalVariation", "metrics.total_variation", "roar.top_pixels"}
"""Names of another package, which the pages mention in a sentence."""


def test_the_reference_has_every_public_name():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/reference").rglob("*.md"))
    shown = set(re.findall(r"^::: fg_lightning\.([\w.]+)$", pages, re.MULTILINE))
    names = {
        f"{package}.{name}" for package in PACKAGES for name in getattr(import_module(f"fg_lightning.{package}"), "__all__", ())
    }
    assert not names - shown - ELSEWHERE


def test_the_page_of_commands_is_current():
    spec = spec_from_file_location("write_commands", ROOT / "docs/scripts/write_commands.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.write_page(), "run: python docs/scripts/write_commands.py"


def test_the_page_of_commands_has_every_command():
    text = (ROOT / "docs/reference/commands.md").read_text()
    headings = set(re.findall(r"[\w-]+", " ".join(re.findall(r"^## (.*)$", text, re.MULTILINE))))
    assert set(COMMANDS) <= headings


# --- the site --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_builds_and_the_reference_has_signatures_and_examples(site):
    page = (site / "reference/api/fullgrad.html").read_text()
    for name in ("full_gradients", "FullGradients", "SmoothFullGrad"):
        assert f"fg_lightning.fullgrad.{name}" in page or f".{name}" in page
    assert "additional_forward_args" in page
    assert "&gt;&gt;&gt; " not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)  # examples are code


def test_it_loads_nothing_from_elsewhere(site):
    found = {path.name: LOADED.findall(path.read_text()) for path in site.rglob("*.html")}
    assert not {name: addresses for name, addresses in found.items() if addresses}


def in_chromium(test):
    for mark in IN_CHROMIUM:
        test = mark(test)
    return test


@in_chromium
def test_search_works_from_disk_and_without_a_network(site):
    with started(offline=True) as browser:
        browser.get((site / "index.html").as_uri())
        browser.execute_script("document.querySelector('label[for=__search]').click()")
        browser.find_element("css selector", "input.md-search__input").send_keys("blurriness")
        until(browser, "document.querySelectorAll('.md-search-result__item').length > 0")
        assert "Remove and retrain" in browser.find_element("css selector", ".md-search-result").text
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@in_chromium
def test_no_page_is_wider_than_a_phone(site):
    with started(offline=True) as browser:
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        widths = {}
        for page in sorted(site.rglob("*.html")):
            browser.get(page.as_uri())
            widths[str(page.relative_to(site))] = browser.execute_script("return document.documentElement.scrollWidth")
    assert {page for page, width in widths.items() if width > 390} == set()


def test_every_page_shows_the_version_and_leads_to_the_source(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert f"fg-lightning {fg_lightning.__version__}" in text
        assert "Source</a>" in text


def test_hooks_before_a_commit_run_the_tools_of_make_lint():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    tools = [line.strip().replace("$(BIN)", ".venv/bin").split()[:2] for line in lint[1].splitlines()]
    assert [entry.split()[:2] for entry in entries] == tools
