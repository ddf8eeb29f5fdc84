"""Lightning's command line over this package's classifier and data, or the user's own: fit, validate, test and predict."""

from __future__ import annotations

import io
import pkgutil
import shlex
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NoReturn

import lightning
from jsonargparse import capture_parser  # type: ignore[attr-defined]
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from fg_lightning.callbacks import FullGradMonitor
from fg_lightning.checkpoints import one_line
from fg_lightning.cli.command_help import TrainingHelp
from fg_lightning.cli.fit_options import PresetOrFile, changed_by_checkpoint, check_checkpoint, model_of
from fg_lightning.cli.option_errors import shorten
from fg_lightning.errors import CannotRun
from fg_lightning.training import ImageClassifier
from fg_lightning.training.image_datamodule import ImageDataModule

MODEL = "fg_lightning.training.ImageClassifier"
DATA = "fg_lightning.demo.DigitsDataModule"

BEST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"monitor": "val/accuracy", "mode": "max", "filename": "best", "save_last": True},
}
"""Keeps the best and the last weights of a classifier, unless the configuration has another ModelCheckpoint."""

PREDICTIONS = {"class_path": "fg_lightning.training.predictions_table.PredictionsTable"}

MORE = """Options of the network: {0} --model.help ImageClassifier

Options of the data: {0} --data.help TorchvisionDataModule, or ImageFolderDataModule. Default: 5,000 MNIST digits.

Your own classes: --model my_package.Net --data my_package.Data, with their arguments as --model.NAME and --data.NAME.

To monitor the training: --config fullgrad_monitor, or --trainer.callbacks+ fg_lightning.FullGradMonitor."""


class TrainingParser(LightningArgumentParser):
    """Lightning's parser, whose errors are one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(shorten(message), ex)


class TrainingCLI(LightningCLI):
    """Lightning's CLI with defaults that work: resnet18 on 5,000 MNIST digits, ten epochs from seed 0."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser, whose `--config` takes presets."""
        parser = self.parser_class(**{"dump_header": [f"lightning.pytorch=={lightning.__version__}"], **kwargs})
        parser.add_argument("-c", "--config", action=PresetOrFile, help="A YAML file, or the name of a preset.")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Reads the options. Those in a checkpoint override them later.

        Raises:
            CannotRun: if there is no such checkpoint, or an untrained network is measured without one.
        """
        super().parse_arguments(parser, args)
        command = self.config.subcommand
        given = self.config[command]
        self.asked = given.model.clone()
        if given.ckpt_path is not None:
            check_checkpoint(str(given.ckpt_path), command)
        elif command != "fit" and _class(given.model) is ImageClassifier and given.model.init_args.weights in (None, "none"):
            raise CannotRun(f"{command} needs a trained network; give its checkpoint, such as --ckpt_path best.ckpt")

    def _parse_ckpt_path(self) -> None:
        """Lets the checkpoint's hyper_parameters override the model's options, as Lightning does.

        Lightning reads only those that its command line wrote, and fails on those of a training that a script started.

        Raises:
            CannotRun: if the model does not accept them.
        """
        command = self.config.subcommand
        given = self.config[command]
        if not given.ckpt_path or not Path(given.ckpt_path).is_file():
            return
        kept = model_of(Path(given.ckpt_path), given.model.class_path)
        if kept is None:
            return
        messages = io.StringIO()
        try:
            with redirect_stderr(messages):
                self.config = self.parser.parse_object({command: {"model": kept}}, self.config)
        except SystemExit:
            raise CannotRun(
                f"the hyper_parameters of {given.ckpt_path} do not fit the model {kept['class_path']}; give the same --model as "
                f"to the training that wrote it: {one_line(messages.getvalue().rpartition('error: ')[2])}"
            ) from None

    def before_instantiate_classes(self) -> None:
        for name, (asked, kept) in changed_by_checkpoint(self.asked, self.config[self.subcommand].model).items():
            rank_zero_info(f"The checkpoint's {name}, {kept}, overrides --model.{name} {asked}")
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
        """Prints where the weights are, and the commands that use them."""
        kept = self.trainer.checkpoint_callback
        path = getattr(kept, "best_model_path", "") or getattr(kept, "last_model_path", "")  # without validation there is no best
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
    kind: type = pkgutil.resolve_name(model.class_path)
    return kind


def run_trainer(args: list[str] | None, descriptions: Mapping[str, str]) -> None:
    """Runs Lightning's command line.

    Args:
        args: the command and its options. None: those of this process.
        descriptions: the description of each command, by name.
    """
    commands = {
        name: {
            "description": f"{text}\n\n{MORE.format(f'fg-lightning {name}')}",
            "usage": f"fg-lightning {name} [options]",
        }
        for name, text in descriptions.items()
    }
    TrainingCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,  # they would be made before the model fits the data
        seed_everything_default=0,
        parser_class=TrainingParser,
        trainer_defaults={"max_epochs": 10},
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "fg-lightning", "formatter_class": TrainingHelp, **commands},
        args=args,
    )


def training_parser(descriptions: Mapping[str, str]) -> LightningArgumentParser:
    """The parser of fit, validate, test and predict, with a parser for each; parses nothing."""
    return capture_parser(run_trainer, None, descriptions)  # type: ignore[return-value]


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
