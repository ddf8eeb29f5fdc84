"""SmoothFullGrad: FullGrad of the terms averaged over noisy versions of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Any, Union

import torch
from torch import Tensor, nn

from fg_lightning.fullgrad.bias_hooks import Term
from fg_lightning.fullgrad.decomposition import FullGradients, TermSums, averaged, joined, record
from fg_lightning.fullgrad.entry import as_tuple, check_images, one_by_one_if_mixed, rows_of
from fg_lightning.fullgrad.postprocess import Psi, TermValues, reduced
from fg_lightning.fullgrad.readings import Reading
from fg_lightning.fullgrad.saliency import Canvas, FullGrad, UserLayout
from fg_lightning.fullgrad.target import Selection, Target


class SmoothFullGrad(FullGrad):
    """FullGrad with every term averaged over noisy versions of the image, as SmoothGrad (Smilkov et al. 2017) averages gradients.

        map(x) = psi(mean of grad_x f * x) + sum over operations of psi(mean of grad_y f * b),   the means over x + noise

    The terms are averaged before psi takes their magnitude, so that what changes its sign under noise fades out. One sample costs a
    forward and a backward pass; one more such pass looks at the image itself. Every average has the size of its operation's output,
    so that the images of a batch go in portions: a batch then needs no more memory than one FullGrad map of it, a single image
    about twice that.

    Args:
        model: any network of differentiable operations.
        num_samples: how many noisy versions of each image.
        noise: the standard deviation of the Gaussian noise, as a share of the image's range (maximum - minimum).
        seed: of the noise, which is the same for every image whatever the batch around it; no global random state is touched.
        internal_batch_size: how many images go together; None for a third of the batch.
        psi: as in `FullGrad`.
        implicit: as in `FullGrad`.
        reading: as in `FullGrad`.
        layout: as in `FullGrad`.
        autocast: as in `FullGrad`.

    Raises:
        TypeError: if the model is no module.
        ValueError: if there is no psi of that name, or num_samples, noise or internal_batch_size is out of range.

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

    def _drawn(
        self, inputs: Tensor, target: Target, additional_forward_args: Any, *, with_terms: bool
    ) -> tuple[Tensor, FullGradients | Tensor]:
        check_images(self.model, inputs)
        n, arguments = len(inputs), as_tuple(additional_forward_args)
        predicted, mixing = self._looked_over(inputs, target, arguments)
        together = n if callable(target) else self.internal_batch_size or max(1, n // 3)  # a function wants its batch
        together = 1 if mixing else together
        target = predicted if target is None else target
        portions = [rows_of(inputs, target, arguments, start, start + together) for start in range(0, n, together)]
        maps, terms = zip(*[self._averaged_map(*portion, with_terms) for portion in portions], strict=True)
        return torch.cat(maps), joined(list(terms), mixing) if with_terms else torch.cat(terms)

    def _looked_over(self, images: Tensor, target: Target, arguments: tuple[Any, ...]) -> tuple[Tensor | None, str | None]:
        """The classes predicted for the images as they are, and the operation that mixes samples, so that each goes alone.

        Warns where the terms of these images do not add up.

        Raises:
            ValueError: if the model's output for an image depends on the others.
        """

        def look(images: Tensor, target: Target, arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor | None, str | None]:
            selection, sums = Selection(target, len(images)), TermSums(len(images))
            recording = record(self.model, images, selection, sums.visit, additional_forward_args=arguments, autocast=self.autocast)
            self._warn_if_incomplete(sums.collected(recording, selection.target), images.device)
            return recording.output, selection.target, None

        def join(parts: list[tuple[Tensor, Tensor | None, str | None]], operation: str) -> tuple[Tensor, Tensor | None, str | None]:
            classes = [part[1] for part in parts if part[1] is not None]
            return torch.cat([part[0] for part in parts]), torch.cat(classes) if classes else None, operation

        _, predicted, mixing = one_by_one_if_mixed(look, images, target, arguments, join, lambda part: part[0])
        return predicted, mixing

    def _averaged_map(
        self, images: Tensor, target: Target, arguments: tuple[Any, ...], with_terms: bool
    ) -> tuple[Tensor, FullGradients | Tensor]:
        sums: dict[Hashable, Tensor] = {}
        results: list[Any] = []
        for noisy in self._noisy_versions(images):
            met: Counter[Hashable] = Counter()

            def place(term: Term | None, values: Tensor | TermValues, met: Counter[Hashable] = met) -> None:
                operation = term and (term.module, term.operation, term.kind)
                met[operation] += 1
                _add(sums, (operation, met[operation]), values)

            results.append(self._run(noisy, target, arguments, with_terms, place))
        canvas = Canvas(images)
        for values in sums.values():
            canvas.add(reduced(values.div_(self.num_samples), self.psi))
        return canvas.drawn(), averaged(results) if with_terms else torch.stack(results).mean(0)

    def _noisy_versions(self, images: Tensor) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        flat = images.detach().flatten(1)
        deviation = self.noise * (flat.amax(1) - flat.amin(1)).reshape(-1, *(1,) * (images.ndim - 1))
        for _ in range(self.num_samples):
            yield images + deviation * torch.randn(images.shape[1:], generator=generator).to(images)


def _add(sums: dict[Hashable, Tensor], key: Hashable, values: Tensor | TermValues) -> None:
    """Add a term to its sum; on a CPU, where the values of a batch at once would be fresh pages, a block at a time."""
    if key not in sums:
        sums[key] = values.clone() if isinstance(values, Tensor) else values.all().contiguous()
    elif isinstance(values, Tensor):
        sums[key] += values
    else:
        values.add_to(sums[key])
