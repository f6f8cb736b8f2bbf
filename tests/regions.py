"""The regions of the C++ tests: one small function for each thing that the runtime has to get right.

`out=False` where the variant that writes into given outputs is not tested: each variant is one more compilation.
"""

import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8
from torch import Tensor

import torchcc


@torchcc.region
def add_relu(x: Float32[Tensor, "16"], y: Float32[Tensor, "16"]) -> Float32[Tensor, "16"]:
    """Adds, then ReLU: fixed sizes, pointwise."""
    return torch.relu(x + y)


@torchcc.region(ranges={"n": (0, 4096), "shift": (-5, 5)})
def blend(x: Float64[Tensor, "n m"], y: Float64[Tensor, "n m"], alpha: float, shift: int, flip: bool):
    """Two outputs, symbols that two arguments share, a range, and numbers of each kind."""
    sign = torch.where(torch.tensor(flip), -1.0, 1.0)
    z = (x * alpha + y + shift) * sign
    return z, z.sum(1)


@torchcc.region(out=False)
def interleave(x: Float64[Tensor, "n"], y: Float64[Tensor, "2*n"]) -> Float64[Tensor, "2*n+1"]:
    """Sizes that are expressions, on both sides."""
    return torch.cat([y * x.repeat(2), y.sum().reshape(1)])


@torchcc.region
def accumulate(total: Float64[Tensor, "n m"], x: Float64[Tensor, "n m"]) -> Float64[Tensor, "n"]:
    """Writes into its first argument."""
    total.add_(x)
    return total.sum(1)


@torchcc.region(out=False)
def kinds(
    count: Int64[Tensor, "n"],
    small: Int32[Tensor, "n"],
    byte: UInt8[Tensor, "n"],
    chosen: Bool[Tensor, "n"],
):
    """Integers and booleans in and out."""
    return torch.where(chosen, count * 3, small.to(torch.int64)), byte + byte, ~chosen


@torchcc.region(out=False)
def log_determinant(x: Float64[Tensor, "n 3 3"]):
    """An operator without a C entry point: the compiled code calls back through AOTInductor's proxy executor."""
    return torch.linalg.slogdet(x)


@torchcc.region(out=False, examples={"by": torch.tensor([3, 2, 5, 7])})
def divide(x: Int64[Tensor, "n"], by: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """Integer division: the compiled code reports a zero divisor through the process's one flag."""
    return x // by


@torchcc.region(out=False, ranges={"n": (0, 64)})
def lookup(table: Float32[Tensor, "100 8"], index: Int64[Tensor, "n"]) -> Float32[Tensor, "n 8"]:
    """Rows of a table; an index out of range fails while the code runs. Small, so that no OpenMP team runs it."""
    return torch.nn.functional.embedding(index, table)


@torchcc.region(grad=True, out=False)
def springs(x: Float64[Tensor, "n 3"], stiffness: Float64[Tensor, "n"], rest: float):
    """Gradients: two outputs, of which one does not depend on all arguments, and a number."""
    stretch = x.square().sum(1).sqrt() - rest
    return (stiffness * stretch.square()).sum(), torch.tanh(stretch)


class Encoder(torch.nn.Module):
    """Linear, LayerNorm, and a matrix that the first call makes of weights (constant folding), which takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(24, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.table = torch.nn.Parameter(torch.empty(300, 300))

    def forward(self, x: Float32[Tensor, "n 24"]) -> Float32[Tensor, "n 8"]:
        mixed = torch.softmax(self.table @ self.table, dim=0)
        return self.norm(self.linear(x)) @ mixed[:8, :8]


def _encoder() -> Encoder:
    # Weights from a formula, so that the C++ side can make the same ones.
    module = Encoder().eval()
    weights = [module.linear.weight, module.linear.bias, module.norm.weight, module.norm.bias, module.table]
    with torch.no_grad():
        for position, weight in enumerate(weights):
            values = torch.arange(weight.numel(), dtype=torch.float64)
            weight.copy_(torch.sin(values * (position + 1)).reshape(weight.shape))
    return module


encoder = torchcc.region(
    _encoder(),
    name="encoder",
    ranges={"n": (0, 512)},
    out=False,
    options={"aot_inductor.use_runtime_constant_folding": True},
)
