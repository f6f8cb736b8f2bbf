"""Regions of the second CMake project."""

from jaxtyping import Float32
from scaling import SCALE
from torch import Tensor

import torchcc


@torchcc.region
def scaled_power(x: Float32[Tensor, "n"], power: int) -> Float32[Tensor, "n"]:
    """Raises to a power and scales."""
    return SCALE * x**power
