"""Visitors that draw saliency maps: of the terms of one run, or of their averages over several runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Union

import torch
from torch import Tensor, nn

from fg_lightning.fullgrad.bias_hooks import Term
from fg_lightning.fullgrad.decomposition import warn_once
from fg_lightning.fullgrad.image_planes import Planes
from fg_lightning.fullgrad.layout import Layout
from fg_lightning.fullgrad.linearization import Kind, Pointwise, compute_bias, real_product
from fg_lightning.fullgrad.postprocess import (
    EPSILON,
    Factors,
    Psi,
    Rescaling,
    apply_psi,
    describe_value,
    expand_like,
    extremes,
    rescale_together,
    upsample,
)

UserLayout = Callable[[Term, Tensor], Union[Tensor, None]]
"""(term, its values in the shape of the operation's output) -> [N, C, *S] at any resolution, or None if it lies nowhere."""

BLOCK = 1 << 19
"""Numbers in a block for each thread, 2 MiB in float32: smaller blocks cost calls, larger ones leave the caches."""

WAITING = 1 << 24
"""Numbers of the terms that wait on a GPU to be drawn together, 64 MiB in float32."""

_DROWNING = 4.0
"""If the minimum of the magnitudes exceeds their span this many times, it is subtracted before the sum, because of rounding."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(gradient, bias), broadcastable to each other -> the term's values, in a new tensor."""


class TermValues(NamedTuple):
    """The values of a term before they are computed.

    psi passes over a term several times: product, magnitude, minimum, maximum, sum. On a CPU, each pass over a large term goes to
    memory, and each temporary tensor needs new pages. Large terms are therefore computed and reduced in blocks that fit in a core's
    cache. On other devices, a few large kernels are fastest.

    Attributes:
        product: of gradient and bias.
        bias: broadcastable to the gradient, or a function that computes it.
        gradient: in the shape of the operation's output or, on the plane, [N, C, *S].
    """

    product: Product
    bias: Tensor | Pointwise
    gradient: Tensor

    def compute(self) -> Tensor:
        """The values, in the gradient's shape."""
        return self.product(self.gradient, compute_bias(self.bias))

    def are_zero(self) -> bool:
        """Whether the bias is certainly 0 everywhere. False if that would take long to find out."""
        bias = self.bias
        if isinstance(bias, Tensor):
            return bias.numel() < self.gradient.numel() // 8 and not bool(bias.any())
        return bias.is_zero is not None and bias.is_zero(*bias.operands)

    def factorize(self) -> Factors:
        """The values on the plane as a tensor and, if possible, a factor for each channel, which is multiplied later."""
        bias, shape = self.bias, self.gradient.shape
        if self.product is real_product and isinstance(bias, Tensor) and not self.gradient.is_complex():
            if bias.ndim == len(shape) - 1 and bias.numel() == len(bias) == shape[1]:  # [C, 1, ...]
                return self.gradient, bias.flatten()
            strides = bias.expand(shape).stride()
            if all(stride == 0 or size == 1 for i, (stride, size) in enumerate(zip(strides, shape, strict=True)) if i != 1):
                return self.gradient, bias.expand(shape).flatten(2)[0, :, 0]
        return self.compute(), None

    def view(self, view: Callable[[Tensor], Tensor]) -> TermValues:
        """The values after the same view of the gradient and of the bias, which is first expanded to the gradient's shape."""
        shape = self.gradient.shape
        bias = self.bias
        if isinstance(bias, Tensor):
            return TermValues(self.product, view(bias.expand(shape)), view(self.gradient))
        operands = tuple(view(operand.expand(shape)) for operand in bias.operands)
        return TermValues(self.product, Pointwise(bias.function, operands, bias.is_zero), view(self.gradient))

    def to_plane(self, layout: Layout, num_images: int, num_axes: int) -> Tensor | TermValues:
        """The values as [N, C, *S]. C are all dimensions that are neither sample nor place."""
        if layout.is_cut:  # places that were cut off contribute 0, although a bias computed from zeros may not
            return layout.to_plane(self.compute(), num_images, num_axes)
        return self.view(lambda operand: layout.to_plane(operand, num_images, num_axes))

    def add_to(self, total: Tensor) -> None:
        """Adds the values to a tensor of the gradient's shape, on a CPU in blocks, because new memory for all of them is slow."""
        if not works_in_blocks(self.gradient.device):
            total += self.compute()
            return
        start = 0
        for group in self._split(0):
            stop = start + len(group.gradient)
            total[start:stop] += group.compute()
            start = stop

    def reduce_in_blocks(self, psi: Rescaling) -> Tensor:
        """psi of a large term on the plane, [N, *S]."""
        groups = list(self._split(0))
        sums, lows, highs = (torch.cat(parts) for parts in zip(*[group._sum_channels(psi) for group in groups], strict=True))
        offset, span = psi.scale(lows, highs)
        if (offset > _DROWNING * span).any():
            offsets = offset.split([len(group.gradient) for group in groups])
            sums = torch.cat([group._sum_channels(psi, less)[0] for group, less in zip(groups, offsets, strict=True)])
        else:
            sums = sums.sub_(expand_like(offset * self.gradient.shape[1], sums))
        return sums.div_(expand_like(span + EPSILON, sums))

    def _split(self, axis: int) -> Iterator[TermValues]:
        """Blocks along an axis."""
        length = self.gradient.size(axis)
        step = max(1, _block() * length // max(1, self.gradient.numel()))
        for start in range(0, length, step):
            yield self.view(partial(torch.narrow, dim=axis, start=start, length=min(step, length - start)))

    def _sum_channels(self, psi: Rescaling, offset: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The channel sum of the magnitudes, less an offset, [N, *S], and the minima and maxima of the magnitudes, [N] each."""
        fits = self.gradient.numel() <= _block()
        axis = 1 if fits else max(range(1, self.gradient.ndim), key=self._reach_in_memory)
        sums, extreme = [], []
        for block in [self] if fits else self._split(axis):
            values = block.compute()
            magnitude = psi.magnitude(values, out=values)
            extreme.append(extremes(magnitude, psi.has_floor))
            sums.append((magnitude if offset is None else magnitude - expand_like(offset, magnitude)).sum(1))
        if len(sums) == 1:
            return sums[0], *extreme[0]
        low, high = (torch.stack(values) for values in zip(*extreme, strict=True))
        return torch.stack(sums).sum(0) if axis == 1 else torch.cat(sums, axis - 1), low.amin(0), high.amax(0)

    def _reach_in_memory(self, axis: int) -> int:
        """The stride of an axis. Blocks along the axis with the largest stride are contiguous in memory."""
        return self.gradient.stride(axis) if self.gradient.size(axis) > 1 else 0


def works_in_blocks(device: torch.device) -> bool:
    """Whether large terms are reduced block by block: on a CPU, because of its caches. On a GPU each block would cost launches."""
    return device.type == "cpu"


def _block() -> int:
    return BLOCK * torch.get_num_threads()


@dataclass(frozen=True, slots=True)
class MapSettings:
    """How the terms become a map.

    Attributes:
        psi: post-processing of each term.
        product: computes the values of a bias term from gradient and bias.
        kinds: kinds of bias terms that are drawn.
        layout: the user's function that brings a term to the image plane. None: the package does it.
    """

    psi: Psi
    product: Product
    kinds: tuple[Kind, ...]
    layout: UserLayout | None


class TermMap:
    """A `TermVisitor` that draws a map: psi of every term on the image plane, summed.

    For a small term, the calls of a CPU and the launches of a GPU take longer than the computation. Small terms of one plane size
    therefore wait for each other, and psi is computed for all of them together.

    Args:
        images: images of the run, [N, C, *S].
        settings: how the terms become a map.
        number: number of this image input among several. Default: 0.
        reads_values: whether a term may be skipped or computed otherwise because of its values. A run that is recorded must not
            depend on values. Default: True.

    Attributes:
        has_large_terms: whether a term was drawn in blocks.
    """

    def __init__(self, images: Tensor, settings: MapSettings, number: int = 0, *, reads_values: bool = True) -> None:
        self.has_large_terms = False
        self._settings = settings
        self._number = number
        self._num_images = len(images)
        self._size = tuple(images.shape[2:])
        self._planes: dict[torch.Size, Tensor] = {}
        self._waiting: defaultdict[tuple[torch.Size, torch.device], list[Factors]] = defaultdict(list)  # by *S
        self._num_waiting = 0
        self._device = images.device
        self._works_in_blocks = works_in_blocks(images.device) and reads_values
        self._limit = _block() if works_in_blocks(images.device) else WAITING
        self._num_placed = 0
        self._lost: list[Term] = []

    def visit(self, term: Term, bias: Tensor | Pointwise, gradient: Tensor) -> None:
        settings = self._settings
        if term.kind not in settings.kinds:
            return
        whole = TermValues(settings.product, bias, gradient)
        if term.planes is not None:
            selected = self._select_own(term, term.planes, whole)
            if selected is None:
                return
            term, whole = selected
        is_image = settings.layout is None and term.layout.is_image(len(self._size))  # true of most terms
        values = whole if is_image else self._to_plane(term, whole)
        if values is not None:
            self._num_placed += 1
            self._add(term, values)
        elif not term.layout.is_flat:
            self._lost.append(term)

    def visit_input(self, images: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self._add(None, gradients[self._number] * images[self._number])

    def draw(self) -> Tensor:
        """The maps, [N, 1, *S]."""
        self._draw_waiting()
        return torch.stack([upsample(planes, self._size) for planes in self._planes.values()]).sum(0)

    def warn_if_lost(self, model: nn.Module) -> None:
        """Warns if more terms of a run were lost than placed, and resets the counts.

        Terms behind the end of the plane do not count.
        """
        num_lost, num_placed = len(self._lost), self._num_placed
        if num_lost > num_placed:
            warn_once(
                model,
                "lost",
                f"FullGrad draws {num_placed} of {num_placed + num_lost} bias terms of this network: the places of the others in "
                f"the image are not known, from {self._lost[-1]} on. `full_gradients(...).undrawn` lists them. To draw them, pass "
                "a function that brings a term to the image plane: FullGrad(model, layout=...).",
            )
        self._num_placed, self._lost = 0, []

    def _select_own(self, term: Term, planes: Planes, values: TermValues) -> tuple[Term, TermValues] | None:
        """The entries of a term that lie on this image input; None if it only lies on others."""
        if not planes.all or all(self._number in of_entry for of_entry in planes.images):  # without places it is lost for each
            return term, values
        selected = planes.select(term.layout, self._number)
        if selected is None:
            return None
        layout, entries = selected
        index = torch.tensor(entries, device=values.gradient.device)
        return replace(term, layout=layout), values.view(lambda operand: operand.index_select(planes.dim, index))

    def _to_plane(self, term: Term, values: TermValues) -> Tensor | TermValues | None:
        """A term as [N, C, *S]; None if its places are unknown.

        Raises:
            ValueError: if the user's layout returns another shape.
        """
        num_axes = len(self._size)
        is_a_sum = values.gradient.shape == (self._num_images,)
        if self._settings.layout is not None and not is_a_sum:
            plane = self._settings.layout(term, values.compute())
            if isinstance(plane, Tensor) and plane.ndim == num_axes + 2 and len(plane) == self._num_images:
                return plane
            if plane is not None:
                raise ValueError(
                    f"layout must return {term} as [N, C, *S], of {num_axes + 2} dimensions for these {self._num_images} images, "
                    f"or None, but returned {describe_value(plane)}"
                )
        return values.to_plane(term.layout, self._num_images, num_axes) if term.layout.on_plane(num_axes) else None

    def _add(self, term: Term | None, values: Tensor | TermValues) -> None:
        """Draws a term that is on the plane, or lets it wait. `term` is None for the input's."""
        psi = self._settings.psi
        if not isinstance(psi, Rescaling):
            self._add_plane(apply_psi(psi, values if isinstance(values, Tensor) else values.compute()))
            return
        if isinstance(values, TermValues):
            gradient = values.gradient
            if self._works_in_blocks and gradient.numel() > self._limit // 2:
                self.has_large_terms = True
                if self._settings.product is not real_product or not values.are_zero():
                    self._add_plane(values.reduce_in_blocks(psi))
                return
            factors = values.factorize()
        else:
            factors = values, None
        if num_values := factors[0].numel():
            self._waiting[factors[0].shape[2:], factors[0].device].append(factors)
            self._num_waiting += num_values
            if self._num_waiting > self._limit:
                self._draw_waiting()

    def _draw_waiting(self) -> None:
        psi = self._settings.psi
        by_device: defaultdict[torch.device, list[list[Factors]]] = defaultdict(list)
        for (_, device), terms in self._waiting.items():
            by_device[device].append(terms)
        for groups in by_device.values():
            assert isinstance(psi, Rescaling)  # only then do terms wait
            for plane in rescale_together(psi, groups):
                self._add_plane(plane)
        self._waiting.clear()
        self._num_waiting = 0

    def _add_plane(self, plane: Tensor) -> None:
        drawn = self._planes.get(plane.shape)
        plane = plane.to(self._device)  # layers may be on other devices than the images
        self._planes[plane.shape] = plane if drawn is None else drawn + plane


class TermAverage(TermMap):
    """A `TermVisitor` of several runs. It draws the map of the averages of their terms."""

    def __init__(self, images: Tensor, settings: MapSettings, number: int = 0) -> None:
        super().__init__(images, settings, number)
        self._sums: dict[tuple[object, int], Tensor] = {}
        self._met: Counter[object] = Counter()  # how often each operation was met in this run
        self._num_runs = 0

    def visit_input(self, images: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        super().visit_input(images, gradients)
        self._met.clear()
        self._num_runs += 1

    def draw(self) -> Tensor:
        for values in self._sums.values():
            super()._add(None, values.div_(self._num_runs))
        self._sums.clear()
        return super().draw()

    def _add(self, term: Term | None, values: Tensor | TermValues) -> None:
        operation = term and (term.module, term.operation, term.kind)
        self._met[operation] += 1
        key = operation, self._met[operation]
        if key not in self._sums:
            self._sums[key] = values.clone() if isinstance(values, Tensor) else values.compute().contiguous()
        elif isinstance(values, Tensor):
            self._sums[key] += values
        else:
            values.add_to(self._sums[key])
