"""Monitor a training script without changing it: FG_LIGHTNING=1 python examples/train_untouched.py

With this variable, the monitor writes to fullgrad/version_0/. Without it, the script only trains.
"""

from lightning.pytorch import Trainer, seed_everything

from fg_lightning.demo import DigitClassifier, DigitsDataModule

if __name__ == "__main__":
    seed_everything(0)
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(DigitClassifier(), DigitsDataModule())
