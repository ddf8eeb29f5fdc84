"""fg-lightning explain."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Union

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt


def explain(
    images: Union[str, list[str]],
    model: str = "resnet50",
    methods: Union[str, list[str]] = "gradient,integrated_gradients,gradcam,fullgrad",
    target: Union[int, str, None] = None,
    output: Path = Path("fg_explain"),
    weights: str = "DEFAULT",
    checkpoint: Union[Path, None] = None,
    size: PositiveInt = 224,
    mean: Union[tuple[float, ...], None] = None,
    std: Union[tuple[float, ...], None] = None,
    transform: Union[str, None] = None,
    perturb: Union[Literal["lerf", "morf"], None] = None,
    fractions: tuple[ClosedUnitInterval, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
    fill: Union[float, list[float], str] = "black",
    reference: str = "random",
    num_overlays: Union[NonNegativeInt, None] = None,
    batch_size: PositiveInt = 8,
    device: str = "auto",
) -> None:
    """Draw what a network looks at in your pictures, as several methods see it.

    Writes a picture for every image, with the map of each method over it, and a table of what was predicted.

    Args:
        images: A file, a folder with the folders in it, a pattern such as 'photos/*.jpg' (in quotes), or a list of these,
            [a.jpg,b.jpg].
        model: A classifier of torchvision by name, or the import path of your own: a module, a function that returns one, or, with
            a checkpoint, a LightningModule class.
        methods: Names with commas between them, or all. Random and edges know nothing of the network.
        target: The class to explain, an index or a name. Default: the predicted one.
        output: The folder that everything is written to.
        weights: Weights of a torchvision model: DEFAULT, another of its sets, or none for random ones.
        checkpoint: Checkpoint of a LightningModule class.
        size: For your own model: pixels of the shorter side after resizing. The middle square is then cut out.
        mean: For your own model: the mean subtracted from each channel, in 0..1; a single one for grey images. Default:
            ImageNet's. With a transform: what it subtracts, if that cannot be read from its Normalize.
        std: For your own model: the standard deviation by which each channel is then divided. Default: ImageNet's.
        transform: The import path of a function from a PIL image to a tensor [C, H, W], instead of size, mean and std.
        perturb: Also measure how the output changes as pixels are replaced in the order of each map, a table and a plot: lerf, the
            least relevant first (a small change is good), or morf, the most relevant first (a large change is good).
        fractions: Shares of the pixels that are replaced, each 0 to 1.
        fill: What replaces them: black; dataset_mean, where it is known (torchvision's weights); image_mean; noisy_linear; a
            number, or one for each channel, in the pictures' own units, 0..1, [0.48,0.46,0.41]; or the import path of a function
            (images, mask) -> images, which gets them as the network does.
        reference: The method that others are compared with, over all pictures, if it is among the methods.
        num_overlays: The number of pictures that get an overlay, the first ones. Default: all.
        batch_size: Number of images that are explained at once.
        device: cpu, cuda, or any other of torch's; auto for a GPU if there is one.

    Raises:
        CannotRun: if the pictures cannot be explained; the message says why and what to do.
    """
    # The command line reads this signature to print its help, which takes no torch.
    from fg_lightning.explain.load_network import find_network
    from fg_lightning.explain.perturbation_curves import measure_perturbation
    from fg_lightning.explain.pictures import find_pictures
    from fg_lightning.explain.session import Session, find_methods

    files = find_pictures(images)
    chosen = find_methods(methods)
    network = find_network(model, weights, checkpoint, size, mean, std, transform)
    curves = None if perturb is None else measure_perturbation(network, fractions, perturb, fill, reference)
    session = Session(network, chosen, target, output, device, curves, num_overlays)
    for what, where in session.run(files, batch_size).items():
        print(f"{what:20}{where}")  # rich would read brackets and :words: of a path as its own
