"""anomalib's models with its Engine and its Folder datamodule: training on normal images, scores and maps in validation."""

from __future__ import annotations

from pathlib import Path

from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, Fastflow, Ganomaly, Padim, Patchcore
from made_data import write_pictures

DISTRIBUTION = "anomalib"
TRAINER = "anomalib.engine:Engine"
SIZE = 64


def _fit(engine: Engine, model: AnomalibModule) -> None:
    root = Path("pictures")
    write_pictures(root, 24, SIZE)
    folders = {"root": root, "normal_dir": "normal", "abnormal_dir": "marked", "mask_dir": "masks"}
    engine.fit(model, datamodule=Folder("marks", **folders, train_batch_size=8, eval_batch_size=8, num_workers=0, seed=0))


def _small(kind: type[AnomalibModule]) -> object:
    return kind.configure_pre_processor(image_size=(SIZE, SIZE))


def padim(engine: Engine) -> None:
    _fit(engine, Padim(pre_trained=False, n_features=20, pre_processor=_small(Padim)))


def patchcore(engine: Engine) -> None:
    _fit(engine, Patchcore("resnet18", pre_trained=False, pre_processor=_small(Patchcore)))


def fastflow(engine: Engine) -> None:
    _fit(engine, Fastflow(pre_trained=False, flow_steps=2, pre_processor=_small(Fastflow)))


def ganomaly(engine: Engine) -> None:
    _fit(engine, Ganomaly(n_features=16, latent_vec_size=16, pre_processor=_small(Ganomaly)))
