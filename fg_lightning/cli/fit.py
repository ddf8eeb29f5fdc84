"""fg-lightning fit, validate, test and predict: they pass their options on to Lightning's command line."""

from __future__ import annotations

import traceback
import warnings
from inspect import getdoc

from fg_lightning.checkpoints import one_line
from fg_lightning.errors import CannotRun


def fit(*args: str) -> None:
    """Train an image classifier, any of torchvision's or your own, on your images.

    For example: fg-lightning fit --model.name resnet18 --data ... --trainer.max_epochs 20.
    """
    train("fit", *args)


def validate(*args: str) -> None:
    """Measure a trained classifier on the validation images.

    For example: fg-lightning validate --ckpt_path best.ckpt --data ... (the same data as for fit).
    """
    train("validate", *args)


def test(*args: str) -> None:
    """Measure a trained classifier on the test images.

    For example: fg-lightning test --ckpt_path best.ckpt --data ... (the same data as for fit).
    """
    train("test", *args)


def predict(*args: str) -> None:
    """Write a trained classifier's predictions for the test images to predictions.csv.

    For example: fg-lightning predict --ckpt_path best.ckpt --data ... (the same data as for fit).
    """
    train("predict", *args)


COMMANDS = (fit, validate, test, predict)

DESCRIPTIONS = {command.__name__: getdoc(command) or "" for command in COMMANDS}
"""The description of each command in its help, by name."""


def train(command: str, *args: str) -> None:
    """Runs fit, validate, test or predict.

    Args:
        command: its name.
        args: its options.

    Raises:
        CannotRun: if the user has to change something: the command line, the checkpoint, the network or the data.
    """
    # Imported here: the list of commands must not wait for torch.
    from fg_lightning.cli.fit_options import check_options
    from fg_lightning.cli.lightning_cli import DATA, MODEL, run_trainer

    # Lightning's own use of torch; and its advice on workers, which data in memory do not need.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # the process's own
    try:
        check_options(args)
        # These defaults are not given to the parser: it would pass their arguments on to the user's classes.
        run_trainer([command, "--model", MODEL, "--data", DATA, *args], DESCRIPTIONS)
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise reason from None


def _reason(error: BaseException) -> CannotRun | None:
    """The error that tells the user what to change, even if jsonargparse wrapped it in its own errors. None for any other error."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CannotRun):
            return CannotRun(str(cause).rpartition("CannotRun: ")[2].strip())  # a loader's process sends its whole traceback
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MisconfigurationException):
        advice = " To use a device that this machine has, add --trainer.accelerator auto" if "gpu backend" in str(error) else ""
        return CannotRun(f"{one_line(error)}{advice}")
    if _is_of_a_checkpoint(error):
        return CannotRun(
            f"the checkpoint does not fit this model or this training: {one_line(error)}; give the same --model and --data as "
            "to the training that wrote it"
        )
    return None


def _is_of_a_checkpoint(error: BaseException) -> bool:
    """Whether Lightning or torch, not the user's code, raised the error while a checkpoint was restored."""
    files = [frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)]
    is_restoring = any(file.endswith("connectors/checkpoint_connector.py") for file in files)
    return is_restoring and any(f"/{package}/" in files[-1] for package in ("lightning", "torch", "fg_lightning"))
