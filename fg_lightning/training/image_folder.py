"""Folders of images, one for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Union

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader

from fg_lightning.errors import CannotRun
from fg_lightning.training.image_datamodule import (
    IMAGENET,
    ImageDataModule,
    Part,
    any_size_transforms,
    check_normalization,
    check_size,
    split_indices,
)

VALIDATION = ("val", "valid", "validation")
"""Names of a folder of validation images."""


class ClassFolders(ImageFolder):
    """The images in the subfolders of a folder. Each subfolder is a class, except names that begin with a dot.

    Raises:
        CannotRun: if there are no subfolders, one of them holds no image, or a file cannot be read as an image.
    """

    def __init__(self, folder: Path) -> None:
        try:
            super().__init__(str(folder), loader=load_image)
        except FileNotFoundError as error:
            raise CannotRun(f"{folder.resolve()}: {error}. Remove the folder of this class, or put images into it") from error

    def find_classes(self, directory: Union[str, Path]) -> tuple[list[str], dict[str, int]]:
        names = class_folders(Path(directory))
        return names, {name: index for index, name in enumerate(names)}


class ImageFolderDataModule(ImageDataModule):
    """Images in folders. The name of a folder is the class.

    Either `root/train/CLASS/*.jpg`, with `root/val/...` and `root/test/...`, or `root/CLASS/*.jpg`. A part without a folder gets a
    share of the training images. If there are validation images but no test images, the test uses the validation images.

    Args:
        root: Folder of the images.
        size: Width and height of the images in pixels. Default: 224.
        mean: Mean of each channel, in 0..1, subtracted from the images. Default: ImageNet's.
        std: Standard deviation of each channel, by which the images are divided. Default: ImageNet's.
        mirror: Whether a mirror image shows the same class; False for letters. Default: True.
        **kwargs: see `ImageDataModule`.

    Raises:
        CannotRun: if a number is out of range; in `setup`, if the parts have other classes than the training images, or no training
            images are left.
        CannotRun: if there is no such folder, or it has no folders of images; in training, if a file is not an image.
    """

    def __init__(
        self,
        root: Union[str, Path],
        size: int = 224,
        mean: Union[tuple[float, ...], None] = None,
        std: Union[tuple[float, ...], None] = None,
        mirror: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_size(size)
        self.root = Path(root)
        self.size = size
        self.mirror = mirror
        self.normalization = check_normalization(mean, std, IMAGENET)
        if not self.root.is_dir():
            raise CannotRun(f"there is no folder {self.root.resolve()}; give the folder of the images as root (--data.root)")
        train = self.root / "train"
        self.folders = {"train": train if train.is_dir() else self.root}
        if train.is_dir():
            for part, names in (("val", VALIDATION), ("test", ("test",))):
                there = [self.root / name for name in names if (self.root / name).is_dir()]
                self.folders.update({part: there[0]} if there else {})
        self.num_classes = len(class_folders(self.folders["train"]))

    def setup(self, stage: str) -> None:
        random, plain = any_size_transforms(self.size, self.normalization, self.augment, self.mirror)
        own = {part: ClassFolders(folder) for part, folder in self.folders.items()}
        train = own["train"]
        for part, images in own.items():
            if images.classes != train.classes:
                raise CannotRun(
                    f"{self.folders[part]} has other classes than {self.folders['train']}: "
                    f"{', '.join(sorted(set(images.classes) ^ set(train.classes)))} are in only one of them; give both the same "
                    "folders"
                )
        parts = {part: Part(images, range(len(images)), plain, images.classes) for part, images in own.items()}
        missing = [part for part in ("val", "test") if part not in own and not (part == "test" and "val" in own)]
        *lots, rest = split_indices(len(train), [self.val_share] * len(missing), self.seed)
        parts |= {part: Part(train, lot, plain, train.classes) for part, lot in zip(missing, lots, strict=True)}
        chosen = Part(train, rest, random, train.classes), parts["val"], parts.get("test", parts["val"])
        self.train, self.val, self.test = map(self._draw, chosen)


def class_folders(folder: Path) -> list[str]:
    """The names of a folder's subfolders, which are the classes, without those that begin with a dot, such as .ipynb_checkpoints.

    Raises:
        CannotRun: if there is none.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise CannotRun(
            f"{folder.resolve()} has no folders in it; expected one for each class, {folder}/CLASS/image.jpg, or folders train, "
            f"val and test with such folders in them. Names of images end in {', '.join(IMG_EXTENSIONS)}"
        )
    return names


def load_image(path: str) -> Image.Image:
    """Reads the image in a file.

    Raises:
        CannotRun: if the file cannot be read as an image.
    """
    try:
        image: Image.Image = default_loader(path)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise CannotRun(f"{path} cannot be read as an image ({error}); remove it, or replace it with an intact one") from error
    return image
