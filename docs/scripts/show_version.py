"""A hook of mkdocs: shows the version of the package in the header of every page, and a link to the source below it."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Reads the version from the package's file, without an import."""
    text = (Path(config.docs_dir).parent / "fg_lightning/__init__.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.*)"$', text, re.MULTILINE)[0]
    source = config.extra["social"][0]["link"]
    config.site_name = f"{config.site_name} {version}"
    config.copyright = f'fg-lightning {version}, Apache License 2.0. <a href="{source}">Source</a>'
    return config
