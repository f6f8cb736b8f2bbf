"""GPT-2 (124M), which one benchmark decodes with and another trains: parameters, and a layer without its attention."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, WORDS = 768, 12, 12, 50257

#: Positions that there are.
TOKENS = 512


class Layer(nn.Module):
    """A layer, but for its attention; ``cpp/cuda_training.cpp`` has the same parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value, each ``[batch, heads, tokens, width of a head]``, of ``[batch, tokens, width]``."""
        b, t, d = x.shape
        return self.qkv(self.norm1(x)).view(b, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4).unbind()

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's result: ``mixed`` is what attention gives, like a query."""
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Network(nn.Module):
    """Embeddings of words and positions, layers, and the last layer norm."""

    def __init__(self, layer: Callable[[], Layer]) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
