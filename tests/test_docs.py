"""The documentation builds with warnings as errors, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from tests import ROOT

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
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))


@pytest.mark.slow
def test_it_builds_and_the_reference_has_signatures_and_examples(site):
    page = (site / "reference/fullgrad.html").read_text()
    for name in ("full_gradients", "FullGradients", "SmoothFullGrad"):
        assert f"fg_lightning.fullgrad.{name}" in page or f".{name}" in page
    assert "additional_forward_args" in page
    assert "&gt;&gt;&gt; " not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)  # examples are code


def test_it_loads_nothing_from_elsewhere(site):
    found = {path.name: LOADED.findall(path.read_text()) for path in site.rglob("*.html")}
    assert not {name: addresses for name, addresses in found.items() if addresses}


def test_hooks_before_a_commit_run_the_tools_of_make_lint():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    tools = [line.strip().replace("$(BIN)", ".venv/bin").split()[:2] for line in lint[1].splitlines()]
    assert [entry.split()[:2] for entry in entries] == tools
