"""The models of the benchmark ``capture`` in Python; ``cpp/models.cpp`` has the same ones, the weights' names too.

All are float32, in eval mode, and take one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class Chain(nn.Module):
    """Pointwise operators."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = torch.tanh(x * 1.5 + 0.25)
        z = torch.sigmoid(x - y) * y
        return torch.relu(z + x * 0.5) - y * y


class NormGelu(nn.Module):
    """Layer norm, then GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(768)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return functional.gelu(self.norm(x))


class Mlp(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 256)
        self.second = nn.Linear(256, 256)
        self.third = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x))
        return self.third(x)


class Layer(nn.Module):
    """One layer of an encoder, or of a GPT if causal: attention and two linear layers, each after a layer norm."""

    def __init__(self, width: int = 256, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        b, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=self.causal)
        x = x + self.out(attention.transpose(1, 2).reshape(b, t, d))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Six layers and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(6))
        self.norm = nn.LayerNorm(256)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def library_encoder() -> nn.Module:
    """PyTorch's own encoder; in C++ it multiplies and normalises where Python has one operator for attention."""
    layer = nn.TransformerEncoderLayer(256, 4, dim_feedforward=1024, dropout=0.0)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


@dataclass(frozen=True)
class Model:
    """A model, and what it is run on.

    Attributes:
        title: How cases name it.
        make: The module, with weights of its own.
        sizes: Sizes of the input.
    """

    title: str
    make: Callable[[], nn.Module]
    sizes: tuple[int, ...]


#: By the name that the programs know.
MODELS = {
    "chain": Model("pointwise chain, 1M elements", Chain, (1024, 1024)),
    "norm_gelu": Model("layer norm + GELU, 512 x 768", NormGelu, (512, 768)),
    "mlp_1": Model("MLP 128-256-256-10, batch 1", Mlp, (1, 128)),
    "mlp_256": Model("MLP 128-256-256-10, batch 256", Mlp, (256, 128)),
    "encoder": Model("encoder, 6 layers of width 256, 128 tokens", Encoder, (1, 128, 256)),
    "library_encoder": Model("torch::nn::TransformerEncoder, same sizes", library_encoder, (128, 1, 256)),
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A model and its input, the same ones each time."""
    torch.manual_seed(0)
    model = MODELS[name].make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))  # no ones and zeros that a compiler could profit from
    return model, torch.randn(MODELS[name].sizes)
