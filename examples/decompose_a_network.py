"""Decompose a network's output into its terms: python examples/decompose_a_network.py"""

import torch
from torchvision.models import resnet18

from fg_lightning import FullGrad, full_gradients

if __name__ == "__main__":
    torch.manual_seed(0)
    model, images = resnet18(), torch.rand(2, 3, 96, 96)

    terms = full_gradients(model, images)
    largest = sorted(terms.bias_terms, key=lambda name: -terms.bias_terms[name].abs().sum())[:3]
    print("output            ", terms.output.tolist())
    print("input term        ", terms.input_term.tolist())
    print("largest bias terms", {name: terms.bias_terms[name].tolist() for name in largest})
    print("completeness error", terms.completeness_error.tolist())
    print("maps              ", tuple(FullGrad(model).attribute(images, target=terms.target).shape))
