"""Small networks and data for real Trainer runs."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

CLASSES = 3


def images_and_labels(n, seed=0, size=8):
    """Bright squares in one of three corners, the class saying which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    images = 0.1 * torch.randn(n, 1, size, size, generator=generator)
    half = size // 2
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 1
    return images, labels


def loader(n=24, seed=0, batch_size=8, **options):
    return DataLoader(TensorDataset(*images_and_labels(n, seed)), batch_size, **options)


class Stream(IterableDataset):
    """16 images in order; counts how often it was opened."""

    def __init__(self, seed):
        self.seed = seed
        self.opened = 0

    def __iter__(self):
        self.opened += 1
        yield from TensorDataset(*images_and_labels(16, self.seed))


class Classifier(pl.LightningModule):
    """Convolution, batch norm, dropout: everything that a careless snapshot could disturb."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, CLASSES))

    def forward(self, images):
        return self.head(self.features(images))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def trainer(folder, *callbacks, logger=False, max_epochs=2, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=logger,
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        **quiet | options,
    )


def fit(folder, monitor, module=None, train=None, val=None, **options):
    """A short training, the same each time."""
    pl.seed_everything(1, verbose=False)
    run = trainer(folder, monitor, **options)
    module = module or Classifier()
    run.fit(module, loader(seed=1, shuffle=True) if train is None else train, loader(16, seed=2) if val is None else val)
    return module, run
