"""The network to explain, how pictures become its input, and what it predicts for them."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
import torchvision.models
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from fg_lightning.checkpoints import one_line, read_checkpoint
from fg_lightning.errors import CannotRun
from fg_lightning.fullgrad.preserve_model import as_model_input, preserve_model
from fg_lightning.fullgrad.target import main_output
from fg_lightning.recording.dataset_metadata import read_normalization
from fg_lightning.visualization import Normalization

Transform = Callable[[Image.Image], Tensor]
"""From an RGB picture to [C, H, W] as a network takes it."""


@dataclass(frozen=True)
class Network:
    """
    Attributes:
        model: on the CPU.
        transform: makes a picture into the model's input.
        normalization: its last step, which pictures undo; None if it is unknown.
        classes: names of the outputs; empty if they are unknown.
        dataset_mean: the training images' mean of each channel, in 0..1; None if it is unknown.
    """

    model: nn.Module
    transform: Transform
    normalization: Normalization | None = None
    classes: Sequence[str] = ()
    dataset_mean: Sequence[float] | None = None

    def index_of(self, target: int | str) -> int:
        """The index of a class, given by its index or its name.

        Raises:
            CannotRun: if there is no class of that name.
        """
        if isinstance(target, int):
            return target
        names = [name.lower() for name in self.classes]
        if not names:
            raise CannotRun(f"the network has no class names to find {target!r} in; give the index of an output, --target 3")
        if target.lower() not in names:
            raise CannotRun(f"the network has no class {target!r}{_suggestion(target.lower(), names)}; an index does as well")
        return names.index(target.lower())

    def class_name(self, index: int) -> str:
        """The name of an output: its class, or its index if the class is unknown."""
        return self.classes[index] if index < len(self.classes) else f"class {index}"


def find_network(
    model: str,
    weights: str,
    checkpoint: Path | None,
    size: int,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    transform: str | None,
) -> Network:
    """The network that the arguments of `explain` name.

    Without mean and std, a picture is normalized by ImageNet's, unless there is a transform. With both, mean and std say how the
    transform normalizes.

    Raises:
        CannotRun: if there is none.
    """
    mean, std = per_channel(mean), per_channel(std)
    if "." not in model and ":" not in model:
        if any(option is not None for option in (checkpoint, transform, mean, std)):
            raise CannotRun(
                f"{model} is a classifier of torchvision, with weights and a transform of its own; --checkpoint, --transform, "
                "--mean and --std take the import path of your own class, --model my_package.my_module.Net"
            )
        return from_torchvision(model, weights)
    if (mean is None) != (std is None):
        raise CannotRun("only one of --mean and --std was given; give both, a number for each channel, in 0..1")
    try:
        given = None if mean is None or std is None else Normalization(mean, std)
    except ValueError as error:
        raise CannotRun(f"--mean and --std: {error}") from error
    if transform is not None:
        function = import_object(transform)
        return from_import_path(model, checkpoint, function, given or read_last_normalization(function))
    usual = given or Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return from_import_path(model, checkpoint, picture_transform(size, usual.mean, usual.std), usual)


def per_channel(numbers: float | Sequence[float] | None) -> Sequence[float] | None:
    """A mean or standard deviation of each channel; a bare number is that of a grey image."""
    return (numbers,) if isinstance(numbers, (int, float)) else numbers


def advise_grey(reason: str) -> str:
    """An error of a network, with what to do if it takes grey pictures and got colours."""
    is_grey = re.search(r"input\[\d+, 3, .* to have 1 channels?", reason)
    return f"{reason}. For grey images give one number: --mean 0.5 --std 0.5" if is_grey else reason


def read_class_names(names: str | Sequence[str]) -> list[str]:
    """The names of a network's outputs, in order.

    Args:
        names: a list of them, words with commas between them, a text file with a name on each line, or a JSON file with a list.

    Raises:
        CannotRun: if there is no such file, or it holds something else.
    """
    if not isinstance(names, str):
        return list(names)
    path = Path(names).expanduser()
    if not path.is_file():
        if "," in names:
            return [name.strip() for name in names.split(",")]
        raise CannotRun(f"there is no file {names} of class names; give one with a name on each line, or the names: [cat,dog]")
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.rstrip().splitlines()]
    except (OSError, ValueError) as error:  # the last of a file that is not UTF-8, or no JSON
        raise CannotRun(f"the class names {path} cannot be read ({one_line(error)})") from error
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise CannotRun(f"{path} must hold the names of the classes in order, a line for each, or in JSON a list of words")
    return found


def read_last_normalization(transform: Any) -> Normalization | None:
    """How a transform normalizes: the numbers of its only step that does. None if it has no such step, or several."""
    found = [read_normalization(step) for step in _steps(transform)]
    known = [normalization for normalization in found if normalization is not None]
    return known[0] if len(known) == 1 else None


def _steps(transform: Any) -> list[Any]:
    parts = getattr(transform, "transforms", None)
    return [step for part in parts for step in _steps(part)] if isinstance(parts, list | tuple) else [transform]


def from_torchvision(name: str, weights: str = "DEFAULT") -> Network:
    """A classifier of torchvision with its own transform and class names.

    Args:
        name: as in `torchvision.models.list_models()`.
        weights: "DEFAULT", another of its sets of weights such as "IMAGENET1K_V1", or "none" for random ones.

    Raises:
        CannotRun: if there is no such classifier or set of weights, or the weights cannot be downloaded.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise CannotRun(
            f"torchvision has no classifier {name!r}{_suggestion(name, names)}; "
            "a network of your own is given by its import path, such as my_package.my_module.build"
        )
    sets = torchvision.models.get_model_weights(name)
    if weights != "none" and weights not in sets.__members__:
        raise CannotRun(f"{name} has the weights {', '.join(sets.__members__)}, or none for random ones, but not {weights!r}")
    chosen = sets["DEFAULT" if weights == "none" else weights]
    transform = chosen.transforms()
    try:
        model = torchvision.models.get_model(name, weights=None if weights == "none" else chosen)
    except (URLError, OSError, RuntimeError, EOFError, UnpicklingError) as error:  # the last three of a download that is damaged
        raise CannotRun(
            f"the weights of {name} could not be downloaded ({_without_advice(error)}). Fetch {chosen.url} on another machine and "
            f"put it into {Path(torch.hub.get_dir()) / 'checkpoints'}, or take random weights (--weights none; fit: "
            "--model.weights none)"
        ) from error
    normalization = Normalization(transform.mean, transform.std)
    if weights == "none":
        return Network(model, transform, normalization)
    return Network(model, transform, normalization, tuple(chosen.meta["categories"]), tuple(transform.mean))


def from_import_path(path: str, checkpoint: Path | None, transform: Transform, normalization: Normalization | None) -> Network:
    """A network of the user's own.

    Args:
        path: a module, a function without arguments that returns one, or a LightningModule class, such as my_package.my_module.Net;
            looked for in the current folder, too.
        checkpoint: for a LightningModule class: the checkpoint that it is loaded from.
        transform: makes a picture into the network's input.
        normalization: its last step; None if it is unknown.

    Raises:
        CannotRun: if there is nothing there, it is no network, or the checkpoint is not its own.
    """
    named = import_object(path)
    try:
        model = named if isinstance(named, nn.Module) else _load(named, path, checkpoint) if checkpoint else named()
    except CannotRun:
        raise
    except Exception as error:
        way = f"loaded from {checkpoint}" if checkpoint else "made without arguments"
        raise CannotRun(f"{path} could not be {way}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise CannotRun(f"{path} gives {type(model).__name__}, but a torch.nn.Module is needed")
    return Network(model, transform, normalization)


def picture_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Resizes the shorter side, cuts out the middle square, and normalizes. One mean makes grey pictures."""
    colours: list[Any] = [v2.Grayscale()] if len(mean) == 1 else []
    steps = [
        v2.PILToTensor(),
        v2.Resize(size, antialias=True),
        v2.CenterCrop(size),
        *colours,
        v2.ToDtype(torch.float32, scale=True),
    ]
    return v2.Compose([*steps, v2.Normalize(list(mean), list(std))])


def is_import_path(text: str) -> bool:
    """Whether a word is of the form package.module.name, and no number."""
    return re.fullmatch(r"[^\W\d]\w*([.:]\w+)+", text) is not None


def import_object(path: str) -> Any:
    """The object at an import path such as package.module.name.

    Raises:
        CannotRun: if there is none.
    """
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise CannotRun(
            f"{path!r} cannot be imported ({error}); expected package.module.name, as in an import statement"
        ) from error


def _load(kind: Any, path: str, checkpoint: Path) -> nn.Module:
    if not (isinstance(kind, type) and issubclass(kind, LightningModule)):
        raise CannotRun(f"--checkpoint takes a LightningModule class, but {path} is {getattr(kind, '__name__', kind)!r}")
    kept = read_checkpoint(checkpoint, is_mapped=True)
    if missing := [name for name in ("state_dict", "pytorch-lightning_version") if name not in kept]:
        raise CannotRun(f"{checkpoint} is not a checkpoint of Lightning's: it has no {' and no '.join(missing)}")
    model: nn.Module = kind.load_from_checkpoint(checkpoint, map_location="cpu")  # which was read without its code above
    return model


def _without_advice(error: Exception) -> str:
    """torch's words for a file that it refuses advise to read it with its code."""
    return "the file that is there is damaged" if isinstance(error, UnpicklingError | EOFError) else one_line(error)


def _suggestion(name: str, names: Sequence[str]) -> str:
    """The names that the user may have meant."""
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


@dataclass(frozen=True)
class Prediction:
    """
    Attributes:
        target: the explained classes, [N]; None if the network has one output for each image.
        captions: for each image a line for the predicted class, and one for the explained class if it is another.
        rows: for each image the same by column of a table.
    """

    target: Tensor | None
    captions: list[str]
    rows: list[dict[str, object]]


def predict(network: Network, images: Tensor, target: int | None) -> Prediction:
    """
    Args:
        network: the network, which comes back as it was.
        images: [N, C, H, W].
        target: the class to explain; None for the predicted one.

    Raises:
        CannotRun: if the network does not take these images, or its output is not finite, or no scores of classes.
    """
    try:
        with preserve_model(network.model, images.device), torch.no_grad():
            scores = main_output(network.model(as_model_input(images, network.model).clone()))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise CannotRun(
            f"the network fails on images of shape {list(images.shape)}: {advise_grey(str(error))}\n"
            "--size, --mean, --std or --transform say how pictures become what it takes (one mean: grey pictures)"
        ) from error
    if not scores.isfinite().all():
        raise CannotRun(
            "the network's output is not finite (NaN or infinity), so that there is nothing to explain; check its weights"
        )
    if scores.shape == images.shape[:1] or scores.shape == (len(images), 1):
        if network.classes:
            raise CannotRun("the network has a single output for each image, which is no class; leave out --class_names")
        if target:
            raise CannotRun(f"there is no class {target}: the network has a single output for each image; leave out --target")
        rows: list[dict[str, object]] = [{"output": float(score)} for score in scores.flatten()]
        targets = None if scores.ndim == 1 else scores.new_zeros(len(images), dtype=torch.long)
        return Prediction(targets, [f"output {row['output']:.3g}" for row in rows], rows)
    if scores.ndim != 2 or len(scores) != len(images):
        raise CannotRun(f"the network must give a score for each class, [{len(images)}, K], but gives {list(scores.shape)}")
    if network.classes and len(network.classes) != scores.shape[1]:
        raise CannotRun(f"there are {len(network.classes)} class names, but the network has {scores.shape[1]} outputs")
    if target is not None and not 0 <= target < scores.shape[1]:
        raise CannotRun(f"there is no class {target}: the network has {scores.shape[1]} outputs, 0 to {scores.shape[1] - 1}")
    probabilities = scores.softmax(1)
    predicted = scores.argmax(1)
    targets = predicted if target is None else torch.full_like(predicted, target)
    captions, rows = [], []
    for own, first, explained in zip(probabilities, predicted.tolist(), targets.tolist(), strict=True):
        kinds = {"": first} if first == explained else {"": first, "explained: ": explained}
        captions.append("\n".join(f"{kind}{network.class_name(index)} {float(own[index]):.0%}" for kind, index in kinds.items()))
        row: dict[str, object] = {}
        for kind, index in (("predicted", first), ("explained", explained)):
            row |= {kind: index, f"{kind}_class": network.class_name(index), f"{kind}_probability": f"{float(own[index]):.4f}"}
        rows.append(row)
    return Prediction(targets, captions, rows)
