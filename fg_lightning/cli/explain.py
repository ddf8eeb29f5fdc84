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
    class_names: Union[str, list[str], None] = None,
    weights: str = "DEFAULT",
    checkpoint: Union[Path, None] = None,
    size: PositiveInt = 224,
    mean: Union[tuple[float, ...], float, None] = None,
    std: Union[tuple[float, ...], float, None] = None,
    transform: Union[str, None] = None,
    perturb: Union[Literal["lerf", "morf"], None] = None,
    fractions: tuple[ClosedUnitInterval, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
    fill: Union[float, list[float], str] = "black",
    reference: str = "random",
    num_overlays: Union[NonNegativeInt, None] = None,
    save_maps: bool = True,
    batch_size: PositiveInt = 8,
    device: str = "auto",
) -> None:
    """Draw the maps of several methods over your pictures.

    Writes an overlay for every picture, which shows the map of each method, the maps as numbers (maps.npz, for numpy.load), and a
    table of the predictions. The first picture is explained alone, to estimate the time for the others.

    Args:
        images: A file, a folder with the folders in it, a pattern such as 'photos/*.jpg' (in quotes), or a list of these,
            [a.jpg,b.jpg].
        model: A classifier of torchvision by name, or the import path of your own: a module, a function that returns one, or, with
            a checkpoint, a LightningModule class.
        methods: Names of methods, separated by commas, or all. random and edges do not use the network.
        target: The class to explain, an index or a name. Default: the predicted class.
        output: The folder for all results.
        class_names: Names of the network's outputs, in order: a text file with a name on each line, a JSON file with a list, or
            the names themselves, [cat,dog]. Default: those of torchvision's weights; other networks have none.
        weights: Weights of a torchvision model: DEFAULT, the name of another set, or none for random weights.
        checkpoint: Checkpoint of the LightningModule class that model names.
        size: For your own model: number of pixels of the shorter side after resizing. The middle square is cut out.
        mean: For your own model: the mean subtracted from each channel, in 0..1; one number for grey images. Default: ImageNet's.
            With a transform: the mean that it subtracts, if its Normalize cannot be found.
        std: For your own model: the standard deviation by which each channel is then divided. Default: ImageNet's.
        transform: Import path of a function from a PIL image to a tensor [C, H, W]. It replaces size, mean and std.
        perturb: Also measure how the output changes as pixels are replaced in the order of each map. lerf: the least relevant
            first, a small change is good. morf: the most relevant first, a large fall is good. Default: no.
        fractions: Shares of the pixels that are replaced, each 0 to 1.
        fill: The new value of replaced pixels: black; image_mean; noisy_linear; dataset_mean, with weights of torchvision; a
            number, or one for each channel, of the picture in 0..1, such as [0.48,0.46,0.41]; or the import path of a function
            (images, mask) -> images, which gets the network's input.
        reference: Every other method is compared with this one, over all pictures, if it is among the methods.
        num_overlays: Number of pictures that get an overlay, the first ones. Default: all.
        save_maps: Whether to write maps.npz: 4 bytes for each pixel and method, 200 kB for a map of 224 x 224.
        batch_size: Number of images that are explained at once, except the first one.
        device: cpu, cuda, or any other device of torch; auto for a GPU if there is one.

    Raises:
        CannotRun: if the pictures cannot be explained; the message says why and what to do.
    """
    # Imported here: the command's help must not wait for torch.
    from dataclasses import replace

    from fg_lightning.explain.load_network import find_network, import_object, read_class_names
    from fg_lightning.explain.perturbation_curves import measure_perturbation
    from fg_lightning.explain.pictures import find_pictures
    from fg_lightning.explain.session import Session, find_methods

    files = find_pictures(images)
    if "." in model or ":" in model:
        import_object(model)  # the user's module may add to METHODS
    chosen = find_methods(methods)
    network = find_network(model, weights, checkpoint, size, mean, std, transform)
    if class_names is not None:
        network = replace(network, classes=read_class_names(class_names))
    curves = None if perturb is None else measure_perturbation(network, fractions, perturb, fill, reference)
    session = Session(network, chosen, target, output, device, curves, num_overlays, save_maps)
    for what, where in session.run(files, batch_size).items():
        print(f"{what:20}{where}")  # rich would read brackets and :words: of a path as its own
