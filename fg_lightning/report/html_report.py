"""Writes the report of a run or an experiment as one HTML file."""

from __future__ import annotations

import gzip
import hashlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Union

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from fg_lightning.atomic_files import sweep, write_atomically
from fg_lightning.errors import CannotRun
from fg_lightning.report.compared_runs import read_compared_runs
from fg_lightning.report.comparison_page import comparison_page
from fg_lightning.report.figures import Page
from fg_lightning.report.image_encoding import to_base64
from fg_lightning.report.planted_page import is_planted, planted_page
from fg_lightning.report.roar_page import experiment_page
from fg_lightning.report.run_content import Track
from fg_lightning.report.run_folders import REPORT, is_run, locate_run
from fg_lightning.report.run_page import run_page


def write_report(
    folder: Union[str, Path],
    output: Union[str, Path, None] = None,
    track: Track = lambda what, items: items,
    *,
    title: str | None = None,
) -> Path:
    """Writes the report of a monitored run or of an experiment (roar, planted). Both may be unfinished.

    Args:
        folder: folder of the run, or any folder above its only `fullgrad/`; or folder of the experiment.
        output: file to write. Default: `report.html` in the folder of the run or experiment.
        track: function that shows progress: it gets a description and items, and yields the items. Default: no progress.
        title: title of the page. Default: the end of the folder's path.

    Returns:
        The file's absolute path.

    Raises:
        CannotRun: if the folder holds neither a run nor an experiment, there are no results yet, or the file cannot be written.
    """
    folder = locate_run(Path(folder))
    page = _make_page(folder, track, title)
    return _write(render(page), folder / REPORT if output is None else Path(output))


def write_comparison(
    folders: Sequence[Union[str, Path]],
    output: Union[str, Path] = "comparison.html",
    track: Track = lambda what, items: items,
    *,
    title: str | None = None,
) -> Path:
    """Writes one page that compares runs that explain the same images: maps side by side, curves, and the largest differences.

    Args:
        folders: two or more folders, each of a run, or above its only `fullgrad/`.
        output: file to write. Default: `comparison.html` in the current folder.
        track: see `write_report`.
        title: title of the page. Default: the names of the runs.

    Returns:
        The file's absolute path.

    Warns:
        UserWarning: if the runs share only the snapshot of the untrained network.

    Raises:
        CannotRun: if the runs explain different images or use different settings, or the file cannot be written.
    """
    runs = read_compared_runs(folders, track)
    path = Path(output).resolve()
    _write(render(comparison_page(runs, title, track, path.parent)), path)
    for warning in runs.warnings:
        warnings.warn(warning, stacklevel=2)
    return path


def _write(page: str, path: Path) -> Path:
    """Writes a page, and returns the absolute path of its file."""
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        write_atomically(path, page)
    except OSError as error:
        raise CannotRun(f"{path} cannot be written: {error.strerror}; use another file with --output") from error
    return path


def _make_page(folder: Path, track: Track, title: str | None) -> Page:
    if is_run(folder):
        return run_page(folder, track, title)
    page = planted_page(folder) if is_planted(folder) else experiment_page(folder, track)
    return page if title is None else replace(page, values={**page.values, "title": title})


def render(page: Page) -> str:
    """The HTML of a page. Everything from the user is escaped: text by Jinja, data by its `tojson`."""
    environment = Environment(
        loader=PackageLoader("fg_lightning.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    contents = {figure.name: figure.content for figure in page.figures}
    render_with = partial(
        environment.get_template(page.template).render,
        figures=page.figures,
        contents=contents,
        plotly=_compress_plotly(),
        **page.values,
    )
    return render_with(policy=_security_policy(render_with(policy=""), is_live=page.values.get("live") is not None))


def _security_policy(html: str, *, is_live: bool) -> str:
    """The Content-Security-Policy of a page: it allows only the page's own scripts (by hash), styles and pictures.

    A live page may also send requests to its server.
    """
    scripts = [_script_hash(script) for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)]
    allowed = {
        "default-src": ["'none'"],
        "script-src": [*scripts, _script_hash(get_plotlyjs())],
        "style-src": ["'unsafe-inline'"],  # plotly writes styles as it draws
        "img-src": ["data:", "blob:", *(["'self'"] if is_live else [])],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        **({"connect-src": ["'self'"]} if is_live else {}),
    }
    return "; ".join(" ".join([what, *sources]) for what, sources in allowed.items())


def _script_hash(script: str) -> str:
    return f"'sha256-{to_base64(hashlib.sha256(script.encode()).digest())}'"


@cache
def _compress_plotly() -> str:
    """plotly.js, gzipped and in base64: two fifths of its size. The browser unpacks it."""
    return to_base64(gzip.compress(get_plotlyjs().encode(), mtime=0))
