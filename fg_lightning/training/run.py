"""fg-lightning fit, validate, test and predict, whose options are those of Lightning's CLI."""

from __future__ import annotations

import traceback

from fg_lightning.checkpoints import in_one_line
from fg_lightning.errors import CannotRun


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
    from fg_lightning.training.command import train  # the list of commands takes no Lightning

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
