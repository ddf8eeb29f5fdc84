"""fg-lightning explain."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Union

from jsonargparse.typing import ClosedUnitInterval, PositiveInt


def explain(
    images: Union[str, list[str]],
    model: str = "resnet50",
    methods: Union[str, list[str]] = "gradient,integrated_gradients,gradcam,fullgrad",
    target: Union[int, str, None] = None,
    output: Path = Path("fg_explain"),
    weights: str = "DEFAULT",
    checkpoint: Union[Path, None] = None,
    size: PositiveInt = 224,
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
    transform: Union[str, None] = None,
    perturb: Union[Literal["lerf", "morf"], None] = None,
    fractions: tuple[ClosedUnitInterval, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
    fill: Union[float, list[float], str] = 0.0,
    batch_size: PositiveInt = 8,
    device: str = "auto",
) -> None:
    """Draw what a network looks at in your pictures, as several methods see it.

    Writes a picture for every image, with the map of each method over it, and a table of what was predicted.

    Args:
        images: a file, a folder, a pattern such as 'photos/*.jpg' (in quotes), or a list of these, [a.jpg,b.jpg].
        model: a classifier of torchvision by name, or the import path of your own: a module, a function that returns one, or, with
            a checkpoint, a LightningModule class.
        methods: names with commas between them, or all; random and edges know nothing of the network.
        target: the class to explain, an index or a name; by default the predicted one.
        output: the folder that everything is written to.
        weights: of a torchvision model: DEFAULT, another of its sets, or none for random ones.
        checkpoint: of a LightningModule class.
        size: of your own model's images: their shorter side is resized to so many pixels, and the middle square cut out.
        mean: of your own model's images: subtracted from every channel, in 0..1; a single one for grey images.
        std: of your own model's images: what every channel is then divided by.
        transform: instead of these three, the import path of a function from a PIL image to a tensor [C, H, W].
        perturb: also measure how the output changes as pixels are replaced in the order of each map, a table and a plot: lerf, the
            least relevant first (a small change is good), or morf, the most relevant first (a large one is).
        fractions: of the pixels that are replaced, each 0 to 1.
        fill: what replaces them, in the network's own units: a number, or one for every channel, [-2.1,-2.0,-1.8]; or
            image_mean or noisy_linear.
        batch_size: how many images are explained at once.
        device: cpu, cuda, or any other of torch's; auto takes a GPU where there is one.

    Raises:
        CannotRun: if there is nothing to explain, or no way to; the message says why and what to do.
    """
    # The command line reads this signature to print its help, which takes no torch.
    from fg_lightning.explain.network import find_network
    from fg_lightning.explain.pictures import find_pictures
    from fg_lightning.explain.session import PerturbationCurves, Session, find_methods

    files = find_pictures(images)
    chosen = find_methods(methods)
    curves = None if perturb is None else PerturbationCurves(fractions, perturb, fill)
    network = find_network(model, weights, checkpoint, size, mean, std, transform)
    for what, where in Session(network, chosen, target, output, device, curves).run(files, batch_size).items():
        print(f"{what:20}{where}")  # rich would read brackets and :words: of a path as its own
