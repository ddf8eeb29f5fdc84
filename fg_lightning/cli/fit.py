"""fg-lightning fit, validate, test and predict: Lightning's command line, whose options they hand on."""

from __future__ import annotations

import traceback
import warnings

from fg_lightning.checkpoints import one_line
from fg_lightning.errors import CannotRun


def fit(*args: str) -> None:
    """Train an image classifier, any of torchvision's or your own, on your images.

    For example: --model.name resnet18 --data ... --trainer.max_epochs 20.
    """
    train("fit", *args)


def validate(*args: str) -> None:
    """Measure a trained classifier on the validation images.

    For example: --ckpt_path best.ckpt and the same --data.
    """
    train("validate", *args)


def test(*args: str) -> None:
    """Measure a trained classifier on the test images.

    For example: --ckpt_path best.ckpt and the same --data.
    """
    train("test", *args)


def predict(*args: str) -> None:
    """Write what a trained classifier predicts for the test images to predictions.csv.

    For example: --ckpt_path best.ckpt --data ...
    """
    train("predict", *args)


COMMANDS = (fit, validate, test, predict)

DESCRIPTIONS = {command.__name__: " ".join((command.__doc__ or "").split()) for command in COMMANDS}
"""What each command does, as its help says."""


def train(command: str, *args: str) -> None:
    """Runs fit, validate, test or predict.

    Args:
        command: its name.
        args: its options.

    Raises:
        CannotRun: if the user has to change something: the command line, the checkpoint, the network or the data.
    """
    # Commands are listed without torch, so that Lightning is imported here.
    from fg_lightning.cli.fit_options import check_options
    from fg_lightning.cli.lightning_cli import DATA, MODEL, run_trainer

    # Lightning's own use of torch; and its advice on workers, which data in memory do not need.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # the process's own
    try:
        check_options(args)
        # Not the parser's own defaults, which would pass their arguments on to the user's classes.
        run_trainer([command, "--model", MODEL, "--data", DATA, *args], DESCRIPTIONS)
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise reason from None


def _reason(error: BaseException) -> CannotRun | None:
    """What the user has to change, which jsonargparse may have wrapped in errors of its own; None if it is something else."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CannotRun):
            return CannotRun(str(cause).rpartition("CannotRun: ")[2].strip())  # a loader's process sends its whole traceback
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MisconfigurationException):
        advice = " To use the device that this machine has: --trainer.accelerator auto" if "gpu backend" in str(error) else ""
        return CannotRun(f"{one_line(error)}{advice}")
    if _is_of_a_checkpoint(error):
        return CannotRun(
            f"the checkpoint does not fit this model or this training: {one_line(error)}; name the same --model and --data as "
            "for the training that left it"
        )
    return None


def _is_of_a_checkpoint(error: BaseException) -> bool:
    """Whether Lightning or torch raised it as a checkpoint was restored, and not the user's own code."""
    files = [frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)]
    is_restoring = any(file.endswith("connectors/checkpoint_connector.py") for file in files)
    return is_restoring and any(f"/{package}/" in files[-1] for package in ("lightning", "torch", "fg_lightning"))
