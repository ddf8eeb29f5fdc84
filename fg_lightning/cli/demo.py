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

from jsonargparse.typing import PositiveInt

from fg_lightning.errors import CannotRun


def demo(max_epochs: PositiveInt = 5, output: Path = Path("fg_demo"), seed: int = 0) -> None:
    """Train a small residual network on 5,000 real MNIST digits and watch what it looks at.

    Writes a Weights & Biases run (offline, unless you are logged in or have set WANDB_MODE), a film strip and a report.

    Args:
        max_epochs: Number of passes over the 4,000 training digits.
        output: The folder that everything is written to.
        seed: Seed of the weights and of the order of the digits.

    Raises:
        CannotRun: if the folder cannot be made or written to.
    """
    # The command line reads this signature to print its help, which takes no Lightning.
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.loggers import WandbLogger

    from fg_lightning.callbacks import FullGradMonitor
    from fg_lightning.demo import DigitClassifier, DigitsDataModule

    output = output.resolve()
    try:
        (output / "wandb").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotRun(f"{output} cannot be written to: {error.strerror}; take another folder with --output") from error
    os.environ.setdefault("WANDB_SILENT", "true")
    # Lightning advises more loader workers, which 4,000 digits in memory do not need.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")  # Lightning's own use of torch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices, tips

    seed_everything(seed, verbose=False)
    logger = WandbLogger(project="fg-lightning-demo", save_dir=output, offline=not ("WANDB_MODE" in os.environ or _is_logged_in()))
    monitor = FullGradMonitor(strict=True, report=True)
    trainer = Trainer(
        max_epochs=max_epochs,
        logger=logger,
        callbacks=[monitor, RichProgressBar()],
        default_root_dir=output,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    data = DigitsDataModule()
    trainer.fit(DigitClassifier(), data)
    (scores,) = trainer.test(datamodule=data, ckpt_path="best", verbose=False)

    run = logger.experiment
    offline, run_folder = run.offline, Path(run.dir).parent
    run.finish()
    history = monitor.history
    assert history is not None
    assert history.folder is not None
    print(f"\ntest accuracy       {scores['test/accuracy']:.1%}")
    print(f"completeness error  {history.snapshots[-1].numbers['fullgrad/completeness_error']:.1e}")
    print(f"film strip          {history.strip_path}")
    print(f"report              {history.folder / 'report.html'}")
    print(f"W&B run             {run_folder if offline else run.url}")
    if offline:
        wandb = "wandb" if shutil.which("wandb") else Path(sys.executable).with_name("wandb")
        print(f"  it is offline; to look at it: {wandb} login, then {wandb} sync {shlex.quote(str(run_folder))}")


def _is_logged_in() -> bool:
    """Whether wandb would find an API key, in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
