"""The content of `probe.json`: a run's images, what is explained, the classes, and the settings that the maps depend on."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from fg_lightning.history.class_names import ClassNames
from fg_lightning.recording.dataset_metadata import DatasetMetadata
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.settings import Settings
from fg_lightning.recording.snapshot_images import Renderer
from fg_lightning.recording.snapshot_numbers import chance_numbers


def describe_run(module: str, task: str, fingerprint: str, settings: Settings, probe: Probe, renderer: Renderer) -> dict[str, Any]:
    """The content of `probe.json`.

    Args:
        module: name of the network's class.
        task: name of the class of the task.
        fingerprint: digest of the images and labels.
        settings: settings of the recorder.
        probe: the images, with the explained labels.
        renderer: draws the images.
    """
    labels = None if renderer.labels is None or renderer.labels.ndim != 1 else renderer.labels.tolist()
    return {
        "fingerprint": fingerprint,
        "module": module,
        **settings.identity(),
        "methods": settings.method_keys,
        "task": task,
        "explained": renderer.explained,
        "images": list(renderer.images.shape),
        "inputs": None if probe.inputs is None else [list(of_input.shape) for of_input in probe.inputs],
        "chosen": probe.chosen,
        "indices": None if probe.indices is None else list(probe.indices),
        "masks": probe.masks_from or None,
        "chance": chance_numbers(probe.images.shape[2:], probe.masks, has_border=probe.inputs is None),
        "labels": labels and [label if math.isfinite(label) else None for label in labels],  # JSON has no NaN
        "class_names": None if renderer.classes.names is None else list(renderer.classes.names),
        "normalization": renderer.normalization and asdict(renderer.normalization),
    }


def name_classes(count: int | None, settings: Settings, metadata: DatasetMetadata, messages: Messages) -> ClassNames:
    """The names of the network's classes: those of the user, or else of the data, if there is one for each class.

    Args:
        count: number of classes that the network distinguishes; None if it has no classes.
        settings: settings of the recorder.
        metadata: finds names in the data.
        messages: warns the user if the user's names do not fit.
    """
    names = settings.class_names
    if count is None:
        names = names if callable(settings.target) else None
        return ClassNames(names, are_classes=names is not None)
    if names is not None and len(names) != count:
        problem = f"class_names has {len(names)} names, but the output has {count} classes"
        messages.warn(ValueError(problem), "so classes are shown by their numbers")
        names = None
    elif names is None:
        with messages.errors_as_warnings():
            names = metadata.class_names(count)
    return ClassNames(names)
