"""fg-lightning demo."""

from __future__ import annotations

import logging
import netrc
import os
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from fg_lightning.errors import CannotRun

# jsonargparse runs the imports under TYPE_CHECKING of a command's module, so Lightning's types are Any here: --help is quick.

MARK_SIZE = 4
"""Side of the shortcut's mark in pixels: a seventh of the image's side."""

NUM_EXPLAINED = 200
"""Number of test digits whose maps are searched for their highest pixel."""


def demo(max_epochs: PositiveInt = 5, output: Path = Path("fg_demo"), seed: NonNegativeInt = 0, shortcut: bool = False) -> None:
    """Train a small residual network on 5,000 real MNIST digits and watch what it looks at.

    Writes a Weights & Biases run (offline, unless you are logged in or have set WANDB_MODE), a film strip and a report.

    Args:
        max_epochs: Number of passes over the 4,000 training digits.
        output: The folder that everything is written to.
        seed: Seed of the weights and of the order of the digits.
        shortcut: Give each digit a mark in the top left corner whose brightness tells its class. The network learns the mark: its
            accuracy is high, and its maps show that it does not look at the digit.

    Raises:
        CannotRun: if the folder cannot be made or written to.
    """
    # Imported here: the command's help must not wait for Lightning.
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import RichProgressBar

    from fg_lightning.callbacks import FullGradMonitor
    from fg_lightning.demo import DigitClassifier, DigitsDataModule

    output = output.resolve()
    try:
        (output / "wandb").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotRun(f"{output} cannot be written to: {error.strerror}; use another folder with --output") from error
    os.environ.setdefault("WANDB_SILENT", "true")
    # Lightning advises more loader workers, which 4,000 digits in memory do not need.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")  # Lightning's own use of torch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices, tips

    seed_everything(seed, verbose=False)
    logger = _wandb_logger(output)
    planted = _plant("label") if shortcut else None
    monitor = FullGradMonitor(
        strict=True,
        report=True,
        num_samples=8 if planted is None else 10,
        masks=None if planted is None else lambda batch: planted.masks(len(batch[0]), planted.margin),
    )
    trainer = Trainer(
        max_epochs=max_epochs,
        logger=logger,
        callbacks=[monitor, RichProgressBar()],
        default_root_dir=output,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    data = DigitsDataModule() if planted is None else planted
    model = DigitClassifier()
    trainer.fit(model, data)
    (scores,) = trainer.test(datamodule=data, ckpt_path="best", verbose=False)

    run = logger.experiment
    offline, run_folder = run.offline, Path(run.dir).parent
    run.finish()
    history = monitor.history
    assert history is not None
    assert history.folder is not None
    print()
    if planted is None:
        print(f"test accuracy       {scores['test/accuracy']:.1%}")
    else:
        _print_reliance(model, planted, scores["test/accuracy"])
    print(f"completeness error  {history.snapshots[-1].numbers['fullgrad/completeness_error']:.1e}")
    for finding in monitor.findings:
        print(f"finding             {finding.message}. {finding.advice}.")
    if not monitor.findings:
        print("finding             none")
    print(f"film strip          {history.strip_path}")
    print(f"report              {history.folder / 'report.html'}")
    print(f"W&B run             {run_folder if offline else run.url}")
    if offline:
        wandb = "wandb" if shutil.which("wandb") else Path(sys.executable).with_name("wandb")
        print(f"  it is offline; to upload it: {wandb} login, then {wandb} sync {shlex.quote(str(run_folder))}")


def _wandb_logger(output: Path) -> Any:
    """A logger with a run that is started here: Lightning would pass an argument of which W&B warns that it has no effect."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    project = "fg-lightning-demo"
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if _is_logged_in() else "offline")
    run = wandb.init(project=project, dir=output, mode=mode)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, project=project, save_dir=output)


def _plant(mark: Any, strength: float = 1.0) -> Any:
    """The digits with marks in a corner: of their label, or of another class ("shuffled")."""
    from fg_lightning.demo import DigitsDataModule
    from fg_lightning.planted import PlantedShortcut

    return PlantedShortcut(DigitsDataModule(), "corner", strength, mark, size=MARK_SIZE)


def _print_reliance(model: Any, planted: Any, accuracy: float) -> None:
    """Prints the accuracy with misleading marks and without marks, and how often the map is highest on the mark."""
    print("test accuracy")
    print(f"  the mark shows the class          {accuracy:6.1%}")
    print(f"  the mark shows another class      {_test(model, _plant('shuffled')):6.1%}")
    print(f"  there is no mark                  {_test(model, _plant('label', strength=0.0)):6.1%}")
    print("maps that are highest at the mark")
    share, chance = _share_at_mark(model, planted)
    print(f"  of {NUM_EXPLAINED} test digits                {share:6.1%}   (by chance {chance:.1%})")


def _test(model: Any, data: Any) -> float:
    from lightning.pytorch import Trainer

    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    (scores,) = trainer.test(model, data, verbose=False)
    return float(scores["test/accuracy"])


def _share_at_mark(model: Any, planted: Any) -> tuple[float, float]:
    """The share of maps whose highest pixel lies on the mark or beside it, and the share of pixels that do."""
    import torch

    from fg_lightning.fullgrad import FullGrad
    from fg_lightning.metrics import pointing_game

    planted.setup("test")
    images = next(iter(planted.test_dataloader()))[0][:NUM_EXPLAINED].to(model.device)
    saliency = FullGrad(model.eval())
    maps = torch.cat([saliency.attribute(batch).detach() for batch in images.split(50)]).cpu()
    masks = planted.masks(len(maps), planted.margin)
    return float(pointing_game(maps, masks).mean()), float(masks.float().mean())


def _is_logged_in() -> bool:
    """Whether wandb would find an API key, in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
