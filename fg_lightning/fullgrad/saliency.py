"""FullGrad, SimpleFullGrad and SmoothFullGrad: saliency maps from the full-gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Union, overload

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor, nn

from fg_lightning.fullgrad.bias_hooks import TermVisitor
from fg_lightning.fullgrad.decomposition import FullGradients, TermSums, decompose, is_check_due, warn_if_incomplete
from fg_lightning.fullgrad.forward_backward import Batch, OneOrSeveral, Run, run_alone_if_mixed, run_forward_backward
from fg_lightning.fullgrad.linearization import Kind, real_product
from fg_lightning.fullgrad.postprocess import Psi, Rescaling, find_psi
from fg_lightning.fullgrad.readings import Reading, find_reading
from fg_lightning.fullgrad.repeated_runs import RepeatedRun, RepeatedRuns
from fg_lightning.fullgrad.target import Target, check_finite
from fg_lightning.fullgrad.term_map import MapSettings, TermAverage, TermMap, UserLayout


@dataclass(frozen=True, slots=True, eq=False)
class SaliencyMaps:
    """The maps of a batch, with its output and terms.

    Attributes:
        maps: maps of each image input, [N, 1, *S].
        output: the explained output, [N].
        terms: terms of the decomposition. None if they were not summed.
    """

    maps: tuple[Tensor, ...]
    output: Tensor
    terms: FullGradients | None

    @classmethod
    def concatenate(cls, parts: Sequence[SaliencyMaps], unbatched_by: str | None = None) -> SaliencyMaps:
        """The maps of a batch from those of its parts, see `FullGradients.concatenate`."""
        terms = [part.terms for part in parts if part.terms is not None]
        return cls(
            tuple(torch.cat(of_input) for of_input in zip(*(part.maps for part in parts), strict=True)),
            torch.cat([part.output for part in parts]),
            FullGradients.concatenate(terms, unbatched_by) if len(terms) == len(parts) else None,
        )


class FullGrad(Attribution):
    """FullGrad (Srinivas & Fleuret 2019): psi of the input's term plus psi of every bias term that lies on the image plane.

        map(x) = psi(grad_x f * x) + sum over operations of psi(grad_y f * b)

    FullGrad warns once for each network if the terms miss more than 1 % of its output (10 % under autocast). The warning names the
    operation if it is known.

    FullGrad is a `captum.attr.Attribution` and works with Captum's tools (NoiseTunnel, sensitivity, infidelity). The model runs in
    evaluation mode. Its flags, gradients and hooks and the random state are restored.

    Args:
        model: any network of differentiable operations.
        psi: post-processing of a term: "absolute" (as in the authors' code), "positive", "signed" (maps may be negative), or a
            function from a term [N, C, *S] to a plane [N, *S], which is then upsampled. Default: "absolute".
        implicit: whether the map contains the implicit biases of non-linearities. Default: True.
        reading: "exact"; or "locally_affine", which holds the statistics of norms, attention weights and the gates of GELU and SiLU
            constant (LibraGrad, Mehri et al. 2025), so that transformers are complete with explicit biases alone. Default: "exact".
        layout: function that places a term on the image plane if the package cannot: (term, tensor) -> the tensor as [N, C, *S], at
            any resolution, or None to leave it to the package. A term has the attributes module and operation. Default: None.
        autocast: whether to keep autocast, active around the call or entered by the forward. Default: False: everything runs in the
            precision of the parameters.
        graphed: whether the operations of two runs are recorded, and repeated without the model's Python code for later batches of
            the same shapes, memory layouts, types and devices; on a CUDA device as a CUDA graph, which starts all kernels at once
            and keeps the memory of one map. It pays for small batches, and on a GPU; on a CPU, batches with terms of more than
            262,144 numbers a thread are not repeated. Weights may change in place. If the model gets other tensors, modules or
            attributes, its code runs again. It also runs in calls 1, 2, 4, 8 ..., to check the recording, and at every call if it
            has hooks or reads values in Python; the logger of this package tells why, at level INFO. Whatever else the code depends
            on, such as global variables, must not change. Default: False.

    Raises:
        TypeError: if the model is not a torch.nn.Module.
        ValueError: if psi or the reading is unknown.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> FullGrad(model).attribute(torch.rand(2, 1, 8, 8), target=3).shape
        torch.Size([2, 1, 8, 8])
    """

    is_complete = True  # whether the map contains all terms

    def __init__(
        self,
        model: nn.Module,
        *,
        psi: Union[str, Psi] = "absolute",
        implicit: bool = True,
        reading: Reading = "exact",
        layout: UserLayout | None = None,
        autocast: bool = False,
        graphed: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        super().__init__(model)
        self.model = model
        self.psi = find_psi(psi)
        self.implicit = implicit
        find_reading(reading)  # raises ValueError if it is unknown
        self.reading = reading
        self.layout = layout
        self.autocast = autocast
        self.graphed = graphed
        self._repeated = RepeatedRuns()

    @overload  # type: ignore[override]
    def attribute(self, inputs: Tensor, target: Target = None, additional_forward_args: Any = None) -> Tensor: ...

    @overload
    def attribute(
        self, inputs: tuple[Tensor, ...], target: Target = None, additional_forward_args: Any = None
    ) -> tuple[Tensor, ...]: ...

    @log_usage()
    def attribute(self, inputs: OneOrSeveral, target: Target = None, additional_forward_args: Any = None) -> OneOrSeveral:
        """The saliency maps of a batch.

        Args:
            inputs: input of the model, floating-point, [N, C, *S] with one, two or three spatial dimensions; or a tuple of such
                tensors for a model with several image inputs as its first arguments.
            target: class to explain: one for all samples; one for each sample, [N] as list or tensor; a tuple of indices for a
                dense output; or a function from the model's output to [N]. Default: the predicted class.
            additional_forward_args: further arguments of the model's forward after the images, one value or a tuple. Default: none.

        Returns:
            Maps [N, 1, *S], at least 0 (except for psi="signed"), in the unit of psi: a sum of terms, each rescaled to [0, 1].
            For a tuple of images, a tuple of maps: each has its image's input term and the bias terms that lie on this image. If
            the model combines images place by place, for example by a sum or a concatenation of channels, later terms lie on all
            of them.

        Raises:
            TypeError: if the images are not floating-point, or the target is of an unknown kind.
            ValueError: if shapes or the target do not fit, or the output is not finite, does not depend on the images, or mixes
                samples.
        """
        maps = self._explain(Batch.of(self.model, inputs, target, additional_forward_args), sum_terms=False).maps
        return maps if isinstance(inputs, tuple) else maps[0]

    @overload
    def attribute_with_terms(
        self, inputs: Tensor, target: Target = None, additional_forward_args: Any = None
    ) -> tuple[Tensor, FullGradients]: ...

    @overload
    def attribute_with_terms(
        self, inputs: tuple[Tensor, ...], target: Target = None, additional_forward_args: Any = None
    ) -> tuple[tuple[Tensor, ...], FullGradients]: ...

    def attribute_with_terms(
        self, inputs: OneOrSeveral, target: Target = None, additional_forward_args: Any = None
    ) -> tuple[OneOrSeveral, FullGradients]:
        """The maps of `attribute` and the terms of `full_gradients`, from one forward and one backward pass.

        Arguments and errors are those of `attribute`.
        """
        explained = self._explain(Batch.of(self.model, inputs, target, additional_forward_args), sum_terms=True)
        assert explained.terms is not None
        return explained.maps if isinstance(inputs, tuple) else explained.maps[0], explained.terms

    def _explain(self, batch: Batch, *, sum_terms: bool) -> SaliencyMaps:
        return run_alone_if_mixed(partial(self._draw, sum_terms=sum_terms), batch)

    def _draw(self, batch: Batch, *, sum_terms: bool) -> SaliencyMaps:
        """The maps of images that are run together.

        Two checks are made if terms are asked for, and otherwise in runs 1, 2, 4, 8 and so on of the network, because they take
        time: whether the terms add up, with a warning if not, and whether constants that the model makes mix its samples. If
        `graphed`, other runs are recorded and repeated.
        """
        is_due = is_check_due(self.model, (self.reading, self.is_complete)) or sum_terms
        repeated = None if sum_terms else self._find_repeated(batch)
        if repeated is not None and not is_due and (results := repeated.repeat(batch)) is not None:
            check_finite(results[-1])
            return SaliencyMaps(results[:-1], results[-1], None)
        is_checked = self.is_complete and is_due
        term_maps = [TermMap(images, self._settings(), number) for number, images in enumerate(batch.images)]
        sums = TermSums(len(batch)) if sum_terms or is_checked else None
        run = self._run(batch, term_maps, sums, check_samples=is_due)
        terms = sums.collect(run) if sums else None
        if terms and is_checked:
            self._warn_if_incomplete(terms)
        maps = tuple(term_map.draw() for term_map in term_maps)
        if repeated is not None and not any(term_map.has_large_terms for term_map in term_maps):
            repeated.learn(batch, run, (*maps, run.output), self._draw_unchecked)
        return SaliencyMaps(maps, run.output, terms)

    def _find_repeated(self, batch: Batch) -> RepeatedRun | None:
        is_own_function = self.layout is not None or not isinstance(self.psi, Rescaling)  # whose variables may change
        if not self.graphed or is_own_function:
            return None
        device = batch.images[0].device.type
        precision = torch.get_autocast_dtype(device) if self.autocast and torch.is_autocast_enabled(device) else None
        settings = self._settings(), self.reading, precision
        return self._repeated.find(self.model, batch, settings)

    def _draw_unchecked(self, batch: Batch) -> list[Tensor]:
        """Maps and output of a run that does not read values, so that it can be recorded."""
        settings = self._settings()
        term_maps = [TermMap(images, settings, number, reads_values=False) for number, images in enumerate(batch.images)]
        run = run_forward_backward(self.model, batch, term_maps, reading=self.reading, autocast=self.autocast, check_samples=False)
        return [*(term_map.draw() for term_map in term_maps), run.output]

    def _run(self, batch: Batch, term_maps: Sequence[TermMap], sums: TermSums | None, *, check_samples: bool) -> Run:
        """One forward and one backward pass. Warns if most terms cannot be drawn."""
        visitors: list[TermVisitor] = [sums, *term_maps] if sums else [*term_maps]
        run = run_forward_backward(
            self.model, batch, visitors, reading=self.reading, autocast=self.autocast, check_samples=check_samples
        )
        for term_map in term_maps:
            term_map.warn_if_lost(self.model)
        return run

    def _warn_if_incomplete(self, terms: FullGradients) -> None:
        is_rounded = self.autocast and torch.is_autocast_enabled(terms.output.device.type)
        warn_if_incomplete(self.model, terms, is_rounded=is_rounded)

    def _settings(self) -> MapSettings:
        """Which terms are drawn, and how."""
        kinds: tuple[Kind, ...] = ("explicit", "implicit") if self.implicit else ("explicit",)
        return MapSettings(self.psi, real_product, kinds, self.layout)


class SimpleFullGrad(FullGrad):
    """FullGrad without bias factors: psi of gradient * input, plus psi of the gradient wherever an explicit bias is added.

        map(x) = psi(grad_x f * x) + sum over operations with an explicit bias of psi(grad_y f)

    The source is the authors' `simple_fullgrad.py`. The map does not contain all terms.
    """

    is_complete = False

    def _settings(self) -> MapSettings:
        return MapSettings(self.psi, _copy_gradient, ("explicit",), self.layout)


def _copy_gradient(gradient: Tensor, bias: Tensor) -> Tensor:
    return gradient.abs() if gradient.is_complex() else gradient.clone()


class SmoothFullGrad(FullGrad):
    """FullGrad with every term averaged over noisy versions of the image, as SmoothGrad (Smilkov et al. 2017) averages gradients.

        map(x) = psi(mean of grad_x f * x) + sum over operations of psi(mean of grad_y f * b),   the means over x + noise

    Terms are averaged before psi computes their magnitude, so contributions whose sign changes under noise cancel. Each sample
    costs a forward and a backward pass, and the image without noise one more. Every average has the size of its operation's output.
    Therefore a batch runs in parts: it needs no more memory than FullGrad for the whole batch; a single image needs about twice
        that.

    The arguments psi, implicit, reading, layout and autocast are those of `FullGrad`.

    Args:
        model: any network of differentiable operations.
        num_samples: number of noisy versions of each image. Default: 50.
        noise: standard deviation of the Gaussian noise, as a share of the image's range (maximum - minimum). Default: 0.15.
        seed: seed of the noise, which is the same for every image in any batch. The global random state does not change. Default:
            0.
        internal_batch_size: number of images that are run together. Default: a third of the batch.

    Raises:
        TypeError: if the model is not a torch.nn.Module.
        ValueError: if psi or the reading is unknown, or num_samples, noise or internal_batch_size is out of range.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> SmoothFullGrad(model, num_samples=3).attribute(torch.rand(2, 1, 8, 8), target=3).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_samples: int = 50,
        noise: float = 0.15,
        seed: int = 0,
        internal_batch_size: int | None = None,
        psi: Union[str, Psi] = "absolute",
        implicit: bool = True,
        reading: Reading = "exact",
        layout: UserLayout | None = None,
        autocast: bool = False,
    ) -> None:
        super().__init__(model, psi=psi, implicit=implicit, reading=reading, layout=layout, autocast=autocast)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        if noise < 0:
            raise ValueError(f"noise must be at least 0, a share of the image's range, not {noise}")
        if internal_batch_size is not None and internal_batch_size < 1:
            raise ValueError(f"internal_batch_size must be at least 1, not {internal_batch_size}")
        self.num_samples = num_samples
        self.noise = noise
        self.seed = seed
        self.internal_batch_size = internal_batch_size

    def _explain(self, batch: Batch, *, sum_terms: bool) -> SaliencyMaps:
        """First decomposes the images without noise: this gives the predicted classes, and shows whether samples must run alone."""
        clean = decompose(self.model, batch, autocast=self.autocast)
        self._warn_if_incomplete(clean)
        size = len(batch) if callable(batch.target) else self.internal_batch_size or max(1, len(batch) // 3)
        size = 1 if clean.unbatched_by else size  # a function of the output may need the whole batch
        batch = replace(batch, target=clean.target) if batch.target is None else batch
        parts = [self._draw(batch.rows(i, i + size), sum_terms=sum_terms) for i in range(0, len(batch), size)]
        return SaliencyMaps.concatenate(parts, clean.unbatched_by)

    def _draw(self, batch: Batch, *, sum_terms: bool) -> SaliencyMaps:
        averages = [TermAverage(images, self._settings(), number) for number, images in enumerate(batch.images)]
        outputs, terms = [], []
        for images in self._noisy_versions(batch.images):
            sums = TermSums(len(batch)) if sum_terms else None
            run = self._run(replace(batch, images=images), averages, sums, check_samples=False)  # the clean images were checked
            outputs.append(run.output)
            if sums:
                terms.append(sums.collect(run))
        maps = tuple(average.draw() for average in averages)
        return SaliencyMaps(maps, torch.stack(outputs).mean(0), FullGradients.average(terms) if terms else None)

    def _noisy_versions(self, inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(self.seed)
        deviations = []
        for images in inputs:
            flat = images.detach().flatten(1)
            deviations.append(self.noise * (flat.amax(1) - flat.amin(1)).reshape(-1, *(1,) * (images.ndim - 1)))
        for _ in range(self.num_samples):
            yield tuple(
                images + deviation * torch.randn(images.shape[1:], generator=generator).to(images)
                for images, deviation in zip(inputs, deviations, strict=True)
            )
