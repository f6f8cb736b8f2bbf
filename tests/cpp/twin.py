"""A second package, whose function has the name and the signature of one in regions.py but gives other results."""

import torch
from jaxtyping import Float32
from torch import Tensor

import torchcc


@torchcc.region
def add_relu(x: Float32[Tensor, "16"], y: Float32[Tensor, "16"]) -> Float32[Tensor, "16"]:
    return torch.relu(x + y) + 1
