"""Record how saliency changes while Hugging Face's Trainer trains: python examples/record_with_transformers.py

It needs transformers and accelerate: pip install 'fg-lightning[examples]'. `RecordSaliency` works for any image classifier.
"""

from pathlib import Path

import torch
from torch.utils.data import random_split
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from fg_lightning import FullGradRecorder
from fg_lightning.demo import load_digits


class RecordSaliency(TrainerCallback):
    """Takes a snapshot before training and after every epoch, in the first process. It continues if training resumes.

    Args:
        folder: folder of the snapshots.
        probe: (images [N, C, H, W], labels [N]), as the model needs them.
        **options: options of `FullGradRecorder`.
    """

    def __init__(self, folder, probe, **options):
        self.recorder = FullGradRecorder(folder, probe, **options)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        earlier = self._state_path(args, state)
        if earlier.is_file():
            self.recorder.load_state_dict(torch.load(earlier))
        else:
            self._snapshot(state, model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self._snapshot(state, model)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            torch.save(self.recorder.state_dict(), self._state_path(args, state))

    def on_train_end(self, args, state, control, **kwargs):
        self.recorder.conclude()

    def _snapshot(self, state, model):
        if state.is_world_process_zero:
            self.recorder.snapshot(model, step=state.global_step, epoch=round(state.epoch or 0))

    def _state_path(self, args, state):
        return Path(args.output_dir, f"checkpoint-{state.global_step}", "fullgrad_recorder.pt")


if __name__ == "__main__":
    torch.manual_seed(0)
    train, held_out = random_split(load_digits(), [4000, 1000])
    model = ViTForImageClassification(
        ViTConfig(
            **{"image_size": 28, "patch_size": 7, "num_channels": 1, "num_labels": 10},
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        )
    )
    arguments = TrainingArguments(
        "transformers_run",
        num_train_epochs=2,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        save_strategy="epoch",
        report_to=[],
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[{"pixel_values": image, "labels": label} for image, label in train],
        callbacks=[RecordSaliency("fullgrad", held_out[:8], task="classes", reading="locally_affine")],
    )
    trainer.train()
    print("see fullgrad/film_strip.png")
