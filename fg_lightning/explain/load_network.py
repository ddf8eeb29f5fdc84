"""Loads the network to explain and the transform of pictures, and predicts their classes."""

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
"""A function from an RGB picture to the network's input [C, H, W]."""


@dataclass(frozen=True)
class Network:
    """A network and the transform of its input.

    Attributes:
        model: the network, on the CPU.
        transform: function from a picture to the network's input [C, H, W].
        normalization: mean and standard deviation of its last step, which overlays undo. None if they are unknown.
        classes: names of the outputs. Empty if they are unknown.
        dataset_mean: the training images' mean of each channel, in 0..1. None if it is unknown.
    """

    model: nn.Module
    transform: Transform
    normalization: Normalization | None = None
    classes: Sequence[str] = ()
    dataset_mean: Sequence[float] | None = None

    def index_of(self, target: int | str) -> int:
        """The index of a class.

        Args:
            target: index or name of the class. Capitals do not count.

        Raises:
            CannotRun: if there is no class of that name.
        """
        if isinstance(target, int):
            return target
        names = [name.lower() for name in self.classes]
        if not names:
            raise CannotRun(
                f"the names of the network's classes are unknown, so {target!r} cannot be found; give an index, --target 3"
            )
        if target.lower() not in names:
            raise CannotRun(
                f"the network has no class {target!r}{_suggestion(target.lower(), names)}; give another name, or an index"
            )
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
    """The network that the arguments of `explain` describe.

    Without mean, std and transform, pictures are normalized with ImageNet's mean and std. If a transform is given as well, mean and
    std describe the normalization in it.

    Args:
        model: name of a classifier of torchvision, or import path, see `from_import_path`.
        weights: weights of a torchvision model, see `from_torchvision`.
        checkpoint: checkpoint of a LightningModule class, or None.
        size: shorter side after resizing in pixels, for the user's own model.
        mean: mean of each channel, in 0..1, or None.
        std: standard deviation of each channel, in 0..1, or None.
        transform: import path of a function from a picture to [C, H, W], or None.

    Raises:
        CannotRun: if the network cannot be loaded, or the options do not fit together.
    """
    mean, std = per_channel(mean), per_channel(std)
    if "." not in model and ":" not in model:
        if any(option is not None for option in (checkpoint, transform, mean, std)):
            raise CannotRun(
                f"{model} is a classifier of torchvision, with its own weights and transform; --checkpoint, --transform, --mean "
                "and --std are for your own class, --model my_package.my_module.Net"
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
    """A mean or standard deviation as a sequence over the channels. A single number is for grey images."""
    return (numbers,) if isinstance(numbers, (int, float)) else numbers


def advise_grey(reason: str) -> str:
    """An error of a network, with advice if the network needs grey pictures but got colours."""
    is_grey = re.search(r"input\[\d+, 3, .* to have 1 channels?", reason)
    return f"{reason}. For grey images give one number: --mean 0.5 --std 0.5" if is_grey else reason


def read_class_names(names: str | Sequence[str]) -> list[str]:
    """The names of a network's outputs, in order.

    Args:
        names: a list of names, names separated by commas, a text file with a name on each line, or a JSON file with a list.

    Raises:
        CannotRun: if there is no such file, or it does not hold names.
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
    except (OSError, ValueError) as error:  # ValueError: the file is not UTF-8, or not JSON
        raise CannotRun(f"the class names {path} cannot be read ({one_line(error)}); give a text or JSON file") from error
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise CannotRun(f"{path} must hold the names of the classes in order: a line for each, or a JSON list of strings")
    return found


def read_last_normalization(transform: Any) -> Normalization | None:
    """The mean and standard deviation of a transform's normalizing step. None if it has no such step, or several."""
    found = [read_normalization(step) for step in _steps(transform)]
    known = [normalization for normalization in found if normalization is not None]
    return known[0] if len(known) == 1 else None


def _steps(transform: Any) -> list[Any]:
    parts = getattr(transform, "transforms", None)
    return [step for part in parts for step in _steps(part)] if isinstance(parts, list | tuple) else [transform]


def from_torchvision(name: str, weights: str = "DEFAULT") -> Network:
    """A classifier of torchvision with its own transform and class names.

    Args:
        name: name in `torchvision.models.list_models()`.
        weights: "DEFAULT", another set of weights such as "IMAGENET1K_V1", or "none" for random weights. Default: "DEFAULT".

    Raises:
        CannotRun: if there is no such classifier or set of weights, or the weights cannot be downloaded.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise CannotRun(
            f"torchvision has no classifier {name!r}{_suggestion(name, names)}; "
            "give your own network by its import path, such as my_package.my_module.build"
        )
    sets = torchvision.models.get_model_weights(name)
    if weights != "none" and weights not in sets.__members__:
        raise CannotRun(f"{name} has the weights {', '.join(sets.__members__)}, or none for random ones, but not {weights!r}")
    chosen = sets["DEFAULT" if weights == "none" else weights]
    transform = chosen.transforms()
    try:
        model = torchvision.models.get_model(name, weights=None if weights == "none" else chosen)
    except (URLError, OSError, RuntimeError, EOFError, UnpicklingError) as error:  # the last three: the download is damaged
        raise CannotRun(
            f"the weights of {name} could not be downloaded ({_without_advice(error)}). Fetch {chosen.url} on another machine and "
            f"put it into {Path(torch.hub.get_dir()) / 'checkpoints'}, or use random weights (--weights none; fit: "
            "--model.weights none)"
        ) from error
    normalization = Normalization(transform.mean, transform.std)
    if weights == "none":
        return Network(model, transform, normalization)
    return Network(model, transform, normalization, tuple(chosen.meta["categories"]), tuple(transform.mean))


def from_import_path(path: str, checkpoint: Path | None, transform: Transform, normalization: Normalization | None) -> Network:
    """The user's own network.

    Args:
        path: import path of a module, of a function without arguments that returns one, or of a LightningModule class, such as
            my_package.my_module.Net. The current folder is searched, too.
        checkpoint: for a LightningModule class: the checkpoint to load.
        transform: function from a picture to the network's input [C, H, W].
        normalization: mean and standard deviation of its last step. None if they are unknown.

    Raises:
        CannotRun: if the path cannot be imported or does not give a network, or the checkpoint does not fit.
    """
    named = import_object(path)
    try:
        model = named if isinstance(named, nn.Module) else _load(named, path, checkpoint) if checkpoint else named()
    except CannotRun:
        raise
    except Exception as error:
        way = f"loaded from {checkpoint}" if checkpoint else "built without arguments"
        raise CannotRun(f"{path} could not be {way}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise CannotRun(f"{path} gives {type(model).__name__}, but a torch.nn.Module is needed")
    return Network(model, transform, normalization)


def picture_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Resizes the shorter side, cuts out the middle square, and normalizes. With one mean, pictures become grey."""
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
    """Whether a word has the form package.module.name and is not a number."""
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
        raise CannotRun(f"--checkpoint needs a LightningModule class as --model, but {path} is {getattr(kind, '__name__', kind)!r}")
    kept = read_checkpoint(checkpoint, is_mapped=True)
    if missing := [name for name in ("state_dict", "pytorch-lightning_version") if name not in kept]:
        raise CannotRun(f"{checkpoint} is not a checkpoint of Lightning's: it has no {' and no '.join(missing)}")
    model: nn.Module = kind.load_from_checkpoint(checkpoint, map_location="cpu")  # read without running its code above
    return model


def _without_advice(error: Exception) -> str:
    """An error of a download, without torch's advice to run the code in the file."""
    return "the downloaded file is damaged" if isinstance(error, UnpicklingError | EOFError) else one_line(error)


def _suggestion(name: str, names: Sequence[str]) -> str:
    """The names that the user may have meant, in parentheses, or nothing."""
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


@dataclass(frozen=True)
class Prediction:
    """The predictions for some images.

    Attributes:
        target: the explained classes, [N]. None if the network gives one number for each image, [N].
        captions: for each image, a line for the predicted class, and one for the explained class if it differs.
        rows: for each image, the same as columns of a table.
    """

    target: Tensor | None
    captions: list[str]
    rows: list[dict[str, object]]


def predict(network: Network, images: Tensor, target: int | None) -> Prediction:
    """Predicts the classes of images.

    Args:
        network: the network. It is not changed.
        images: [N, C, H, W].
        target: index of the class to explain. None: the predicted class.

    Raises:
        CannotRun: if the network fails on these images, or its output is not finite or not scores of classes.
    """
    try:
        with preserve_model(network.model, images.device), torch.no_grad():
            scores = main_output(network.model(as_model_input(images, network.model).clone()))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise CannotRun(
            f"the network fails on images of shape {list(images.shape)}: {advise_grey(str(error))}\n"
            "adapt the pictures to it with --size, --mean, --std or --transform (one mean: grey pictures)"
        ) from error
    if not scores.isfinite().all():
        raise CannotRun("the network's output is not finite (NaN or infinity), so it cannot be explained; check its weights")
    if scores.shape == images.shape[:1] or scores.shape == (len(images), 1):
        if network.classes:
            raise CannotRun("the network has a single output for each image, not classes; leave out --class_names")
        if target:
            raise CannotRun(f"there is no class {target}: the network has a single output for each image; leave out --target")
        rows: list[dict[str, object]] = [{"output": float(score)} for score in scores.flatten()]
        targets = None if scores.ndim == 1 else scores.new_zeros(len(images), dtype=torch.long)
        return Prediction(targets, [f"output {row['output']:.3g}" for row in rows], rows)
    if scores.ndim != 2 or len(scores) != len(images):
        raise CannotRun(f"the network must give a score for each class, [{len(images)}, K], but it gives {list(scores.shape)}")
    if network.classes and len(network.classes) != scores.shape[1]:
        raise CannotRun(
            f"there are {len(network.classes)} class names, but the network has {scores.shape[1]} outputs; give a name for each"
        )
    if target is not None and not 0 <= target < scores.shape[1]:
        raise CannotRun(f"there is no class {target}; the network has {scores.shape[1]} outputs, 0 to {scores.shape[1] - 1}")
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
