"""A training that knows nothing of this package's monitor: FG_LIGHTNING=1 python examples/train_untouched.py

With the variable, what the network looks at lies in fullgrad/version_0/ when it is done; without it, nothing is different.
"""

from lightning.pytorch import Trainer, seed_everything

from fg_lightning.demo import DigitClassifier, DigitsDataModule

if __name__ == "__main__":
    seed_everything(0)
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(DigitClassifier(), DigitsDataModule())
