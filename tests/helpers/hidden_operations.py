"""Networks with operations that no function mode sees, or that hide operations inside."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s + x * s * (1 - s))


class SwishWithContextApart(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    backward = Swish.backward


class TwoOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2, x**3

    @staticmethod
    def backward(ctx, first, second):
        (x,) = ctx.saved_tensors
        return 2 * x * first + 3 * x**2 * second


class TwoOutputsOrNone(TwoOutputs):
    """Its backward gets None for an output that is not used."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return TwoOutputs.forward(ctx, x)

    @staticmethod
    def backward(ctx, first, second):
        (x,) = ctx.saved_tensors
        return (0 if first is None else 2 * x * first) + (0 if second is None else 3 * x**2 * second)


class Squared(torch.autograd.Function):
    """Works in place."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        ctx.mark_dirty(x.square_())
        return x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class SquaredUnnoticed(Squared):
    """Works in place on memory that torch does not watch, as extensions do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        x.data.square_()
        ctx.mark_dirty(x)
        return x


class InnerGraph(torch.autograd.Function):
    """Keeps a graph of its own for the backward pass, which is then cut off from the outer one."""

    @staticmethod
    def forward(ctx, x):
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.y = F.silu(ctx.x)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx, gradient):
        return torch.autograd.grad(ctx.y, ctx.x, gradient, retain_graph=True)[0]


@torch.library.custom_op("fg_lightning_tests::square_plus_one", mutates_args=())
def square_plus_one(x: Tensor) -> Tensor:
    return x * x + 1


square_plus_one.register_autograd(
    lambda ctx, gradient: 2 * ctx.saved_tensors[0] * gradient,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Deformed(nn.Module):
    """A convolution whose offsets and weights depend on the input; torchvision's has one backward pass and no forward mode."""

    def __init__(self):
        super().__init__()
        self.offsets, self.mask = nn.Conv2d(4, 18, 3, padding=1), nn.Conv2d(4, 9, 3, padding=1)
        self.deformed = torchvision.ops.DeformConv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.deformed(x, self.offsets(x), self.mask(x).sigmoid())


class Cells(nn.Module):
    """Rows read one by one; the output of an LSTM cell is made of the cell state that it returns beside it."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(24, 8), nn.GRUCell(8, 8)

    def forward(self, x):
        hidden = cell = state = x.new_zeros(len(x), 8)
        for row in x.unbind(2):
            hidden, cell = self.lstm(row.flatten(1), (hidden, cell))
            state = self.gru(hidden, state)
        return state


class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2 + 1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class ReversedGradient(torch.autograd.Function):
    """Returns its input as it is."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Hooked(nn.Module):
    """Backward hooks wrap a module's inputs and outputs in a custom function that returns them."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.SiLU())
        self.inner.register_full_backward_hook(lambda *_: None)
        self.inner[1].register_full_backward_pre_hook(lambda *_: None)

    def forward(self, x):
        return self.inner(x)


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


class Recurrent(nn.Module):
    """Rows read as a sequence by an LSTM with the batch first, then by a GRU with the batch second."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(24, 8, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 24)

    def forward(self, x):
        hidden = self.lstm(x.transpose(1, 2).flatten(2))[0]
        sequence, last = self.gru(hidden.transpose(0, 1))
        return sequence.transpose(0, 1) + last.transpose(0, 1)


def transformer(**options):
    return nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(36, 4, 48, batch_first=True, **options))


swish = Swish.apply  # bound where the class is defined, as torch's documentation suggests

HIDING: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "custom function": lambda: lambda x: Swish.apply(x),
    "custom function, bound early": lambda: swish,
    "custom function with its context apart": lambda: SwishWithContextApart.apply,
    "custom function with two outputs": lambda: lambda x: torch.cat(TwoOutputs.apply(x), 1),
    "custom function, one of two outputs used": lambda: lambda x: TwoOutputs.apply(x)[1],
    "custom function, one of two outputs used, the other None": lambda: lambda x: TwoOutputsOrNone.apply(x)[1],
    "custom function that works in place": lambda: lambda x: Squared.apply(x + 1),
    "custom function that works in place on another's output": lambda: lambda x: Squared.apply(swish(x)),
    "custom function that works in place, unnoticed": lambda: lambda x: SquaredUnnoticed.apply(x + 1),
    "custom function that can be differentiated once": lambda: OnlyOnce.apply,
    "custom function with a graph of its own": lambda: InnerGraph.apply,
    "custom operation": lambda: square_plus_one,
    "deformable convolution": Deformed,
    "variance without its mean": lambda: lambda x: torch.var_mean(x, (2, 3))[0],
    "R of a QR decomposition": lambda: lambda x: torch.linalg.qr(x)[1],
    "LSTM and GRU cells": Cells,
    "custom function twice": lambda: lambda x: swish(swish(x)),
    "custom function that returns its input": lambda: ReversedGradient.apply,
    "module with backward hooks": Hooked,
    "checkpoint, reentrant": lambda: lambda x: checkpoint(lambda y: F.gelu(y + 1), x, use_reentrant=True),
    "checkpoint": lambda: lambda x: checkpoint(lambda y: F.gelu(y + 1), x, use_reentrant=False),
    "vmap": lambda: torch.vmap(lambda y: F.silu(y) @ y.mT),
    "vmap over weights": lambda: lambda x: torch.vmap(torch.mul, (None, 0), 1)(x, torch.arange(3.0).double()).flatten(1, 2).exp(),
    "torch.func.grad": lambda: torch.func.grad(lambda y: (y**3).sum()),
    "compiled function": lambda: torch.compile(lambda x: F.silu(x) * 2),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    "weight-standardised convolution": lambda: StandardisedConv(4, 4, 3),
    "LSTM and GRU": Recurrent,
    "attention": lambda: transformer(),
    "attention, norm first": lambda: transformer(norm_first=True, activation="gelu"),
}


class Around(nn.Module):
    """A convolution, what is tried, and a linear head."""

    def __init__(self, inner: Callable[[Tensor], Tensor]):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.inner = inner
        self.head = nn.LazyLinear(5)

    def forward(self, images):
        return self.head(self.inner(self.conv(images)).flatten(1))


def around(inner: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, images = Around(inner).double().eval(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.compiler.set_stance("force_eager"):
        model(images)  # lets the head know its size
    return model, images
