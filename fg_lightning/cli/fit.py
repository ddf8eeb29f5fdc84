"""The configurations that come with the package, by their names.

fg-lightning fit, validate, test and predict: Lightning's CLI over this package's classifier and data, or a person's own.

fg-lightning fit, validate, test and predict, whose options are those of Lightning's CLI.
"""

from __future__ import annotations

import io
import pkgutil
import shlex
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

import fg_lightning
from fg_lightning.callbacks import FullGradMonitor
from fg_lightning.checkpoints import in_one_line
from fg_lightning.cli.fit_options import check_checkpoint, check_words, model_of, overruled
from fg_lightning.errors import CannotRun
from fg_lightning.training.classifier import ImageClassifier
from fg_lightning.training.image_datamodule import ImageDataModule

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


MODEL = "fg_lightning.training.ImageClassifier"
DATA = "fg_lightning.demo.DigitsDataModule"

BEST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"monitor": "val/accuracy", "mode": "max", "filename": "best", "save_last": True},
}
"""Of a classifier's weights the best and the last are kept, unless the configuration says which."""

PREDICTIONS = {"class_path": "fg_lightning.training.predictions_table.PredictionsTable"}

MORE = (
    "The network's options: {0} --model.help ImageClassifier. The data's: {0} --data.help TorchvisionDataModule, or "
    "ImageFolderDataModule; by default 5,000 MNIST digits. Your own: --model my_package.Net --data my_package.Data. The options of "
    "either are --model.NAME and --data.NAME. The monitor: --config fullgrad_monitor, or "
    "--trainer.callbacks+ fg_lightning.FullGradMonitor."
)

DESCRIPTIONS = {
    "fit": "Train an image classifier, any of torchvision's or your own: --model.name resnet18 --data ... --trainer.max_epochs 20.",
    "validate": "Measure a trained classifier on the validation images: --ckpt_path best.ckpt and the same --data.",
    "test": "Measure a trained classifier on the test images: --ckpt_path best.ckpt and the same --data.",
    "predict": "Write what a trained classifier says of the test images to predictions.csv: --ckpt_path best.ckpt --data ...",
}


class TrainingCLI(LightningCLI):
    """Lightning's CLI with defaults that work: resnet18 on 5,000 MNIST digits, ten epochs from seed 0."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Reads the options, which those in a checkpoint overrule afterwards.

        Raises:
            CannotRun: if there is no checkpoint where one is named, or none is named of a network that is to be measured.
        """
        super().parse_arguments(parser, args)
        command = self.config.subcommand
        given = self.config[command]
        self.asked = given.model.clone()
        if given.ckpt_path is not None:
            check_checkpoint(str(given.ckpt_path), command)
        elif command != "fit" and _class(given.model) is ImageClassifier and given.model.init_args.weights in (None, "none"):
            raise CannotRun(f"{command} needs a trained network: name its weights, --ckpt_path best.ckpt")

    def _parse_ckpt_path(self) -> None:
        """Has the checkpoint's hyper_parameters overrule the model's options, as Lightning's own does.

        Lightning's takes those alone that its command line wrote, and gives up on those of a training that a script began.

        Raises:
            CannotRun: if they are not of the model.
        """
        command = self.config.subcommand
        given = self.config[command]
        if not given.ckpt_path or not Path(given.ckpt_path).is_file():
            return
        kept = model_of(Path(given.ckpt_path), given.model.class_path)
        if kept is None:
            return
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                self.config = self.parser.parse_object({command: {"model": kept}}, self.config)
        except SystemExit:
            raise CannotRun(
                f"the hyper_parameters of {given.ckpt_path} do not fit the model {kept['class_path']}; name the same --model as "
                f"for the training that left it: {in_one_line(said.getvalue().rpartition('error: ')[2])}"
            ) from None

    def before_instantiate_classes(self) -> None:
        for name, (asked, kept) in overruled(self.asked, self.config[self.subcommand].model).items():
            rank_zero_info(f"The checkpoint's {name}, {kept}, overrules --model.{name} {asked}")
        trainer = self.config[self.subcommand].trainer
        given = trainer.callbacks or []
        callbacks = given if isinstance(given, list) else [given]
        has_one = any(callback.class_path.endswith("ModelCheckpoint") for callback in callbacks)
        may_keep = trainer.enable_checkpointing is not False and not trainer.barebones
        if self.subcommand == "fit" and self._is_classifier() and may_keep and not has_one:
            callbacks = [*callbacks, BEST]
        if self.subcommand == "predict":
            callbacks = [*callbacks, PREDICTIONS]
        trainer.callbacks = callbacks or None

    def after_fit(self) -> None:
        """Says where the weights are, and what else can be done with them."""
        kept = self.trainer.checkpoint_callback
        path = getattr(kept, "best_model_path", "") or getattr(kept, "last_model_path", "")  # without validation none is the best
        if path and self.trainer.is_global_zero:
            print(f"\ncheckpoint  {path}")
            if self._is_classifier():
                print(next_steps(Path(path), self.datamodule))
        callbacks = self.trainer.callbacks if self.trainer.is_global_zero else []  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, FullGradMonitor) and callback.history and callback.history.folder:
                print(f"  fg-lightning report {shlex.quote(str(callback.history.folder.resolve()))}")

    def _is_classifier(self) -> bool:
        return issubclass(_class(self.config[self.subcommand].model), ImageClassifier)


def _class(model: Any) -> type:
    found: type = pkgutil.resolve_name(model.class_path)
    return found


def train(args: Sequence[str]) -> None:
    """Runs fit, validate, test or predict.

    Args:
        args: what stands behind the program's name, the command first.

    Raises:
        CannotRun: if what is named is not there, or stands in the wrong place.
        CannotRun: if the network is none of torchvision's, or its weights cannot be downloaded.
        CannotRun: if model and data do not make sense, alone or together, or the data cannot be downloaded.
    """
    # Lightning's own use of torch; and its advice on workers, which data in memory do not need.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # the process's own, with presets for their names
    check_words(args)
    # The defaults stand before what is given: as the parser's own they would hand their arguments on to a person's own classes.
    command, *given = with_presets(args)
    run_trainer(TrainingCLI, [command, "--model", MODEL, "--data", DATA, *given])


def options() -> LightningArgumentParser:
    """The parser of fit, validate, test and predict, with a parser for each; nothing is parsed."""

    class Parser(Exception):
        pass

    class Unparsed(TrainingCLI):
        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            raise Parser(parser)

    try:
        run_trainer(Unparsed, [])
    except Parser as built:
        parser: LightningArgumentParser = built.args[0]
    return parser


def run_trainer(cli: type[TrainingCLI], args: list[str]) -> None:
    commands = {
        name: {"description": f"{text} {MORE.format(f'fg-lightning {name}')}", "usage": f"fg-lightning {name} [options]"}
        for name, text in DESCRIPTIONS.items()
    }
    cli(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,  # they would be made before the model fits the data
        seed_everything_default=0,
        trainer_defaults={"max_epochs": 10},
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "fg-lightning", **commands},
        args=args,
    )


def next_steps(checkpoint: Path, data: LightningDataModule) -> str:
    """The commands that test a classifier's checkpoint and explain pictures with it."""
    path = shlex.quote(str(checkpoint))
    lines = [f"  fg-lightning test --ckpt_path {path} ... (the same --data)"]
    if isinstance(data, ImageDataModule):
        mean, std = (",".join(map(str, numbers)) for numbers in (data.normalization.mean, data.normalization.std))
        lines.append(
            f"  fg-lightning explain PICTURES --model {MODEL} --checkpoint {path} "
            f"--size {data.size} --mean '[{mean}]' --std '[{std}]'"
        )
    return "\n".join(lines)


def fit(*args: str) -> None:
    """Train an image classifier, any of torchvision's or your own, on your images."""
    _run("fit", args)


def validate(*args: str) -> None:
    """Measure a trained classifier on the validation images."""
    _run("validate", args)


def test(*args: str) -> None:
    """Measure a trained classifier on the test images."""
    _run("test", args)


def predict(*args: str) -> None:
    """Write what a trained classifier says of the test images to a table."""
    _run("predict", args)


def _run(command: str, args: tuple[str, ...]) -> None:
    pass

    try:
        train([command, *args])
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise reason from None


def _reason(error: BaseException) -> CannotRun | None:
    """What a person has to change, which jsonargparse may have wrapped in errors of its own; None if it is something else."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    found: BaseException | None = error
    while found is not None:
        if isinstance(found, CannotRun):
            return CannotRun(str(found).rpartition("CannotRun: ")[2].strip())  # a loader's process sends its whole traceback
        found = found.__cause__ or found.__context__
    if isinstance(error, MisconfigurationException):
        advice = " To take what there is: --trainer.accelerator auto" if "gpu backend" in str(error) else ""
        return CannotRun(f"{in_one_line(error)}{advice}")
    if _is_of_a_checkpoint(error):
        return CannotRun(
            f"the checkpoint does not fit this model or this training: {in_one_line(error)}; name the same --model and --data as "
            "for the training that left it"
        )
    return None


def _is_of_a_checkpoint(error: BaseException) -> bool:
    """Whether Lightning or torch raised it as a checkpoint was restored, and not the user's own code."""
    files = [frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)]
    is_restoring = any(file.endswith("connectors/checkpoint_connector.py") for file in files)
    return is_restoring and any(f"/{package}/" in files[-1] for package in ("lightning", "torch", "fg_lightning"))
