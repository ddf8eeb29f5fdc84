"""Train a small network on real digits and watch what it looks at: python examples/train_with_monitor.py"""

from lightning.pytorch import Trainer, seed_everything

from fg_lightning import FullGradMonitor
from fg_lightning.demo import DigitClassifier, DigitsDataModule

if __name__ == "__main__":
    seed_everything(0)
    trainer = Trainer(max_epochs=2, callbacks=[FullGradMonitor()], logger=False, enable_checkpointing=False)
    trainer.fit(DigitClassifier(), DigitsDataModule())
