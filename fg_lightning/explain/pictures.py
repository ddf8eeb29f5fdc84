"""Finds and reads the pictures to explain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fg_lightning.errors import CannotRun
from fg_lightning.explain.load_network import Transform


def find_pictures(images: str | Sequence[str]) -> list[Path]:
    """The files of pictures, in order, each once.

    Args:
        images: files, folders (all files with the suffix of a picture, also in subfolders), or patterns such as "photos/*.jpg". In
            folders, names that begin with a dot are skipped.

    Raises:
        CannotRun: if one of them names no file.
    """
    paths: list[Path] = []
    if not isinstance(images, str) and Path(whole := f"[{','.join(images)}]").exists():
        images = whole  # one file name with brackets, which the command line reads as a list
    for name in [images] if isinstance(images, str) else images:
        path = Path(name).expanduser()
        if path.is_dir():
            files = _pictures_in(path)
            if not files:
                raise CannotRun(f"there is no picture in the folder {path} or its subfolders; give another folder")
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(file) for file in glob(str(path)) if Path(file).is_file())
            if not files:
                raise CannotRun(
                    f"{name!r} is neither a file, a folder nor a pattern with matches (searched from {Path.cwd()}); correct it"
                )
        paths.extend(files)
    return list(dict.fromkeys(paths))


def _pictures_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    try:
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += _pictures_in(entry)
            elif entry.suffix.lower() in Image.registered_extensions():
                found.append(entry)
    except OSError as error:
        raise CannotRun(f"the folder {folder} cannot be read: {error.strerror}") from error
    return found


def read_picture(path: Path, transform: Transform) -> Tensor:
    """A picture as [C, H, W], turned upright by its EXIF orientation.

    Raises:
        CannotRun: if the file is not a picture or is damaged, or the transform does not give finite numbers [C, H, W].
    """
    try:
        with Image.open(path) as file:
            picture = _eight_bits(ImageOps.exif_transpose(file)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises on damaged files
        raise CannotRun(f"{path} cannot be read as a picture ({error})") from error
    image = transform(picture)
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        got = f"a {image.dtype} tensor {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise CannotRun(f"the transform must return a floating-point tensor [C, H, W] for a picture, but it returned {got}")
    if not image.isfinite().all():
        raise CannotRun(
            f"the transform of {path} gives numbers that are not finite (NaN or infinity); check --std or the transform"
        )
    return image


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Converts a picture of 16 bits to 8 bits; Pillow's own conversion would clip it at 255. Other pictures stay.

    Raises:
        ValueError: if the number of white is unknown.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels are numbers from {values.min():g} to {values.max():g}; save it with 8 or 16 bits a channel")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def overlay_names(files: Sequence[Path]) -> dict[Path, str]:
    """The name of each file's overlay: the file's name with the suffix .png, and a number if names would be equal."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in files:
        numbered = (f"{path.stem}_{number}" for number in count(2))
        name = next(stem for stem in chain([path.stem], numbered) if stem not in taken)
        taken.add(name)
        names[path] = f"{name}.png"
    return names


def stack_batches(pictures: Iterator[tuple[Path, Tensor]], size: int) -> Iterator[tuple[list[Path], Tensor]]:
    """Stacks consecutive pictures of one shape to batches [N, C, H, W], with N at most `size`."""
    paths: list[Path] = []
    images: list[Tensor] = []
    for path, image in pictures:
        if images and (len(images) == size or image.shape != images[0].shape):
            yield paths, torch.stack(images)
            paths, images = [], []
        paths.append(path)
        images.append(image)
    if images:
        yield paths, torch.stack(images)
