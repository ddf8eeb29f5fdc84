"""What goes wrong in a look is said once, and training goes on.

One fit, watched: what the monitor does once it has images to look at.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Union

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor, nn

from fg_lightning.atomic_files import replacing
from fg_lightning.callbacks.module_call import Forward
from fg_lightning.fullgrad.postprocess import Psi, find_psi
from fg_lightning.fullgrad.target import TargetError
from fg_lightning.history.history import History
from fg_lightning.history.run_folder import run_folder, unused
from fg_lightning.loggers import log_of
from fg_lightning.recording.evidence import Evidence
from fg_lightning.recording.normalization import Facts
from fg_lightning.recording.output_meaning import ClassNames
from fg_lightning.recording.probe import Probe
from fg_lightning.recording.resume import ProbeChanged, Resumed, kept
from fg_lightning.recording.snapshot import Findings, Look, Looker, numbers_of
from fg_lightning.recording.snapshot_images import Artist, bias_terms, planar
from fg_lightning.recording.task import MonitorTarget, check_task
from fg_lightning.visualization.film_strip import save_animation
from fg_lightning.visualization.grid import pixels
from fg_lightning.visualization.overlay import Normalization, displayed


class Faults:
    """
    Args:
        strict: raise instead.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._said: set[tuple[str, str, int]] = set()

    @contextmanager
    def kept_from_training(self) -> Iterator[None]:
        """Training goes on as if nothing had happened: the same random state behind, and no exception but under `strict`."""
        with isolate_rng():
            try:
                yield
            except Exception as error:
                self.complain(error)

    def complain(self, error: Exception, consequence: str = "training goes on") -> None:
        """Raises under `strict`, else warns, once for each kind of fault and place where it was raised.

        A full disk, and whatever else the operating system reports, is one kind wherever it is met.
        """
        if self.strict:
            raise error
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = ("", 0) if place is None else (place.tb_frame.f_code.co_filename, place.tb_lineno)
        if isinstance(error, OSError) and error.errno is not None:
            where = (os.strerror(error.errno), 0)
        fault = (type(error).__name__, *where)
        if fault not in self._said:
            self._said.add(fault)
            explained = f"{type(error).__name__}: {error}"
            warnings.warn(f"FullGradMonitor: {explained} ({consequence}; FullGradMonitor(strict=True) raises)", stacklevel=2)


@dataclass(frozen=True)
class Settings:
    """How to look; see `FullGradMonitor`."""

    psi: Union[str, Psi] = "absolute"
    target: MonitorTarget = None
    task: str | None = None
    forward: Forward | None = None
    normalization: Normalization | None = None
    class_names: Sequence[str] | None = None
    animation: bool = False
    report: bool = False

    @classmethod
    def checked(
        cls, psi: Any, target: Any, forward: Any, normalization: Any, class_names: Any, *, task: Any = None, **drawn: bool
    ) -> Settings:
        """From what a person passed.

        Raises:
            TypeError: if something is of no kind that makes sense.
            ValueError: if it makes no sense otherwise.
        """
        find_psi(psi)
        is_class = isinstance(target, int) and not isinstance(target, bool)
        if not (target is None or callable(target) or is_class or isinstance(target, (list, tuple, Tensor))):
            raise TypeError(f"target must be a class, a list of them or a function of the output, not {target!r}")
        check_task(task, target)
        if forward is not None and not callable(forward):
            raise TypeError(f"forward must be a function of the module and a batch, not {forward!r}")
        if class_names is not None and (isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names)):
            raise TypeError(f"class_names must be a list of names, not {class_names!r}")
        if normalization is not None and not isinstance(normalization, Normalization):
            try:
                mean, std = (tuple(float(number) for number in numbers) for numbers in normalization)
            except (TypeError, ValueError):
                raise ValueError(f"normalization must be (mean, std), numbers for the channels, not {normalization!r}") from None
            normalization = Normalization(mean, std)
        for name, value in drawn.items():
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, not {value!r}")
        return cls(psi, target, task, forward, normalization, class_names, **drawn)

    def decisive(self) -> dict[str, str]:
        """What must be the same for maps to be comparable, in words."""
        chosen = {"psi": self.psi, "target": self.target, "task": self.task}
        return {name: str(getattr(value, "__name__", value)) for name, value in chosen.items()}


class Watch:
    """Looks at a network, and sees to it that what is found is kept and shown.

    Args:
        looker: what looks.
        history: what was found before.
        fingerprint: of the images as they came.
        settings: how to look.
        facts: how to show the images.
        loggers: the trainer's.
        faults: what to do about them.

    Attributes:
        numbers: of the network as it was when it was last looked at or measured, by key.
    """

    def __init__(
        self,
        looker: Looker,
        history: History,
        fingerprint: str,
        settings: Settings,
        facts: Facts,
        loggers: Sequence[Any],
        faults: Faults,
    ) -> None:
        self.looker = looker
        self.history = history
        self._fingerprint = fingerprint
        self._settings = settings
        self._facts = facts
        self._logs = [log_of(logger) for logger in loggers]
        self._faults = faults
        self.numbers: dict[str, float] = {}
        self._artist: Artist | None = None
        self._drawn_looks = 0

    @classmethod
    def begin(
        cls,
        trainer: Trainer,
        fresh: Probe | None,
        settings: Settings,
        facts: Facts,
        faults: Faults,
        resumed: Resumed | None = None,
        *,
        is_given: bool = False,
    ) -> Watch | None:
        """Begins to watch a fit, or goes on where a checkpoint stopped.

        Args:
            trainer: in a fit.
            fresh: the images that this run has; None where they are still to come by.
            settings: how to look.
            facts: how to show the images.
            faults: what to do about them.
            resumed: what the checkpoint brought.
            is_given: whether the user chose the images.

        Returns:
            None if there are no images yet.
        """
        folder = None if getattr(trainer, "fast_dev_run", False) else run_folder(trainer)

        def evidence(module: nn.Module) -> Evidence:
            given = () if settings.class_names is None else (len(settings.class_names),)
            return Evidence.of(module, facts.class_counts(), given)

        look_on = None
        if resumed is not None:
            if resumed.damage is not None:
                faults.complain(resumed.damage, "the numbers of the checkpoint go on, with the maps that are left")
            look_on, changed = resumed.probe_for(fresh, settings.decisive(), needs_fresh=is_given or settings.forward is not None)
            if changed is not None:
                consequence = "a new history begins" if look_on is None else "the images of the checkpoint are looked at on"
                faults.complain(ProbeChanged(f"since the checkpoint was written, {changed}"), consequence)
        if resumed is not None and look_on is not None:
            history = resumed.history(None if folder is None else resumed.folder_in(folder, trainer.logger is not None))
            looker = Looker(look_on, settings.psi, settings.target, settings.forward, resumed.task, settings.task, evidence)
            looker.labels = resumed.shown
            fingerprint = resumed.fingerprint
        elif fresh is not None:
            history = History(None if folder is None else unused(folder))
            looker = Looker(fresh, settings.psi, settings.target, settings.forward, None, settings.task, evidence)
            fingerprint = fresh.fingerprint()
        else:
            return None
        return cls(looker, history, fingerprint, settings, facts, trainer.loggers, faults)

    @property
    def last_look(self) -> Look | None:
        """The look before the next one, whichever process took it."""
        return next(reversed(self.history.looks), None)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; see `kept`. Nothing before the first look."""
        looker = self.looker
        if not self.history.looks or looker.task is None:
            return {}
        return kept(self.history, looker.probe, looker.task, self._fingerprint, self._settings.decisive(), looker.labels)

    def measure(self, module: LightningModule) -> Findings:
        """Explains the probe with the network as it is, and sets `numbers`."""
        findings = self.looker.look(module, module.device)
        history = self.history
        first = next(iter(history.looks), None)
        untrained = history.first_maps if first is not None and first.epoch == first.step == 0 else None
        self.numbers = numbers_of(findings, history.last_maps, untrained)
        return findings

    def look(self, module: LightningModule, epoch: int, step: int, *, is_last: bool = False) -> None:
        """Looks at the network now, keeps what it finds, and logs it: each, whatever becomes of the others.

        The last look of a run is logged together with what is drawn of the whole run.

        Args:
            module: the network.
            epoch: how many epochs it has been trained for.
            step: at which Lightning logs what belongs to its weights.
            is_last: whether the run ends with it, as far as is known.
        """
        self.numbers = {}
        findings = self.measure(module)
        if self._artist is None:
            self._artist = self._begin(module, findings)
        history = self.history
        look = Look(epoch, step, self.numbers)
        pictures = self._artist.pictures(look, findings)
        with self._faults.kept_from_training():
            history.add(look, findings, self.looker.labels)
            if not any(log.takes_pictures for log in self._logs):
                history.add_sheet(look, pixels(pictures.sheet))
        if is_last:
            with self._faults.kept_from_training():
                pictures = replace(pictures, of_run=self._drawn())
        for log in self._logs:
            with self._faults.kept_from_training():
                log.log({"epoch": max(epoch - 1, 0), **look.numbers}, pictures, look.step)  # Lightning counts epochs from 0

    def conclude(self) -> None:
        """Sees to it that the whole run is drawn, up to its last look."""
        if not self.history.looks or self.history.folder is None or self._artist is None:
            return
        if self._drawn_looks != len(self.history.looks):
            drawn = self._drawn()
            for log in self._logs:
                with self._faults.kept_from_training():
                    log.conclude(drawn, self.history.looks[-1].step)
        lost = f"; {self.history.num_unwritten} more could not be written" if self.history.num_unwritten else ""
        rank_zero_info(f"FullGradMonitor: {len(self.history.looks)} looks, see {self.history.strip_path}{lost}")
        if self._settings.report:
            from fg_lightning.report import write_report

            with self._faults.kept_from_training():
                rank_zero_info(f"FullGradMonitor: report, see {write_report(self.history.folder)}")

    def _drawn(self) -> dict[str, Image.Image | Path]:
        """The film strip, and bias terms by depth, the animation if asked; nothing of a run without a folder."""
        history = self.history
        if history.folder is None or self._artist is None or not history.looks:
            return {}
        drawn = {"film_strip": self._artist.film_strip(history), "bias_terms": bias_terms(history)}
        for name, picture in drawn.items():
            with replacing(history.folder / f"{name}.png") as file:
                picture.save(file, "PNG")
        logged: dict[str, Image.Image | Path] = {f"fullgrad/{name}": picture for name, picture in drawn.items()}
        if self._settings.animation:
            path = history.folder / "animation.gif"
            save_animation(self._artist.animation(history), path)
            logged["fullgrad/animation"] = path
        self._drawn_looks = len(history.looks)
        return logged

    def _begin(self, module: LightningModule, findings: Findings) -> Artist:
        """What it takes the first look to know: how to draw, and what to say of it."""
        if self.looker.misfit is not None:
            self._faults.complain(TargetError(self.looker.misfit), "so the predicted classes of the first look are explained")
        if self.looker.assumed is not None:
            rank_zero_info(f"FullGradMonitor: {self.looker.assumed}")
        images, normalization = self.looker.probe.images, self._settings.normalization
        with self._faults.kept_from_training():
            normalization = normalization or self._facts.normalization(images)
        pictures = [displayed(image, normalization) for image in planar(images)]
        artist = Artist(images, pictures, self.looker.labels, normalization, self._classes(findings))
        with self._faults.kept_from_training():
            self.history.begin(self._about(module, artist), self.looker.probe, artist.pictures_of_images)
            self._say_where_pictures_go()
        return artist

    def _classes(self, findings: Findings) -> ClassNames:
        """What the classes are called that the network tells apart, whose names must be as many."""
        names, count = self._settings.class_names, findings.classes
        if count is None:
            names = names if callable(self._settings.target) else None
            return ClassNames(names, are_classes=names is not None)
        if names is not None and len(names) != count:
            problem = f"class_names has {len(names)} names, but the output has {count} classes"
            self._faults.complain(ValueError(problem), "so classes are shown by their numbers")
            names = None
        elif names is None:
            with self._faults.kept_from_training():
                names = self._facts.class_names(count)
        return ClassNames(names)

    def _about(self, module: LightningModule, artist: Artist) -> dict[str, Any]:
        """What stands in `probe.json`."""
        return {
            "fingerprint": self._fingerprint,
            "module": type(module).__qualname__,
            **self._settings.decisive(),
            "task": type(self.looker.task).__name__,
            "images": list(artist.images.shape),
            "labels": None if artist.labels is None or artist.labels.ndim != 1 else _plain(artist.labels),
            "class_names": None if artist.classes.names is None else list(artist.classes.names),
            "normalization": None if artist.normalization is None else asdict(artist.normalization),
        }

    def _say_where_pictures_go(self) -> None:
        blind = ", ".join(type(log.logger).__name__ for log in self._logs if not log.takes_pictures)
        if blind and self.history.folder is not None:
            none_sees = not any(log.takes_pictures for log in self._logs)
            where = f"; the overlays go to {self.history.folder / 'saliency'}" if none_sees else ""
            rank_zero_info(f"FullGradMonitor: {blind} takes no images and gets the numbers alone{where}")


def _plain(labels: Tensor) -> list[float | None]:
    """Labels [N] as JSON has them, which knows no NaN and no infinity."""
    return [label if math.isfinite(label) else None for label in labels.tolist()]


def step_of(trainer: Trainer, module: LightningModule, epoch: int) -> int:
    """The step at which Lightning logs what belongs to the weights as they are.

    After `epoch` epochs it is the last step, with which Lightning logs the epoch's own metrics; in the first epoch the next one.
    Steps are batches, or those of them after which the optimizer steps where gradients are accumulated.
    """
    stepped: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    stepped += bool(trainer.validating)  # Lightning counts a batch when its validation is over
    if module.automatic_optimization:
        stepped = max(stepped, trainer.global_step)  # a checkpoint that was saved in validation has counted one less
    return max(stepped - 1, 0) if epoch else stepped
