"""The configurations that come with the package, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fg_lightning

HOMES = (Path(fg_lightning.__file__).parent / "presets", Path(fg_lightning.__file__).parents[1] / "callbacks")
"""Where they lie: in what was installed, and in the repository."""


def with_presets(args: Sequence[str]) -> list[str]:
    """A command line on which every `--config` that names a preset has its path, unless there is such a file.

    The name may have `callbacks/` before it and `.yaml` behind it, as in the repository.
    """
    found = list(args)
    for place, word in enumerate(args):
        option, is_one_word, name = word.partition("=")
        if option in ("--config", "-c") and is_one_word:
            found[place] = f"{option}={_path(name)}"
        elif option in ("--config", "-c") and place + 1 < len(args):
            found[place + 1] = _path(args[place + 1])
    return found


def _path(name: str) -> str:
    is_preset = not Path(name).is_file() and str(Path(name).parent) in (".", "callbacks")
    paths = [home / f"{Path(name).name.removesuffix('.yaml')}.yaml" for home in HOMES] if is_preset else []
    return next((str(path) for path in paths if path.is_file()), name)
