"""FullGrad and SimpleFullGrad: saliency maps from the full-gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

import torch
from captum.attr import Attribution
from captum.log import log_usage
from jaxtyping import Float
from torch import Tensor, nn

from fg_lightning.fullgrad.bias_hooks import Term
from fg_lightning.fullgrad.decomposition import FullGradients, TermSums, joined, record
from fg_lightning.fullgrad.entry import as_tuple, check_images, one_by_one_if_mixed
from fg_lightning.fullgrad.linearization import Pointwise, real_product
from fg_lightning.fullgrad.postprocess import Psi, TermValues, find_psi, kind_of, reduced, upsample
from fg_lightning.fullgrad.readings import Reading, operations_of
from fg_lightning.fullgrad.target import Selection, Target
from fg_lightning.fullgrad.warning import warn_if_incomplete, warn_once

UserLayout = Callable[[Term, Tensor], Union[Tensor, None]]
"""(term, its values in the shape of the operation's output) -> [N, C, *S] at any resolution, or None."""

OneOrTuple = Union[Tensor, tuple[Tensor]]

Place = Callable[[Union[Term, None], Union[Tensor, TermValues]], None]
"""Called with (term, its values on the image plane, [N, C, *S]), None for the term of the input."""


class FullGrad(Attribution):
    """FullGrad (Srinivas & Fleuret 2019): psi of the input's term plus psi of every bias term that lies on the image plane.

        map(x) = psi(grad_x f * x) + sum over operations of psi(grad_y f * b)

    Where the terms of a network miss more than 1 % of its output (10 % under autocast), a warning says so, once, with the operation
    where it is known.

    A `captum.attr.Attribution`: what takes one of Captum's (NoiseTunnel, sensitivity, infidelity) takes this. The model is left as
    it was: flags, gradients, hooks and random state.

    Args:
        model: any network of differentiable operations.
        psi: post-processing: "absolute" (the paper's), "positive", "signed" (whose maps may be negative), or a function from a term
            [N, C, *S] to a plane [N, *S], which is then upsampled.
        implicit: whether the implicit biases of non-linearities count, as they must for the terms to be complete.
        reading: "exact", or "locally_affine" to hold the statistics of norms, attention weights and the gates of GELU and SiLU
            constant (LibraGrad, Mehri et al. 2025), so that transformers are complete with explicit biases alone.
        layout: tells how a term lies on the image plane where the package does not know: a function of the term (module, operation)
            and its tensor that returns the tensor as [N, C, *S], at any resolution, or None to leave it to the package.
        autocast: keep an active autocast; by default everything runs in the parameters' own precision.

    Raises:
        TypeError: if the model is no module.
        ValueError: if there is no psi of that name.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> FullGrad(model).attribute(torch.rand(2, 1, 8, 8), target=3).shape
        torch.Size([2, 1, 8, 8])
    """

    is_complete = True  # whether the map is of all terms

    def __init__(
        self,
        model: nn.Module,
        *,
        psi: Union[str, Psi] = "absolute",
        implicit: bool = True,
        reading: Reading = "exact",
        layout: UserLayout | None = None,
        autocast: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        super().__init__(model)
        self.model = model
        self.psi = find_psi(psi)
        self.implicit = implicit
        operations_of(reading)  # raises where there is none
        self.reading = reading
        self.layout = layout
        self.autocast = autocast
        self._calls = 0

    @log_usage()
    def attribute(  # type: ignore[override]
        self, inputs: OneOrTuple, target: Target = None, additional_forward_args: Any = None
    ) -> OneOrTuple:
        """The saliency maps of a batch.

        Args:
            inputs: images [N, C, *S] with one, two or three spatial dimensions, floating-point, as the model takes them; or a tuple
                of that one tensor, as some of Captum's tools pass it.
            target: the class to explain: one for all samples, one for each ([N] as list or tensor), a tuple of indices for a dense
                output; None for the predicted class; or a function from the model's output to [N].
            additional_forward_args: what the model's forward takes after the images, one value or a tuple.

        Returns:
            Maps [N, 1, *S], at least 0 (but for psi="signed"), in units of psi: a sum of terms each rescaled to [0, 1]. A tuple of
            them for a tuple.

        Raises:
            TypeError: if the images are not floating-point or the target is of no known kind.
            ValueError: if shapes or targets do not fit, the output is not finite, does not depend on the images, or mixes samples.
        """
        images = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
        maps, _ = self._drawn(images, target, additional_forward_args, with_terms=False)
        return (maps,) if isinstance(inputs, tuple) else maps

    def attribute_with_terms(
        self, inputs: Float[Tensor, "n c *s"], target: Target = None, additional_forward_args: Any = None
    ) -> tuple[Float[Tensor, "n 1 *s"], FullGradients]:
        """The maps of `attribute` and the numbers of `full_gradients`, from one forward and one backward pass.

        Takes and raises what `attribute` does.
        """
        maps, terms = self._drawn(inputs, target, additional_forward_args, with_terms=True)
        assert isinstance(terms, FullGradients)
        return maps, terms

    def _drawn(
        self, inputs: Tensor, target: Target, additional_forward_args: Any, *, with_terms: bool
    ) -> tuple[Tensor, FullGradients | Tensor]:
        """Maps, and the terms or else the explained output alone."""
        check_images(self.model, inputs)

        def draw(images: Tensor, target: Target, arguments: tuple[Any, ...]) -> tuple[Tensor, FullGradients | Tensor]:
            return self._map(images, target, arguments, with_terms)

        def join(parts: list[tuple[Tensor, FullGradients | Tensor]], operation: str) -> tuple[Tensor, FullGradients | Tensor]:
            maps, terms = zip(*parts, strict=True)
            return torch.cat(maps), joined(list(terms), operation) if with_terms else torch.cat(terms)

        def output_of(part: tuple[Tensor, FullGradients | Tensor]) -> Tensor:
            return part[1].output if isinstance(part[1], FullGradients) else part[1]

        return one_by_one_if_mixed(draw, inputs, target, as_tuple(additional_forward_args), join, output_of)

    def _map(
        self, images: Tensor, target: Target, arguments: tuple[Any, ...], with_terms: bool
    ) -> tuple[Tensor, FullGradients | Tensor]:
        """The maps of images that are run together, and the terms or else the explained output alone.

        Warns where the terms do not add up. Every call that wants them looks, any other the first, second, fourth, eighth time and
        so on, since a sum costs a pass over the term.
        """
        self._calls += 1
        adds_up = self.is_complete and (with_terms or self._calls.bit_count() == 1)
        canvas = Canvas(images)
        place: Place = lambda _, values: canvas.add(reduced(values, self.psi))  # noqa: E731
        terms = self._run(images, target, arguments, with_terms or adds_up, place)
        if isinstance(terms, FullGradients):
            if adds_up:
                self._warn_if_incomplete(terms, images.device)
            terms = terms if with_terms else terms.output
        return canvas.drawn(), terms

    def _warn_if_incomplete(self, terms: FullGradients, device: torch.device) -> None:
        warn_if_incomplete(self.model, terms, is_rounded=self.autocast and torch.is_autocast_enabled(device.type))

    def _run(
        self, images: Tensor, target: Target, arguments: tuple[Any, ...], with_terms: bool, place: Place
    ) -> FullGradients | Tensor:
        """One forward and one backward pass, in which `place` gets what of every term that counts lies on the image plane.

        Warns where more terms are lost than placed, those behind the plane's end left aside.
        """
        placed: list[Term] = []
        lost: list[Term] = []
        selection, sums, axes = Selection(target, len(images)), TermSums(len(images)), images.ndim - 2

        def visit(term: Term, bias: Tensor | Pointwise, gradient: Tensor) -> None:
            if with_terms:
                sums.visit(term, bias, gradient)
            if not self._counts(term):
                return
            values = TermValues(self._values, bias, gradient)
            given = self._laid_out(term, values, images) if self.layout and gradient.shape != (len(images),) else None
            if given is not None or term.layout.on_plane(axes):
                placed.append(term)
                place(term, values.on_plane(term.layout, len(images), axes) if given is None else given)
            elif not term.layout.is_flat:
                lost.append(term)

        recording = record(
            self.model,
            images,
            selection,
            visit,
            additional_forward_args=arguments,
            reading=self.reading,
            autocast=self.autocast,
        )
        place(None, recording.input_gradient * recording.images)
        if len(lost) > len(placed):
            warn_once(
                self.model,
                "lost",
                f"FullGrad draws {len(placed)} of {len(placed) + len(lost)} bias terms of this network: where in the image the "
                f"others lie is not known, from {lost[-1]} on. `full_gradients(...).undrawn` names them, and "
                "FullGrad(model, layout=...) takes a function that says how they lie.",
            )
        return sums.collected(recording, selection.target) if with_terms else recording.output

    def _laid_out(self, term: Term, values: TermValues, images: Tensor) -> Tensor | None:
        """A term as the user's layout lies it on the plane.

        Raises:
            ValueError: if that is no [N, C, *S].
        """
        assert self.layout is not None
        given = self.layout(term, values.all())
        if given is None or (isinstance(given, Tensor) and given.ndim == images.ndim and len(given) == len(images)):
            return given
        raise ValueError(
            f"layout must return {term} as [N, C, *S], of {images.ndim} dimensions for these {len(images)} images, "
            f"or None, but returned {kind_of(given)}"
        )

    def _counts(self, term: Term) -> bool:
        return term.kind == "explicit" or self.implicit

    def _values(self, bias: Tensor, gradient: Tensor) -> Tensor:
        """What of a term is drawn, in the shape of the operation's output."""
        return real_product(gradient, bias)


class SimpleFullGrad(FullGrad):
    """FullGrad without biases: psi of the gradients alone, at the input and wherever an explicit bias is added.

        map(x) = psi(grad_x f * x) + sum over operations with an explicit bias of psi(grad_y f)

    After the authors' `simple_fullgrad.py`: cheaper to read where biases are small, but not complete.
    """

    is_complete = False

    def _counts(self, term: Term) -> bool:
        return term.kind == "explicit"

    def _values(self, bias: Tensor, gradient: Tensor) -> Tensor:
        return gradient.abs() if gradient.is_complex() else gradient.clone()


class Canvas:
    """The map in the making: planes of one size are summed as they come and upsampled once."""

    def __init__(self, images: Tensor) -> None:
        self.n = len(images)
        self.size = tuple(images.shape[2:])
        self.axes = len(self.size)
        self._planes: dict[torch.Size, Tensor] = {}

    def add(self, planes: Tensor) -> None:
        """
        Args:
            planes: [N, *S'], at any resolution.
        """
        drawn = self._planes.get(planes.shape)
        self._planes[planes.shape] = planes if drawn is None else drawn + planes

    def drawn(self) -> Tensor:
        """[N, 1, *S]"""
        return torch.stack([upsample(planes, self.size) for planes in self._planes.values()]).sum(0)
