"""One HTML file: the template with everything in it that a browser needs."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from fg_lightning.report.figures import Figure
from fg_lightning.report.sprites import base64_of


def page(template: str, figures: Sequence[Figure], **values: Any) -> str:
    """A template's page. Whatever comes from a user is escaped: words by Jinja, data by its `tojson`.

    Args:
        template: a file in `templates/`.
        figures: its curves.
        values: what else the template asks for.
    """
    environment = Environment(
        loader=PackageLoader("fg_lightning.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    contents = {figure.name: figure.content for figure in figures}
    render = partial(
        environment.get_template(template).render, figures=figures, contents=contents, plotly=_packed_plotly(), **values
    )
    return render(policy=_policy(render(policy="")))


def _policy(html: str) -> str:
    """The Content-Security-Policy of a page: its own scripts by their hashes, its styles and pictures, nothing from elsewhere."""
    scripts = [_hash_of(script) for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)]
    allowed = {
        "default-src": ["'none'"],
        "script-src": [*scripts, _hash_of(get_plotlyjs())],
        "style-src": ["'unsafe-inline'"],  # plotly writes styles as it draws
        "img-src": ["data:", "blob:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    return "; ".join(" ".join([what, *sources]) for what, sources in allowed.items())


def _hash_of(script: str) -> str:
    return f"'sha256-{base64_of(hashlib.sha256(script.encode()).digest())}'"


@cache
def _packed_plotly() -> str:
    """plotly.js, gzipped, as base64: two fifths of its size, which the browser unpacks."""
    return base64_of(gzip.compress(get_plotlyjs().encode(), mtime=0))
