"""Regions on a GPU; a number stays a number of C++."""

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

import torchcc


@torchcc.region(device="cuda", ranges={"n": (1, None)})
def scaled_gelu(x: Float32[Tensor, "n 96"], bias: Float32[Tensor, "96"], scale: float) -> Float32[Tensor, "n 96"]:
    """GELU of a scaled sum."""
    return torch.nn.functional.gelu((x + bias) * scale)


@torchcc.region(device="cuda", ranges={"n": (1, None)})
def wide(x: Float64[Tensor, "n"], scale: float) -> Float64[Tensor, "n"]:
    """Has to keep all digits of the number."""
    return x * scale + scale


@torchcc.region(device="cuda", ranges={"n": (1, None)})
def plain(x: Float32[Tensor, "n"], y: Float32[Tensor, "n"]) -> Float32[Tensor, "n"]:
    """No number, so that a CUDA graph can be made of it."""
    return torch.relu(x + y) * y
