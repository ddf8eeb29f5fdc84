"""Compare your own attribution method with FullGrad and random by remove-and-retrain: python examples/judge_your_method.py

A method is a function of the network's scores and the images. It returns a map, at least 0, for each image. This one uses the
gradient halfway to a black image. The script runs fourteen short trainings on digits, six of them on the masks alone. It writes
results.csv and curves.png to judged/.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fg_lightning.attribution import METHODS, Scores, channel_sum, method_from
from fg_lightning.demo import DigitClassifier, DigitsDataModule
from fg_lightning.roar import ROARExperiment


def halfway_gradient(scores: Scores, images: Float[Tensor, "n c h w"], *, black: float = -1.0) -> Float[Tensor, "n 1 h w"]:
    """The magnitude of the gradient halfway to black.

    Args:
        scores: function that gives the explained outputs [N] of any version of the images.
        images: input of the network, [N, C, H, W].
        black: value of a black pixel. Default: -1.
    """
    middle = ((images.detach() + black) / 2).requires_grad_()
    (gradient,) = torch.autograd.grad(scores(middle).sum(), middle)
    return channel_sum(gradient)


METHODS["halfway_gradient"] = method_from(halfway_gradient)

if __name__ == "__main__":
    experiment = ROARExperiment(
        "judged",
        DigitsDataModule,
        DigitClassifier,
        methods=["random", "fullgrad", "halfway_gradient"],
        fractions=[0.3, 0.7],
        num_seeds=1,  # more, for confidence bands and p-values
        max_epochs=1,
    )
    for score in experiment.run().scores():
        print(f"{score.method:18} area above random {score.area:+.4f}, masks alone reach {score.masks_accuracy_mean:.3f}")
    print("curves", experiment.output / "curves.png")
