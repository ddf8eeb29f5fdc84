"""Watch what a detector looks at: python examples/watch_a_detector.py

Detectors of torchvision take a list of images and return a list of dictionaries. The monitor needs three arguments for them: images
of one size (`probe`), a function that calls the detector (`forward`), and a function that selects the explained number (`target`):
here the log-odds of the best detection of each image. A small Faster R-CNN finds bright squares and discs in noise. It splits the
batch, so the monitor explains the images one by one. The film strip is in fullgrad/version_0/.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, box_iou

from fg_lightning import FullGradMonitor

SIDE = 64
"""Side of an image in pixels."""


class Shapes(Dataset):
    """Images [3, 64, 64] in 0..1: noise with a square (class 1) or a disc (class 2). Targets are its box and class."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = 0.3 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
        self.labels = torch.randint(1, 3, (count,), generator=generator)
        sizes = torch.randint(16, 25, (count,), generator=generator)
        corners = (torch.rand(count, 2, generator=generator) * (SIDE - sizes[:, None])).long()
        self.boxes = torch.cat([corners, corners + sizes[:, None]], 1).float()
        places = torch.arange(SIDE) + 0.5
        for image, label, (left, top, right, bottom) in zip(self.images, self.labels, self.boxes, strict=True):
            radius = (right - left) / 2
            x, y = (places[None] - (left + right) / 2).abs(), (places[:, None] - (top + bottom) / 2).abs()
            inside = torch.maximum(x, y) < radius if label == 1 else x**2 + y**2 < radius**2
            image[:, inside] += 0.6

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[index], {"boxes": self.boxes[index][None], "labels": self.labels[index][None]}


def as_lists(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch in the form that detectors need: a list of images and a list of targets."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class Detector(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        backbone = nn.Sequential(block(3, 16), block(16, 32), block(32, 64))
        backbone.out_channels = 64
        self.detector = FasterRCNN(
            backbone,
            min_size=SIDE,
            max_size=SIDE,
            rpn_anchor_generator=AnchorGenerator(((16, 24),), ((1.0,),)),
            rpn_post_nms_top_n_train=32,
            rpn_post_nms_top_n_test=16,
            box_roi_pool=MultiScaleRoIAlign(["0"], output_size=5, sampling_ratio=2),
            box_head=TwoMLPHead(64 * 5 * 5, 128),
            box_predictor=FastRCNNPredictor(128, num_classes=3),
            box_batch_size_per_image=32,
            box_score_thresh=0.0,
        )

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return self.detector(images)

    def training_step(self, batch: tuple[list[Tensor], list[dict[str, Tensor]]], batch_idx: int) -> Tensor:
        return sum(self.detector(*batch).values())

    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Tensor]]], batch_idx: int) -> None:
        images, targets = batch
        overlap = [box_iou(found["boxes"][:1], target["boxes"]).sum() for found, target in zip(self(images), targets, strict=True)]
        self.log("val/overlap", torch.stack(overlap).mean(), prog_bar=True, batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def best_detection(output: list[dict[str, Tensor]]) -> Tensor:
    """Log-odds of the best detection of each image, [N]. Detectors return the best one first."""
    return torch.stack([torch.logit(found["scores"][:1], eps=1e-6).sum() for found in output])


def share_inside(saliency: Tensor, box: Tensor) -> Tensor:
    """The share of a map [H, W] that lies within a box, 0 to 1."""
    left, top, right, bottom = box.int()
    return saliency[top:bottom, left:right].sum() / saliency.sum()


if __name__ == "__main__":
    seed_everything(0)
    train, held_out = Shapes(256, seed=0), Shapes(32, seed=1)
    monitor = FullGradMonitor(
        probe=held_out.images[:4], forward=lambda module, images: module(list(images)), target=best_detection, strict=True
    )
    trainer = Trainer(max_epochs=5, callbacks=[monitor], logger=False, enable_checkpointing=False)
    loaders = (DataLoader(data, 8, shuffle=data is train, collate_fn=as_lists) for data in (train, held_out))
    trainer.fit(Detector(), *loaders)

    inside = [share_inside(m[0], box) for m, box in zip(monitor.history.last_maps, held_out.boxes, strict=False)]
    print("overlap of the best box   ", round(float(trainer.callback_metrics["val/overlap"]), 2))
    print("saliency within the object", round(float(torch.stack(inside).mean()), 2))
    areas = [share_inside(torch.ones(SIDE, SIDE), box) for box in held_out.boxes[: len(inside)]]
    print("area of the object        ", round(float(torch.stack(areas).mean()), 2))
    print("completeness error        ", monitor.history.snapshots[-1].numbers["fullgrad/completeness_error"])
    print("film strip                ", monitor.history.strip_path)
