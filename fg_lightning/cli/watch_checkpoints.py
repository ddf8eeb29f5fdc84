"""fg-lightning watch-checkpoints."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from jsonargparse.typing import PositiveInt

from fg_lightning.errors import CannotRun

if TYPE_CHECKING:  # the command's help must not wait for torch
    from lightning.pytorch import LightningDataModule
    from torch import nn


def watch_checkpoints(
    folder: Path,
    model: Union[Callable[[], nn.Module], str, None] = None,
    data: Union[Callable[[], LightningDataModule], str, None] = None,
    output: Path = Path("fg_checkpoints"),
    num_samples: PositiveInt = 8,
    probe: Union[Literal["balanced", "hardest"], list[int], None] = None,
    methods: Union[str, list[str]] = "fullgrad",
    reading: Literal["exact", "locally_affine"] = "exact",
    psi: Literal["absolute", "positive", "signed"] = "absolute",
    target: Union[int, None] = None,
    task: Union[str, None] = None,
    class_names: Union[str, list[str], None] = None,
    animation: bool = False,
    size: PositiveInt = 224,
    mean: Union[tuple[float, ...], float, None] = None,
    std: Union[tuple[float, ...], float, None] = None,
    transform: Union[str, None] = None,
    counted: Union[Literal["epochs", "steps"], None] = None,
    epoch_0: Union[Literal["untrained", "trained"], None] = None,
    prefix: Union[str, None] = None,
    wandb_run: Union[str, None] = None,
    device: str = "auto",
) -> None:
    """Draw the film strip of a finished training from its checkpoints.

    Writes a folder like that of a monitored run. If new checkpoints have appeared, the same command adds them.

    Args:
        folder: The checkpoints of one training: Lightning's, Hugging Face's, or a saved state_dict for each.
        model: The network: class path of your LightningModule or network, a function that builds it, or the name of a
            torchvision classifier. Arguments of a class: --model.NAME; default: the hyperparameters in the checkpoint.
        data: Class path of your LightningDataModule, whose validation images are explained; its arguments: --data.NAME. Or a folder
            of pictures, which have no labels.
        output: The folder that everything is written to.
        num_samples: Number of images.
        probe: Which images of a datamodule: balanced, as many of each class; hardest, those with the highest loss at the last
            checkpoint; or their indices in the validation data, such as [3,17]. Default: the images that the datamodule's method
            fullgrad_probe returns; balanced if it has none.
        methods: Names of methods, separated by commas. FullGrad is always added.
        reading: How FullGrad reads the network: exact, or locally_affine, which is more informative for transformers.
        psi: FullGrad's post-processing of each term.
        target: The class to explain. Default: the label; for pictures the class that the last network predicts.
        task: What the output means: classes, labels, logit, regions or number. Default: the network and the data decide.
        class_names: Names of the classes, separated by commas, or a file with a name on each line. Default: the data's.
        animation: Also write the film strip as an animation.
        size: For pictures: pixels of the shorter side after resizing. The middle square is then cut out.
        mean: For pictures: the mean subtracted from each channel, in 0..1; one number for grey images. Default: ImageNet's.
        std: For pictures: the standard deviation by which each channel is then divided. Default: ImageNet's.
        transform: For pictures: the import path of a function from a PIL image to a tensor [C, H, W]. It replaces size, mean and
            std.
        counted: What the number in a file's name counts: epochs or steps. Needed only if neither the file nor its name shows it.
        epoch_0: For checkpoints of your own training loop: whether the network of epoch 0 is untrained, or trained for one epoch.
        prefix: The text before the network's parameter names in the checkpoints, such as model. or ema_model. Default: detected.
        wandb_run: Also add everything to a finished Weights & Biases run, given as entity/project/id.
        device: cpu, cuda, or any other device of torch; auto for a GPU if there is one.

    Raises:
        CannotRun: if an option is invalid or missing, or no checkpoint can be explained.
    """
    # Imported here: the command's help must not wait for torch.
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from fg_lightning.explain.checkpoint_network import CheckpointNetwork
    from fg_lightning.explain.load_network import read_class_names
    from fg_lightning.explain.probe_images import probe_of_data
    from fg_lightning.explain.record_checkpoints import Notes, check_options, load_last, record_checkpoints
    from fg_lightning.recording.checkpoint_series import find_checkpoints

    if model is None:
        raise CannotRun("--model is missing: the class path of your LightningModule, such as --model my_package.my_module.Net")
    if data is None:
        raise CannotRun("--data is missing: the class path of your LightningDataModule, or a folder of pictures")
    try:
        place = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError if it was built without CUDA
        raise CannotRun(str(error)) from error
    console = Console(stderr=True)

    def show(note: str) -> None:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)

    network = CheckpointNetwork(model, prefix)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        series = find_checkpoints(folder, counted, epoch_0, lambda paths: bar.track(paths, description="reading", total=len(paths)))
        for note in series.notes:
            show(note)
        options: dict[str, Any] = {"methods": methods.split(",") if isinstance(methods, str) else methods, "task": task}
        options |= {"reading": reading, "psi": psi, "target": target, "animation": animation}
        if class_names is not None:
            options["class_names"] = read_class_names(class_names)
        notes = Notes(show)
        last = load_last(network, series.checkpoints)
        roots: list[Any] = []
        if isinstance(data, str):
            if probe is not None:
                raise CannotRun("--probe is for a datamodule; leave it out for a folder of pictures")
            images, more = _find_pictures(data, num_samples, size, mean, std, transform)
            options |= more
        else:
            if any(option is not None for option in (mean, std, transform)):
                raise CannotRun("--mean, --std and --transform are for a folder of pictures; a datamodule has its own transforms")
            images, roots = probe_of_data(data, last, num_samples, probe, check_options(options), notes)
        runs: list[Any] = []

        def open_runs() -> list[Any]:
            runs.extend([] if wandb_run is None else [_resume_wandb(wandb_run, options["methods"])])
            return runs

        try:
            recorded = record_checkpoints(
                series,
                network,
                images,
                output,
                roots,
                loggers=open_runs,
                added_to=wandb_run,
                device=place,
                track=lambda checkpoints: bar.track(checkpoints, description="explaining", total=len(checkpoints)),
                notes=notes,
                **options,
            )
        except KeyboardInterrupt:
            print("fg-lightning: stopped; run the same command again to continue", file=sys.stderr)
            sys.exit(130)
        finally:
            for run in runs:
                run.finish()
    for path, reason in recorded.skipped.items():
        show(f"{reason} (skipped)" if path.name in reason else f"{path.name} is skipped: {reason}")
    num_snapshots = len(recorded.history.snapshots)
    print(f"{'snapshots':12} {num_snapshots}, of which {recorded.num_new} are new")
    print(f"{'film strip':12} {output / 'film_strip.png'}")
    for run in runs:
        print(f"{'W&B run':12} {run.url}")
    print(f"{'report':12} fg-lightning report {shlex.quote(str(output))}", flush=True)


def _find_pictures(
    data: str,
    num_samples: int,
    size: int,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    transform: str | None,
) -> tuple[Any, dict[str, Any]]:
    """The probe, and the options that follow from it."""
    from fg_lightning.explain.load_network import import_object, per_channel, picture_transform, read_last_normalization
    from fg_lightning.explain.probe_images import probe_of_pictures
    from fg_lightning.training.image_datamodule import IMAGENET

    folder = Path(data).expanduser()
    if not folder.is_dir():
        reason = "there is no such folder"
        if re.fullmatch(r"[^\W\d]\w*([.:]\w+)+", data):
            import_object(data)  # raises CannotRun with the reason if it cannot be imported
            reason = "it is neither a LightningDataModule class nor a folder"
        raise CannotRun(f"--data {data}: {reason}; give the class path of a LightningDataModule, or a folder of pictures")
    if (mean is None) != (std is None):
        raise CannotRun("only one of --mean and --std was given; give both, a number for each channel, in 0..1")
    mean, std = per_channel(mean) or IMAGENET.mean, per_channel(std) or IMAGENET.std
    function = picture_transform(size, mean, std) if transform is None else import_object(transform)
    normalization = read_last_normalization(function)
    probe, _ = probe_of_pictures(folder, function, num_samples)
    return probe, {} if normalization is None else {"normalization": (normalization.mean, normalization.std)}


def _resume_wandb(name: str, methods: Sequence[str]) -> Any:
    """A finished run of Weights & Biases, to log to.

    Args:
        name: entity/project/id, or the run's address.
        methods: whose numbers are drawn over Lightning's step.

    Raises:
        CannotRun: if there is no such run, or it cannot be reached.
    """
    import wandb

    parts = re.sub(r"^https?://[^/]+/|/(?=runs/)runs", "", name.split("?")[0]).strip("/").split("/")
    if len(parts) != 3 or not all(parts):
        raise CannotRun(f"--wandb_run must be entity/project/id, as in the run's address, not {name!r}")
    offline = f"nothing can be added to {name} offline, because wandb must ask its server for the run"
    if os.environ.get("WANDB_MODE", "online") != "online":
        raise CannotRun(f"{offline}; unset WANDB_MODE")
    entity, project, identifier = parts
    try:
        run = wandb.init(entity=entity, project=project, id=identifier, resume="must")
    except wandb.Error as error:
        raise CannotRun(f"nothing can be added to {name}: {error}") from error
    if run.offline or run.disabled:
        run.finish()
        raise CannotRun(f"{offline}; run: wandb online")
    for method in dict.fromkeys(["fullgrad", *methods]):
        run.define_metric(f"{method}/*", step_metric="trainer/global_step")
    return run
