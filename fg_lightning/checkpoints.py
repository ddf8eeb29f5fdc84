"""Checkpoints of Lightning's and saved weights, read without running code that is in them."""

from __future__ import annotations

import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fg_lightning.errors import CannotRun

ANOTHER = "name a file that a training left, or copy it again"

LONGEST = 300
"""So many letters of another library's message are shown."""


def read_checkpoint(path: Path, is_mapped: bool = False) -> Mapping[str, Any]:
    """What `torch.save` wrote: a checkpoint of Lightning's, or a `state_dict`; no code in it runs.

    An `argparse.Namespace` is read, too: scripts keep their arguments in it, and it holds values alone.

    Args:
        path: the file.
        is_mapped: map the tensors instead of reading them, for a look at what is in the file.

    Raises:
        CannotRun: if there is no such file, or it holds something else, damaged or not.
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
            warnings.simplefilter("ignore")  # warnings of what is refused anyway, such as TorchScript
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped and is_zip)
    except FileNotFoundError as error:
        raise CannotRun(f"there is no checkpoint {path.absolute()}; {ANOTHER}") from error
    except OSError as error:
        raise CannotRun(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    except CannotRun:
        raise
    except Exception as error:  # whatever a file of another kind leads torch to
        raise CannotRun(_refusal(path, str(error))) from None
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise CannotRun(f"{path} holds {type(content).__name__}, but a checkpoint of Lightning's or a state_dict is needed")
    return content


def one_line(error: BaseException | str) -> str:
    """Another library's message in one line, cut if it is long."""
    words = " ".join(str(error).split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."


def _refusal(path: Path, reason: str) -> str:
    """Why a file is not read. torch's own words are left out: they advise to read it with its code."""
    if name := re.search(r"GLOBAL ([\w.]+)", reason):
        return (
            f"{path} holds a {name[1]}, which cannot be loaded without running code; save weights, numbers and words alone "
            "(in a LightningModule: save_hyperparameters(ignore=[...]))"
        )
    if zipfile.is_zipfile(path) or _is_pickle(path):
        return f"{path} is damaged, or holds something else than weights, numbers and words; {ANOTHER}"
    return f"{path} is no checkpoint, or only a part of one; {ANOTHER}"


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"
