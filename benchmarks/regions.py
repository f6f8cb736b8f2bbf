"""The regions that the benchmarks call from C++."""

import torch
from jaxtyping import Float32
from torch import Tensor

import torchcc


@torchcc.region
def small(x: Float32[Tensor, "16"], y: Float32[Tensor, "16"]) -> Float32[Tensor, "16"]:
    """Next to no work: what a call of it costs is the call's own cost."""
    return torch.relu(x + y) * y


@torchcc.region(ranges={"n": (1, 8192)}, out=False)
def heavy(x: Float32[Tensor, "n"], y: Float32[Tensor, "n"]) -> Float32[Tensor, "n"]:
    """Enough arithmetic per element for some 50 microseconds on tensors that fit a core's own cache."""
    for _ in range(6):
        x = torch.tanh(x + y)
    return x
