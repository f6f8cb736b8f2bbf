"""The models of the benchmarks on a GPU, and what they are run on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import gpt2
from benchmarks.models import Mlp

_WIDTH, _HEADS, _LAYERS = 768, 12, 12  # of BERT-base


class DecoderLayer(gpt2.Layer):
    """A layer of GPT-2 that sees one new token; its keys and values of before are buffers."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("keys", "values"):
            self.register_buffer(name, torch.randn(1, gpt2.HEADS, gpt2.TOKENS, gpt2.WIDTH // gpt2.HEADS))

    def forward(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:  # noqa: D102
        q, k, v = self.split(x)
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        scores = q @ self.keys.transpose(2, 3) / math.sqrt(gpt2.WIDTH // gpt2.HEADS)
        weights = torch.softmax(scores.masked_fill(mask, float("-inf")).float(), -1).to(x.dtype)
        return self.finish(x, weights @ self.values)


class Decoder(gpt2.Network):
    """One step of GPT-2 (124M): the next token's logits, with 512 cached tokens."""

    def __init__(self) -> None:
        super().__init__(DecoderLayer)

    def forward(self, token: Tensor, position: Tensor) -> Tensor:  # noqa: D102
        x = self.words(token) + self.positions(position)
        mask = torch.arange(gpt2.TOKENS, device=token.device) > position
        for layer in self.layers:
            x = layer(x, position, mask)
        return self.norm(x) @ self.words.weight.t()


class BertLayer(nn.Module):
    """A layer of BERT: attention and two linear layers, a layer norm after each."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.up = nn.Linear(_WIDTH, 4 * _WIDTH)
        self.down = nn.Linear(4 * _WIDTH, _WIDTH)
        self.norm2 = nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, _HEADS, d // _HEADS).permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(q, k, v)
        x = self.norm1(x + self.out(attention.transpose(1, 2).reshape(b, t, d)))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class Bert(nn.Module):
    """The encoder of BERT-base, from embedded tokens on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(BertLayer() for _ in range(_LAYERS))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for layer in self.layers:
            x = layer(x)
        return x


@dataclass(frozen=True)
class Model:
    """A model, and what it is compared with.

    Attributes:
        title: How cases name it.
        make: The module.
        inputs: Makes its inputs, on the CPU.
        dtype: Of the module and of its inputs that are floating point.
        mode: The mode of ``torch.compile`` that sets the limit.
        limit: How much of that mode's time a call from C++ may take.
        options: Inductor's options for the export.
        calls: Calls that are timed at once.
        host_limit: How many nanoseconds of the host a replayed call may take, checks included; ``None`` where the GPU
            is behind, so that launches wait for it.
    """

    title: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    dtype: torch.dtype
    mode: str
    limit: float
    options: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 100
    host_limit: float | None = 8000.0


#: By the name that the C++ program knows.
MODELS = {
    "mlp": Model(
        "MLP 128-256-256-10, batch 1", Mlp, lambda: (torch.randn(1, 128),), torch.float32, "reduce-overhead", 0.5
    ),
    "decode": Model(
        "GPT-2 decode step, 512 cached tokens, half",
        Decoder,
        lambda: (torch.tensor([[17]]), torch.tensor([gpt2.TOKENS - 1])),
        torch.float16,
        "reduce-overhead",
        0.85,
        {"coordinate_descent_tuning": True, "max_autotune_pointwise": True},
    ),
    "encoder": Model(
        "BERT-base encoder, 32 x 128, half",
        Bert,
        lambda: (torch.randn(32, 128, _WIDTH),),
        torch.float16,
        "max-autotune",
        1.02,
        calls=20,
        host_limit=None,
    ),
}


def make(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model on the GPU and its inputs, the same ones each time."""
    torch.manual_seed(0)
    model = MODELS[name]
    module = model.make().eval().requires_grad_(False)
    if name == "decode":
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.02 / parameter.std())  # as GPT-2 begins
    module = module.to("cuda", model.dtype)
    inputs = [one.cuda() for one in model.inputs()]
    return module, tuple(one.to(model.dtype) if one.is_floating_point() else one for one in inputs)
