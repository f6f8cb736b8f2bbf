"""Models that are shipped without libtorch: what `torchcc export` and the tests take."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Classifier(nn.Module):
    """The gated layer of the digits example."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 64)
        self.norm_weight = nn.Parameter(torch.ones(64))
        self.gate = nn.Linear(64, 64)
        self.up = nn.Linear(64, 64)
        self.down = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.float().flatten(1) / 16)
        y = functional.rms_norm(x, (64,), self.norm_weight, 1e-6)
        return self.head(x + self.down(functional.silu(self.gate(y)) * self.up(y)))


class Encoder(nn.Module):
    """Two layers of a sentence encoder: attention with a mask, GELU, LayerNorm; the mean of the words."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(100, width)
        self.places = nn.Embedding(32, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=False
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        bias = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(mask == 0, -1e9)
        x = self.layers(x, src_key_padding_mask=bias)
        weights = mask.to(x.dtype).unsqueeze(-1)
        return functional.normalize((x * weights).sum(1) / weights.sum(1), dim=1)


class Cache(nn.Module):
    """One step of a decoder, which keeps keys and values of the steps before."""

    def __init__(self, width: int = 32, heads: int = 2, steps: int = 16) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("keys", torch.zeros(1, heads, steps, width // heads))
        self.register_buffer("values", torch.zeros(1, heads, steps, width // heads))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        q, k, v = (one.view(1, self.heads, 1, -1) for one in self.qkv(x).chunk(3, dim=-1))
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        scores = q @ self.keys.transpose(2, 3) / math.sqrt(q.shape[-1])
        hidden = torch.arange(self.keys.shape[2]) > position
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return self.out((weights @ self.values).reshape(1, -1))


class Convolutions(nn.Module):
    """What libtorch's own kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Recurrent(nn.Module):
    """An LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def classifier() -> dict[str, Any]:
    torch.manual_seed(0)
    images = torch.randint(0, 17, (5, 8, 8), dtype=torch.uint8)
    return {"module": Classifier().eval(), "args": (images,), "dynamic": {"images": {0: "n"}}}


def encoder() -> dict[str, Any]:
    torch.manual_seed(1)
    ids = torch.randint(0, 100, (3, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [7], [9]])).long()
    return {"module": Encoder().eval(), "args": (ids, mask), "dynamic": {"ids": {0: "n"}, "mask": {0: "n"}}}


def cache() -> dict[str, Any]:
    torch.manual_seed(2)
    return {"module": Cache().eval(), "args": (torch.randn(1, 32), torch.tensor([0]))}


def recurrent() -> dict[str, Any]:
    torch.manual_seed(3)
    return {"module": Recurrent().eval(), "args": (torch.randn(2, 5, 16),)}


def convolutions() -> dict[str, Any]:
    torch.manual_seed(4)
    return {"module": Convolutions().eval(), "args": (torch.randn(1, 3, 8, 8),)}
