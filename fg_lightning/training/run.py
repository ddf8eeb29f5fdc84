"""fg-lightning fit, validate, test and predict, whose options are those of Lightning's CLI."""

from __future__ import annotations

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
        return CannotRun(f"{error}{advice}")
    return None
