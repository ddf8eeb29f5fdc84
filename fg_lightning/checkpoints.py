"""Reads Lightning checkpoints and saved weights without running code that is in them."""

from __future__ import annotations

import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fg_lightning.errors import CannotRun

ANOTHER = "name a checkpoint that a training run wrote, or copy the file again"

LONGEST = 300
"""The largest number of characters of another library's message that are shown."""


def read_checkpoint(path: Path, is_mapped: bool = False) -> Mapping[str, Any]:
    """Reads a file that `torch.save` wrote: a Lightning checkpoint or a `state_dict`. No code in it runs.

    An `argparse.Namespace` is allowed, because scripts keep their arguments in it and it holds only values.

    Args:
        path: the file.
        is_mapped: whether to map the tensors into memory instead of reading them, to inspect a file. Default: False.

    Raises:
        CannotRun: if there is no such file, it cannot be read, it is damaged, or it holds something else.
    """
    import torch

    if path.is_dir():
        raise CannotRun(f"{path} is a folder, but a checkpoint is a file; name the file in it")
    try:
        if not path.stat().st_size:
            raise CannotRun(f"{path} is empty; {ANOTHER}")
        is_zip = zipfile.is_zipfile(path)
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([Namespace]),
        ):
            warnings.simplefilter("ignore")  # torch warns of files that are refused anyway, such as TorchScript
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped and is_zip)
    except FileNotFoundError as error:
        raise CannotRun(f"there is no checkpoint {path.absolute()}; {ANOTHER}") from error
    except OSError as error:
        raise CannotRun(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    except CannotRun:
        raise
    except Exception as error:  # torch raises errors of many types for files of other kinds
        raise CannotRun(_refusal(path, str(error))) from None
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise CannotRun(f"{path} holds {type(content).__name__}, but a Lightning checkpoint or a state_dict is needed")
    return content


def one_line(error: BaseException | str) -> str:
    """Another library's message in one line, at most 300 characters of it."""
    words = " ".join(str(error).split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."


def _refusal(path: Path, reason: str) -> str:
    """The message for a file that is refused. torch's own message is left out: it advises to load the file and run its code."""
    if name := re.search(r"GLOBAL ([\w.]+)", reason):
        return (
            f"{path} holds a {name[1]}, which cannot be loaded without running code; save only weights, numbers and strings "
            "(in a LightningModule: save_hyperparameters(ignore=[...]))"
        )
    if zipfile.is_zipfile(path) or _is_pickle(path):
        return f"{path} is damaged, or holds something other than weights, numbers and strings; {ANOTHER}"
    return f"{path} is not a checkpoint, or is incomplete; {ANOTHER}"


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"
