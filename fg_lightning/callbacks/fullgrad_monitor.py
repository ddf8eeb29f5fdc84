"""FullGradMonitor: watch saliency evolve while a network trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Union

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fg_lightning import loggers
from fg_lightning.callbacks.history import History, folder_of
from fg_lightning.callbacks.look import Look, numbers_of
from fg_lightning.callbacks.probe import NoProbe, Probe, probe_of_loader, reads_by_index, training_loader, validation_loader
from fg_lightning.fullgrad import FullGrad
from fg_lightning.fullgrad.postprocess import Psi, find_psi
from fg_lightning.fullgrad.target import TargetError
from fg_lightning.visualization import overlay

SHARDING_STRATEGIES = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class FullGradMonitor(Callback):
    """Draws FullGrad maps of the same held-out images all through training and checks that they are complete.

    Looks at the untrained network and again after every `every_n_epochs`-th epoch, never in the sanity check. Each look logs, at
    Lightning's global step:

    - `fullgrad/saliency`: every image of the probe with its map over it (loggers that take images);
    - `fullgrad/completeness_error`, `fullgrad/completeness_error_max`: |f - sum of all terms| / |f|, mean and maximum over the
      probe; near zero, or the maps are not to be trusted;
    - `fullgrad/input_share`, `fullgrad/bias_share`, `fullgrad/implicit_share`: what share of the output each kind of term explains;
    - `fullgrad/drift`: mean cosine distance to the maps of the look before.

    Numbers, maps and a film strip (a row per image, a column per look) also go to `fullgrad/` in the run's folder; where no logger
    takes images, the overlays do, too.

    Training is not disturbed: weights come out bit for bit as without the monitor, unless the data set keeps random state of its
    own. What goes wrong in a look is warned of once, and training goes on.

    The module is called on the images alone, as its forward takes them: what a validation step does to a batch first is not seen.
    Where labels are no classes of the output, the classes predicted by the untrained network are explained.

    Args:
        every_n_epochs: look after every so many epochs.
        num_samples: how many images to look at, evenly spread over the validation data (without any: the training data).
        probe: images [N, C, *S] as the model takes them, or (images, labels [N]), to look at instead.
        psi: FullGrad's post-processing: "absolute", "positive", "signed" or a function; see `fg_lightning.FullGrad`.
        strict: raise what goes wrong instead of warning.

    Raises:
        ValueError: if an argument makes no sense.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[FullGradMonitor(every_n_epochs=5)], logger=False)
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_samples: int = 8,
        probe: Union[Tensor, tuple[Tensor, Tensor], None] = None,
        psi: Union[str, Psi] = "absolute",
        strict: bool = False,
    ) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, not {every_n_epochs}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.psi = find_psi(psi)
        self.strict = strict
        self._given = None if probe is None else Probe.given(probe)
        self._history: History | None = None
        self._is_sharded = False
        self._warned: set[tuple[str, int]] = set()

    @property
    def history(self) -> History | None:
        """What was found so far; None before the first look and on all ranks but the first."""
        return self._history

    # --- the hooks, in the order in which Lightning calls them

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == TrainerFn.FITTING:
            self._history = None
            self._is_sharded = False
            self._warned = set()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Data that can only be streamed is taken as it comes by, in the sanity check or else after the first epoch."""
        if self._given is None and self._lacks_probe(trainer) and not reads_by_index(validation_loader(trainer)):
            with self._undisturbed():
                self._begin(trainer, Probe.of_batch(batch, self.num_samples))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._undisturbed():
            if self._lacks_probe(trainer):
                self._take_probe(trainer, pl_module)
            self._look(trainer, pl_module, trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._lacks_probe(trainer) and validation_loader(trainer) is None and not reads_by_index(training_loader(trainer)):
            with self._undisturbed():
                self._begin(trainer, Probe.of_batch(batch, self.num_samples))
                self._look(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0:
            with self._undisturbed():
                self._look(trainer, pl_module, epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw_strip()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What was seen up to a crash or Ctrl-C is worth a strip, too."""
        self._draw_strip()

    # --- the probe

    def _lacks_probe(self, trainer: Trainer) -> bool:
        return self._history is None and trainer.state.fn == TrainerFn.FITTING and trainer.is_global_zero and not self._is_sharded

    def _take_probe(self, trainer: Trainer, module: LightningModule) -> None:
        if type(trainer.strategy).__name__ in SHARDING_STRATEGIES:
            self._is_sharded = True
            raise NotImplementedError(f"{type(trainer.strategy).__name__} spreads the weights, and one process cannot look alone")
        loader = validation_loader(trainer)
        if self._given is not None:
            self._begin(trainer, self._given)
            return
        if loader is None:
            loader = training_loader(trainer)
            self._complain(NoProbe("there is no validation data, so the images looked at are training data; give the Trainer some"))
        if reads_by_index(loader):
            self._begin(trainer, probe_of_loader(loader, self.num_samples, trainer, module))

    def _begin(self, trainer: Trainer, probe: Probe) -> None:
        self._history = History(
            None if getattr(trainer, "fast_dev_run", False) else folder_of(trainer), probe.to(torch.device("cpu"))
        )

    # --- a look

    def _draw_strip(self) -> None:
        with self._undisturbed():
            if self._history is not None:
                self._history.draw_strip()

    def _look(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        history = self._history
        if history is None:
            return
        probe = history.probe.to(module.device)
        method = FullGrad(module, psi=self.psi)
        try:
            maps, terms = method.attribute_with_terms(probe.images, probe.labels)
        except TargetError as error:
            # A single logit, an ignored label, integers that are no classes. The same classes again make a strip comparable.
            self._complain(error, "so the predicted classes of the first look are explained")
            maps, terms = method.attribute_with_terms(probe.images)
            history.probe = Probe(history.probe.images, None if terms.target is None else terms.target.cpu())
        maps = maps.float().cpu()
        numbers = numbers_of(terms, maps, history.latest_maps)
        look = Look(epoch, trainer.global_step, maps, None if terms.target is None else terms.target.cpu(), numbers)
        history.add(look)
        self._log(trainer, history, look)

    def _log(self, trainer: Trainer, history: History, look: Look) -> None:
        overlays = []
        if history.probe.images.ndim == 4:
            overlays = [overlay(image, saliency) for image, saliency in zip(history.probe.images, look.maps, strict=True)]
        moment = "untrained" if look.epoch == 0 else f"epoch {look.epoch}"
        classes = [""] * len(look.maps) if look.targets is None else [f", class {target}" for target in look.targets.tolist()]
        captions = [moment + explained for explained in classes]
        pictures = {"fullgrad/saliency": overlays} if overlays else {}
        shown = [loggers.log(logger, look.numbers, pictures, captions, look.step) for logger in trainer.loggers]
        if overlays and not any(shown):
            history.add_overlays(look, overlays)

    # --- faults

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Training goes on as if nothing had happened: the same random state behind, and no exception but under `strict`."""
        with isolate_rng():
            try:
                yield
            except Exception as error:
                self._complain(error)

    def _complain(self, error: Exception, consequence: str = "training goes on") -> None:
        """Raise under `strict`, else warn, once for each kind of fault and place where it was raised."""
        if self.strict:
            raise error
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        reason = (type(error).__name__, 0 if place is None else place.tb_lineno)
        if reason not in self._warned:
            self._warned.add(reason)
            explained = f"{type(error).__name__}: {error}"
            warnings.warn(f"FullGradMonitor: {explained} ({consequence}; FullGradMonitor(strict=True) raises)", stacklevel=2)
