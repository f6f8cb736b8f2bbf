"""Networks over time and tokens: convolutions, recurrence and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from models.family import Family, batches, family, trained
from torchcc import Method


@family
def temporal_convolutions() -> Family:
    class TemporalConvolutions(nn.Module):
        """Causal dilated convolutions over time, for signals of any length."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv1d(4, 8, 3, dilation=2**i) for i in range(3))
            self.mixers = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(3))

        def forward(self, signal: Tensor) -> Tensor:
            for i, (layer, mixer) in enumerate(zip(self.layers, self.mixers, strict=True)):
                value, gate = layer(F.pad(signal, (2 * 2**i, 0))).chunk(2, dim=1)
                signal = signal + mixer(torch.tanh(value) * torch.sigmoid(gate))
            return signal

    def call(batch: int, length: int) -> Method:
        return Method((torch.randn(batch, 4, length),), dynamic={"signal": {0: "batch", 2: "length"}})

    sizes = [{"batch": 2, "length": 20}, {"batch": 1, "length": 1}, {"batch": 3, "length": 53}]
    return Family(trained(TemporalConvolutions()), {"forward": call}, sizes)


@family
def lstm() -> Family:
    class LanguageModel(nn.Module):
        """Tokens to scores of the next one, with the state passed in and out."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True)
            self.head = nn.Linear(12, 20)

        def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            x, state = self.lstm(self.embedding(tokens), state)
            return self.head(x), state

    def call() -> Method:
        state = (torch.randn(2, 3, 12), torch.randn(2, 3, 12))
        return Method((torch.randint(0, 20, (3, 7)), state))

    return Family(trained(LanguageModel()), {"forward": call})


@family
def gru() -> Family:
    class Classifier(nn.Module):
        """The last state of a GRU, classified."""

        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(5, 10, num_layers=2, dropout=0.3)
            self.cell = nn.GRUCell(10, 6)

        def forward(self, signal: Tensor, start: Tensor) -> Tensor:
            _, hidden = self.gru(signal)
            return F.log_softmax(self.cell(hidden[-1], start), dim=-1)

    def call(batch: int) -> Method:
        return Method(
            (torch.randn(5, batch, 5), torch.randn(batch, 6)),
            dynamic={"signal": {1: "batch"}, "start": {0: "batch"}},
        )

    return Family(trained(Classifier()), {"forward": call}, batches(4, 2, 7), ranges={"batch": (2, None)})


@family
def bidirectional_lstm() -> Family:
    class Tagger(nn.Module):
        """A label per token, from both directions."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 7, bidirectional=True, batch_first=True, proj_size=4)
            self.head = nn.Linear(8, 5)

        def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
            x, (hidden, _) = self.lstm(features)
            return self.head(x).argmax(-1), hidden

    return Family(trained(Tagger()), {"forward": lambda: Method((torch.randn(2, 11, 6),))})


@family
def transformer_encoder() -> Family:
    class Encoder(nn.Module):
        """PyTorch's own encoder layers over sequences with padding."""

        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=padding)

    def call(batch: int, length: int) -> Method:
        lengths = torch.randint(1, length + 1, (batch, 1))
        return Method(
            (torch.randn(batch, length, 16), torch.arange(length) >= lengths),
            dynamic={"x": {0: "batch", 1: "length"}, "padding": {0: "batch", 1: "length"}},
        )

    sizes = [{"batch": 2, "length": 6}, {"batch": 5, "length": 9}, {"batch": 3, "length": 2}]
    return Family(trained(Encoder()), {"forward": call}, sizes, ranges={"batch": (2, None), "length": (2, None)})


class DecoderLayer(nn.Module):
    """Attention over cached keys and values, and a feed-forward part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width)
        self.norm2 = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each ``[batch, heads, length, width of a head]``."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


@family
def decoder_with_cache_in_buffers() -> Family:
    class Decoder(nn.Module):
        """One token at a time; keys, values and the position stay in buffers between calls."""

        keys: Tensor
        values: Tensor
        position: Tensor

        def __init__(self, room: int = 8) -> None:
            super().__init__()
            self.embedding = nn.Embedding(15, 8)
            self.layer = DecoderLayer(8, 2)
            self.register_buffer("keys", torch.zeros(1, 2, room, 4))
            self.register_buffer("values", torch.zeros(1, 2, room, 4))
            self.register_buffer("position", torch.zeros(1, dtype=torch.int64))

        def forward(self, token: Tensor) -> tuple[Tensor, Tensor]:
            x = self.embedding(token)
            q, k, v = self.layer.split(x)
            self.keys.index_copy_(2, self.position, k)
            self.values.index_copy_(2, self.position, v)
            seen = torch.arange(self.keys.shape[2]) <= self.position
            attended = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=seen[None])
            self.position += 1
            return F.linear(self.layer.finish(x, attended), self.embedding.weight), self.position.clone()

    def call() -> Method:
        return Method((torch.randint(0, 15, (1, 1)),))

    return Family(trained(Decoder()), {"forward": call}, [{}] * 6, stateful=True)


@family
def decoder_with_cache_in_tuples() -> Family:
    class Decoder(nn.Module):
        """New tokens and the keys and values so far, a pair per layer, to scores and longer pairs."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(DecoderLayer(8, 2) for _ in range(2))

        def forward(
            self, x: Tensor, cache: tuple[tuple[Tensor, Tensor], ...]
        ) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
            grown = []
            for layer, (keys, values) in zip(self.layers, cache, strict=True):
                q, k, v = layer.split(x)
                keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
                x = layer.finish(x, F.scaled_dot_product_attention(q, keys, values))
                grown.append((keys, values))
            return x, tuple(grown)

    def call(past: int) -> Method:
        cache = tuple((torch.randn(2, 2, past, 4), torch.randn(2, 2, past, 4)) for _ in range(2))
        pair = ({2: "past"}, {2: "past"})
        return Method((torch.randn(2, 1, 8), cache), dynamic={"cache": (pair, pair)})

    return Family(trained(Decoder()), {"forward": call}, [{"past": 5}, {"past": 1}, {"past": 12}])


@family
def attention_with_mask() -> Family:
    class Attention(nn.Module):
        """PyTorch's multi-head attention across two sequences, with its weights."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, kdim=6, vdim=6, batch_first=True, add_bias_kv=True)

        def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            out, weights = self.attention(x, memory, memory, attn_mask=mask, average_attn_weights=False)
            return out, weights

    def call() -> Method:
        mask = torch.where(torch.rand(4, 7) < 0.3, -torch.inf, 0.0)
        mask[:, 0] = 0
        return Method((torch.randn(2, 4, 12), torch.randn(2, 7, 6), mask))

    return Family(trained(Attention()), {"forward": call})


@family
def any_batch_and_length() -> Family:
    class Ranker(nn.Module):
        """Tokens with rotary positions and causal attention, pooled where there is no padding."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 16, padding_idx=0)
            self.layer = DecoderLayer(16, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            length = tokens.shape[1]
            x = self.embedding(tokens)
            q, k, v = self.layer.split(x)
            angles = torch.outer(torch.arange(length), 0.5 ** torch.arange(4))
            cos, sin = angles.cos(), angles.sin()

            def turned(one: Tensor) -> Tensor:
                a, b = one[..., :4], one[..., 4:]
                return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

            x = self.layer.finish(x, F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True))
            real = (tokens != 0)[..., None]
            return (x * real).sum(1) / real.sum(1).clamp(min=1)

    def call(batch: int, length: int) -> Method:
        return Method((torch.randint(0, 50, (batch, length)),), dynamic={"tokens": {0: "batch", 1: "length"}})

    sizes = [{"batch": 3, "length": 7}, {"batch": 1, "length": 2}, {"batch": 2, "length": 33}]
    return Family(trained(Ranker()), {"forward": call}, sizes, ranges={"length": (2, None)})
