"""The configurations that come with the package. `--config` takes their names, or files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PRESETS = (Path(__file__).parents[1] / "presets", Path(__file__).parents[2] / "callbacks")
"""The folders of the configurations: of the installed package, and of the repository."""


def preset_path(name: str) -> str:
    """The path of a configuration that comes with the package; the name itself if it is a file, or no preset.

    The name may begin with `callbacks/` and end with `.yaml`, as in the repository.
    """
    is_preset = not Path(name).is_file() and str(Path(name).parent) in (".", "callbacks")
    paths = [folder / f"{Path(name).name.removesuffix('.yaml')}.yaml" for folder in PRESETS] if is_preset else []
    return next((str(path) for path in paths if path.is_file()), name)


def find_presets(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the paths of presets instead of their names after `--config`."""
    found = list(words)
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == "--config" and equals:
            found[i] = f"--config={preset_path(value)}"
        elif i and words[i - 1] == "--config":
            found[i] = preset_path(word)
    return found
