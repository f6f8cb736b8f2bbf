"""Region of the consumer without CMake."""

import torch
from jaxtyping import Float32
from torch import Tensor

import torchcc


@torchcc.region
def bias_gelu(x: Float32[Tensor, "n 64"], bias: Float32[Tensor, "64"]) -> Float32[Tensor, "n 64"]:
    """Adds a bias, then GELU."""
    return torch.nn.functional.gelu(x + bias)
