"""The options of fit, validate, test and predict: presets for `--config`, classes and their arguments, the checkpoint."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torchvision.models
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from packaging.version import InvalidVersion, Version

from fg_lightning.checkpoints import read_checkpoint
from fg_lightning.cli.presets import preset_path
from fg_lightning.demo import DigitsDataModule
from fg_lightning.errors import CannotRun
from fg_lightning.training.classifier import ImageClassifier
from fg_lightning.training.image_folder import ImageFolderDataModule
from fg_lightning.training.torchvision_datasets import SOURCES, TorchvisionDataModule


class PresetOrFile(ActionConfigFile):
    """The option `--config`, which takes the name of a preset as well."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        super().__call__(parser, cfg, preset_path(values), option_string)


CLASSES: dict[str, tuple[type, ...]] = {
    "model": (ImageClassifier,),
    "data": (DigitsDataModule, TorchvisionDataModule, ImageFolderDataModule),
}
"""This package's classes for --model and --data, the default first."""


def check_options(args: Sequence[str]) -> None:
    """Checks that the model and the data are classes, and that the options of this package's own classes exist.

    jsonargparse checks the same, but it reports a misspelt option as a type that does not match, in twenty lines without a
    suggestion. Configuration files and the user's own classes are left to it.

    Raises:
        CannotRun: if they are not or do not. The message suggests what the user probably meant.
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
            _check_names(part, kind, given)


def option_names(kind: type) -> list[str]:
    """The arguments of a class, and those that it passes on to the classes that it inherits from."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:] if "__init__" in vars(base) else []
        names |= dict.fromkeys(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every option and its value: after `=`, or the next word."""
    for word, following in zip(args, [*args[1:], ""], strict=False):
        if word.startswith("-"):
            option, is_one_word, value = word.partition("=")
            yield option, value if is_one_word else following


def _refuse(part: str, name: str) -> None:
    """Raises CannotRun for a name without its package, with a suggestion. The parser checks the user's own classes."""
    if part == "model" and name in torchvision.models.list_models(module=torchvision.models):
        raise CannotRun(f"--model must be a class; for torchvision's {name} write --model.name {name}")
    if part == "data" and name in SOURCES:
        raise CannotRun(f"--data must be a class; for torchvision's {name} write --data TorchvisionDataModule --data.name {name}")
    if part == "data" and Path(name).is_dir():
        raise CannotRun(f"--data must be a class; for a folder of images write --data ImageFolderDataModule --data.root {name}")
    known = [kind.__name__ for kind in CLASSES[part]]
    if close := get_close_matches(name, known, n=1):
        raise CannotRun(f"--{part} has no class {name!r}; did you mean {close[0]}? Write your own class as my_package.{name}")


def _check_names(part: str, kind: type, given: dict[str, str]) -> None:
    known = option_names(kind)
    for option in given:
        name = option.removeprefix(f"--{part}.").removeprefix("init_args.").removesuffix("+").partition(".")[0]
        if option.startswith(f"--{part}.") and name not in [*known, "help", "class_path", "init_args", "dict_kwargs"]:
            others = [other.__name__ for other in CLASSES[part] if name in option_names(other)]
            close = get_close_matches(name, known, n=1)
            meant = f"did you mean --{part}.{close[0]}?" if close else f"its options are {', '.join(known)}"
            raise CannotRun(
                f"{kind.__name__} has no option --{part}.{name}; "
                + (f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'} it: --{part} {others[0]}" if others else meant)
            )
    if kind is ImageFolderDataModule and not {"--data.root", "--data.init_args.root", "--config", "-c"} & set(given):
        raise CannotRun("ImageFolderDataModule needs the folder of the images: --data.root FOLDER")


SHARDED = (".metadata", "meta.pt", "checkpoint", "latest")
"""Files in a checkpoint that is a folder: FSDP's, model parallelism's and DeepSpeed's."""


def check_checkpoint(path: str, command: str) -> None:
    """Checks the checkpoint that a command begins with, without running code in it.

    Args:
        path: as in `--ckpt_path`. Addresses, Lightning's registry, folders of shards, and `last` and `hpc` of fit are not checked.
        command: fit, validate, test or predict.

    Raises:
        CannotRun: if it is missing or not Lightning's, or fit cannot continue with it.
    """
    if "://" in path or path.startswith("registry") or (command == "fit" and path in ("last", "hpc")):
        return
    if Path(path).is_dir() and any((Path(path) / name).exists() for name in SHARDED):
        return
    if not Path(path).exists():
        where = "the folder checkpoints/ of its run has best.ckpt and last.ckpt"
        raise CannotRun(f"there is no checkpoint {Path(path).absolute()}; give a file that a training wrote: {where}")
    content = read_checkpoint(Path(path), is_mapped=True)
    needed = ["state_dict", "pytorch-lightning_version", *(["optimizer_states", "loops"] if command == "fit" else [])]
    missing = [name for name in needed if name not in content]
    if missing:
        advice = "; to start a training from weights alone, load them in your model" if command == "fit" else ""
        raise CannotRun(f"{path} is not a checkpoint of Lightning's for {command}: it has no {', '.join(missing)}{advice}")
    if not isinstance(content["state_dict"], Mapping) or not isinstance(content.get("hyper_parameters") or {}, Mapping):
        raise CannotRun(f"{path} is not a checkpoint of Lightning's: its state_dict or hyper_parameters is not a dictionary")
    check_version(path, content["pytorch-lightning_version"])


def check_version(path: Path | str, version: Any) -> None:
    """Raises CannotRun if Lightning's version in a checkpoint is not a version number."""
    try:
        Version(version)
    except (InvalidVersion, TypeError) as error:
        raise CannotRun(f"{path} is not a checkpoint of Lightning's: its pytorch-lightning_version is {version!r}") from error


def model_of(path: Path, usual: str) -> dict[str, Any] | None:
    """The class and the arguments of the model in a checkpoint; None if it keeps no arguments.

    Args:
        path: of the checkpoint.
        usual: the class path if the checkpoint names none, as after a training that a script started. Then only the arguments of
            that class are read.

    Raises:
        CannotRun: if the file cannot be read.
    """
    kept = dict(read_checkpoint(path, is_mapped=True).get("hyper_parameters") or {})
    kept.pop("_instantiator", None)
    if "_class_path" in kept:
        return {"class_path": kept.pop("_class_path"), "dict_kwargs": kept}
    known = option_names(pkgutil.resolve_name(usual))
    arguments = {name: value for name, value in kept.items() if name in known}
    return {"class_path": usual, "init_args": arguments} if arguments else None


def changed_by_checkpoint(asked: Namespace, kept: Namespace) -> dict[str, tuple[Any, Any]]:
    """The model's options with another value in the checkpoint than the user gave: name -> (the user's, the checkpoint's).

    Args:
        asked: the class path and arguments of the model, as they were given.
        kept: those that are used.
    """
    usual = inspect.signature(pkgutil.resolve_name(asked.class_path)).parameters
    given = {name: value for name, value in asked.get("init_args", {}).items() if name in usual and value != usual[name].default}
    counts = {**kept.get("init_args", {}), **(kept.get("dict_kwargs") or {})}
    return {name: (value, counts[name]) for name, value in given.items() if name in counts and counts[name] != value}
