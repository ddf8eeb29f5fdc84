"""What is easily written wrong on the command line of fit, validate, test and predict."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import torchvision.models

from fg_lightning.demo import DigitsDataModule
from fg_lightning.errors import CannotRun
from fg_lightning.training.classifier import ImageClassifier
from fg_lightning.training.folder_data import ImageFolderDataModule
from fg_lightning.training.torchvision_data import SOURCES, TorchvisionDataModule

CLASSES: dict[str, tuple[type, ...]] = {
    "model": (ImageClassifier,),
    "data": (DigitsDataModule, TorchvisionDataModule, ImageFolderDataModule),
}
"""What this package has for --model and --data, the default first."""


def check_words(args: Sequence[str]) -> None:
    """Whether the model and the data are classes, and the options of this package's own are theirs.

    What a configuration file says is not known here, nor are a person's own classes.

    Raises:
        CannotRun: if not, with what was meant.
    """
    given = dict(_options(args))
    for part, known in CLASSES.items():
        name = given.get(f"--{part}")
        if name is not None and "." not in name and name not in [kind.__name__ for kind in known]:
            _refuse(part, name)
        kinds = [kind for kind in known if name is not None and name.rpartition(".")[2] == kind.__name__]
        if name is None and "--config" not in given and "-c" not in given:
            kinds = list(known[:1])
        for kind in kinds:
            _check_options(part, kind, given)


def options_of(kind: type) -> list[str]:
    """The arguments of a class, and those that it hands on to the classes that it inherits from."""
    found: dict[str, None] = {}
    for base in kind.__mro__:
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:] if "__init__" in vars(base) else []
        found |= dict.fromkeys(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(found)


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every option and its value, which is behind it or the next word."""
    for word, following in zip(args, [*args[1:], ""], strict=True):
        if word.startswith("-"):
            option, is_one_word, value = word.partition("=")
            yield option, value if is_one_word else following


def _refuse(part: str, name: str) -> None:
    """Says what a bare name should have been; other bare names are left to the parser, which knows a person's own classes."""
    if part == "model" and name in torchvision.models.list_models(module=torchvision.models):
        raise CannotRun(f"--model takes a class; for torchvision's {name} write --model.name {name}")
    if part == "data" and name in SOURCES:
        raise CannotRun(f"--data takes a class; for torchvision's {name} write --data TorchvisionDataModule --data.name {name}")
    if part == "data" and Path(name).is_dir():
        raise CannotRun(f"--data takes a class; for a folder of images write --data ImageFolderDataModule --data.root {name}")
    known = [kind.__name__ for kind in CLASSES[part]]
    if close := get_close_matches(name, known, n=1):
        raise CannotRun(f"there is no class {name!r} for --{part}; did you mean {close[0]}? Your own is given as my_package.{name}")


def _check_options(part: str, kind: type, given: dict[str, str]) -> None:
    known = options_of(kind)
    for option in given:
        name = option.removeprefix(f"--{part}.").removeprefix("init_args.").removesuffix("+").partition(".")[0]
        if option.startswith(f"--{part}.") and name not in [*known, "help", "class_path", "init_args", "dict_kwargs"]:
            others = [other.__name__ for other in CLASSES[part] if name in options_of(other)]
            close = get_close_matches(name, known, n=1)
            meant = f"did you mean --{part}.{close[0]}?" if close else f"there are {', '.join(known)}"
            raise CannotRun(
                f"{kind.__name__} has no option --{part}.{name}; "
                + (f"it is one of {' and '.join(others)}'s: --{part} {others[0]}" if others else meant)
            )
    if kind is ImageFolderDataModule and not {"--data.root", "--data.init_args.root", "--config", "-c"} & set(given):
        raise CannotRun("ImageFolderDataModule needs the folder that the images lie in: --data.root FOLDER")
