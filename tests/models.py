"""Whole models as PyTorch users write them: the families that ``torchcc.export`` is tested on.

Each is small, because what counts is which operators, control flow, containers and sizes it has. ``FAMILIES`` holds a
function per family that makes a :class:`Family`; all numbers come from torch's global generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._higher_order_ops import scan, while_loop
from torch._higher_order_ops.map import map as map_over

from torchcc import Method


@dataclass(frozen=True)
class Family:
    """A module, how its methods are called, and at which sizes.

    Attributes:
        module: In evaluation mode.
        methods: Per method, a function that makes a call with fresh arguments for some sizes.
        sizes: The sizes of the example, then those of other calls.
        stateful: Whether a call changes buffers, so that the next one gives other results.
        ranges: As ``torchcc.export`` takes them.
    """

    module: nn.Module
    methods: Mapping[str, Callable[..., Method]]
    sizes: Sequence[Mapping[str, int]] = ({}, {}, {})
    stateful: bool = False
    ranges: Mapping[str, tuple[int, int | None]] | None = None


FAMILIES: dict[str, Callable[[], Family]] = {}


def family(make: Callable[[], Family]) -> Callable[[], Family]:
    """Adds a family under the name of its function."""
    FAMILIES[make.__name__] = make
    return make


def trained(module: nn.Module) -> nn.Module:
    """A module in evaluation mode whose parameters and statistics are not those of a new one (zeros and ones)."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return module.eval()


def batches(*counts: int) -> list[dict[str, int]]:
    """Sizes of calls that differ in the batch only."""
    return [{"batch": count} for count in counts]


class MLP(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


@family
def mlp() -> Family:
    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 12),), dynamic={"x": {0: "batch"}})

    return Family(trained(MLP(12, 32, 32, 5)), {"forward": call}, batches(4, 1, 9))


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm around a shortcut, as in torchvision's ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        return self.relu(out)


class ResNet(nn.Module):
    """A ResNet with two stages."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.layer1 = ResidualBlock(8, 8, 1)
        self.layer2 = ResidualBlock(8, 16, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(image)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@family
def resnet() -> Family:
    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 3, 32, 32),), dynamic={"image": {0: "batch"}})

    return Family(trained(ResNet(10)), {"forward": call}, batches(2, 1, 5))


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, squeeze and excite, project."""

    def __init__(self, width: int, expansion: int, dilation: int) -> None:
        super().__init__()
        hidden = width * expansion
        self.expand = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.squeeze = nn.Conv2d(hidden, 4, 1)
        self.excite = nn.Conv2d(4, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.depthwise(self.expand(x))))
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y * scale)


@family
def mobilenet() -> Family:
    class MobileNet(nn.Module):
        """A depthwise network that takes images of any size, in channels-last layout."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.blocks = nn.Sequential(InvertedResidual(8, 3, 1), InvertedResidual(8, 2, 2))
            self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 6))

        def forward(self, image: Tensor) -> Tensor:
            x = self.blocks(self.stem(image.to(memory_format=torch.channels_last)))
            return self.head(x.mean((2, 3)))

    def call(batch: int, height: int, width: int) -> Method:
        return Method((torch.randn(batch, 3, height, width),), dynamic={"image": {0: "batch", 2: "height", 3: "width"}})

    sizes = [
        {"batch": 2, "height": 24, "width": 32},
        {"batch": 5, "height": 17, "width": 40},
        {"batch": 3, "height": 32, "width": 16},
    ]
    # torch.export takes channels-last strides for those of a batch of 2 or more.
    ranges = {"batch": (2, None), "height": (8, None), "width": (8, None)}
    return Family(trained(MobileNet()), {"forward": call}, sizes, ranges=ranges)


@family
def unet() -> Family:
    class UNet(nn.Module):
        """Down and up again, with the activations of the way down beside those of the way up."""

        def __init__(self) -> None:
            super().__init__()
            self.down1 = nn.Conv2d(1, 6, 3, padding=1)
            self.down2 = nn.Conv2d(6, 12, 3, padding=1)
            self.middle = nn.Conv2d(12, 12, 3, padding=1)
            self.up = nn.ConvTranspose2d(12, 12, 2, stride=2)
            self.merge2 = nn.Conv2d(24, 6, 3, padding=1)
            self.merge1 = nn.Conv2d(12, 2, 1)

        def forward(self, image: Tensor) -> Tensor:
            one = F.relu(self.down1(image))
            two = F.relu(self.down2(F.max_pool2d(one, 2)))
            x = F.relu(self.middle(F.avg_pool2d(two, 2)))
            x = F.relu(self.merge2(torch.cat([self.up(x), two], 1)))
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            return self.merge1(torch.cat([x, one], 1))

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 1, 16, 24),), dynamic={"image": {0: "batch"}})

    return Family(trained(UNet()), {"forward": call}, batches(2, 3, 1))


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
def convolutions_3d() -> Family:
    net = nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1),
        nn.BatchNorm3d(6),
        nn.LeakyReLU(0.1),
        nn.MaxPool3d(2),
        nn.Conv3d(6, 4, (1, 3, 3), stride=(1, 2, 2)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return Family(trained(net), {"forward": lambda: Method((torch.randn(2, 2, 6, 12, 12),))})


@family
def transposed_convolutions() -> Family:
    class Generator(nn.Module):
        """A picture from noise, as the generator of a GAN makes it."""

        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(10, 16 * 4 * 4)
            self.up1 = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.up2 = nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1)
            self.shuffle = nn.PixelShuffle(2)

        def forward(self, noise: Tensor) -> Tensor:
            x = self.project(noise).view(-1, 16, 4, 4)
            x = F.leaky_relu(self.norm(self.up1(x)), 0.2)
            return torch.tanh(self.shuffle(self.up2(x)))

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 10),), dynamic={"noise": {0: "batch"}})

    return Family(trained(Generator()), {"forward": call}, batches(3, 1, 4))


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
def vision_transformer() -> Family:
    class VisionTransformer(nn.Module):
        """Patches of an image as tokens, and one more for the class."""

        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 8, stride=8)
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.positions = nn.Parameter(torch.zeros(1, 17, 16))
            self.norm = nn.LayerNorm(16)
            self.qkv = nn.Linear(16, 48)
            self.proj = nn.Linear(16, 16)
            self.head = nn.Linear(16, 10)

        def forward(self, image: Tensor) -> Tensor:
            x = self.patches(image).flatten(2).transpose(1, 2)
            batch = x.shape[0]
            x = torch.cat([self.token.expand(batch, -1, -1), x], dim=1) + self.positions
            q, k, v = self.qkv(self.norm(x)).reshape(batch, -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, 16))
            return self.head(x[:, 0])

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 3, 32, 32),), dynamic={"image": {0: "batch"}})

    return Family(trained(VisionTransformer()), {"forward": call}, batches(2, 1, 6))


@family
def graph_network() -> Family:
    class GraphNetwork(nn.Module):
        """Messages along edges, added up and reduced per node, for graphs of any size."""

        def __init__(self) -> None:
            super().__init__()
            self.message = MLP(8 + 3, 16, 8)
            self.update = MLP(24, 16, 4)

        def forward(self, nodes: Tensor, edges: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
            source, target = edges.unbind(0)
            messages = self.message(torch.cat([nodes[source], features], dim=1))
            total = torch.zeros_like(nodes).index_add(0, target, messages)
            largest = torch.full_like(nodes, -1.0).scatter_reduce(
                0, target[:, None].expand_as(messages), messages, "amax", include_self=True
            )
            degree = torch.zeros(nodes.shape[0], dtype=torch.int64).index_add_(0, target, torch.ones_like(target))
            mean = total / degree.clamp(min=1)[:, None]
            return self.update(torch.cat([total, largest, mean], dim=1)), degree

    def call(nodes: int, edges: int) -> Method:
        return Method(
            (torch.randn(nodes, 8), torch.randint(0, nodes, (2, edges)), torch.randn(edges, 3)),
            dynamic={"nodes": {0: "nodes"}, "edges": {1: "edges"}, "features": {0: "edges"}},
        )

    sizes = [{"nodes": 6, "edges": 15}, {"nodes": 20, "edges": 7}, {"nodes": 2, "edges": 40}]
    return Family(trained(GraphNetwork()), {"forward": call}, sizes)


@family
def mixture_of_experts() -> Family:
    class Mixture(nn.Module):
        """One of two experts by ``torch.cond`` for the whole batch, and the two best of four per row."""

        def __init__(self) -> None:
            super().__init__()
            self.small = MLP(8, 8)
            self.large = MLP(8, 32, 8)
            self.router = nn.Linear(8, 4)
            self.experts = nn.Parameter(torch.randn(4, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cond(x.mean() > 0, lambda y: self.small(y) + 1, lambda y: self.large(y), (x,))
            weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
            return torch.einsum("bk,bkio,bi->bo", weights, self.experts[chosen], x)

    def call(batch: int, sign: int) -> Method:
        return Method((torch.randn(batch, 8) + sign,), dynamic={"x": {0: "batch"}})

    sizes = [{"batch": 4, "sign": 1}, {"batch": 7, "sign": -1}, {"batch": 3, "sign": 1}]
    return Family(trained(Mixture()), {"forward": call}, sizes)


@family
def denoising_loop() -> Family:
    class Sampler(nn.Module):
        """Noise to a sample in a fixed number of steps, with a table of noise levels."""

        levels: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = MLP(6 + 4, 24, 6)
            self.register_buffer("levels", torch.linspace(0.99, 0.3, 6))

        def forward(self, x: Tensor) -> Tensor:
            for step in reversed(range(1, 6)):
                level, before = self.levels[step], self.levels[step - 1]
                angles = step * torch.tensor([0.1, 0.7])
                time = torch.cat([angles.sin(), angles.cos()]).expand(x.shape[0], -1)
                noise = self.net(torch.cat([x, time], dim=1))
                clean = (x - (1 - level).sqrt() * noise) / level.sqrt()
                x = before.sqrt() * clean.clamp(-3, 3) + (1 - before).sqrt() * noise
            return x

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 6),), dynamic={"x": {0: "batch"}})

    return Family(trained(Sampler()), {"forward": call}, batches(3, 1, 8))


@family
def loop_until_converged() -> Family:
    class Equilibrium(nn.Module):
        """The fixed point of a contraction, in as many steps as its data need, and their number."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(0.1 * torch.randn(5, 5))

        def forward(self, x: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
            def unfinished(step: Tensor, z: Tensor, change: Tensor) -> Tensor:
                return (change > tolerance) & (step < 100)

            def body(step: Tensor, z: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                new = torch.tanh(z @ self.weight * 0.5 + x)
                return step + 1, new, (new - z).abs().amax()

            start = (torch.zeros((), dtype=torch.int64), torch.zeros_like(x), torch.ones(()))
            step, z, _ = while_loop(unfinished, body, start)
            return z, step

    def call() -> Method:
        return Method((torch.randn(3, 5), 10 ** -(1 + 3 * torch.rand(()))))

    return Family(trained(Equilibrium()), {"forward": call})


@family
def loops_over_elements() -> Family:
    class Recurrence(nn.Module):
        """A layer per row of the input by ``map``, and a running state by ``scan``."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.decay = nn.Parameter(torch.rand(4))

        def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            def step(state: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
                state = state * torch.sigmoid(self.decay) + row
                return state, torch.tanh(state)

            mapped = map_over(lambda row, layer: F.relu(F.linear(row, layer)), rows, self.layer.weight)
            last, states = scan(step, torch.zeros(4), mapped.mean(1))
            return mapped, last, states

    return Family(trained(Recurrence()), {"forward": lambda: Method((torch.randn(6, 3, 4),))})


@family
def recommendation() -> Family:
    class Recommendation(nn.Module):
        """Bags of categories and dense features, and the products of each two, as in DLRM."""

        def __init__(self) -> None:
            super().__init__()
            modes = ("sum", "mean", "max")
            self.bags = nn.ModuleList(nn.EmbeddingBag(30 + i, 6, mode=mode) for i, mode in enumerate(modes))
            self.bottom = MLP(5, 16, 6)
            self.top = MLP(6 + 6, 16, 1)

        def forward(self, dense: Tensor, indices: list[Tensor], offsets: list[Tensor]) -> Tensor:
            x = self.bottom(dense)
            found = [bag(i, o) for bag, i, o in zip(self.bags, indices, offsets, strict=True)]
            stacked = torch.stack([x, *found], dim=1)
            products = torch.bmm(stacked, stacked.transpose(1, 2))
            row, column = torch.triu_indices(4, 4, 1)
            return torch.sigmoid(self.top(torch.cat([x, products[:, row, column]], dim=1))).squeeze(1)

    def call(batch: int) -> Method:
        indices = [torch.randint(0, 30, (3 * batch,)) for _ in range(3)]
        offsets = [torch.arange(0, 3 * batch, 3) for _ in range(3)]
        return Method((torch.randn(batch, 5), indices, offsets))

    return Family(trained(Recommendation()), {"forward": call}, batches(4, 4, 4))


@family
def variational_autoencoder() -> Family:
    class Autoencoder(nn.Module):
        """Encodes, samples in training only, and decodes."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = MLP(14, 20, 8)
            self.decoder = MLP(4, 20, 14)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_variance = self.encoder(x).chunk(2, dim=-1)
            latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
            divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
            return torch.sigmoid(self.decoder(latent)), latent, divergence

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 14),), dynamic={"x": {0: "batch"}})

    return Family(trained(Autoencoder()), {"forward": call}, batches(5, 1, 2))


@family
def dicts() -> Family:
    class Detector(nn.Module):
        """Named features to named results, dicts and lists in one another."""

        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"boxes": nn.Linear(6, 4), "scores": nn.Linear(6, 2)})

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            x = features["image"] + sum(features["extras"])
            results = {name: head(x) for name, head in self.heads.items()}
            return {"heads": results, "aux": [x.norm(dim=1), {"best": results["scores"].argmax(1)}]}

    def call(batch: int) -> Method:
        features = {"image": torch.randn(batch, 6), "extras": [torch.randn(batch, 6), torch.randn(6)]}
        return Method((features,), dynamic={"features": {"image": {0: "batch"}, "extras": [{0: "batch"}, None]}})

    return Family(trained(Detector()), {"forward": call}, batches(3, 1, 5))


@dataclass
class State:
    """Inputs and outputs by field."""

    position: Tensor
    velocity: Tensor


class Forces(NamedTuple):
    """Outputs by name."""

    force: Tensor
    energy: Tensor


torch.export.register_dataclass(State, serialized_type_name="torchcc_tests.State")
torch.utils._pytree._register_namedtuple(Forces, serialized_type_name="torchcc_tests.Forces")
# The example arguments are in the file too, and torch.export.load complains about classes that it does not know.
torch.serialization.add_safe_globals([State, Forces])


@family
def dataclasses() -> Family:
    class Integrator(nn.Module):
        """A step of leapfrog integration in a learned potential."""

        def __init__(self) -> None:
            super().__init__()
            self.stiffness = nn.Parameter(torch.rand(3))

        def forward(self, state: State, dt: float) -> tuple[State, Forces]:
            force = -self.stiffness * state.position
            velocity = state.velocity + dt * force
            position = state.position + dt * velocity
            energy = 0.5 * (velocity.square() + self.stiffness * position.square()).sum(-1)
            return State(position, velocity), Forces(force, energy)

    def call(count: int) -> Method:
        state = State(torch.randn(count, 3), torch.randn(count, 3))
        return Method((state, 0.01), dynamic={"state": [{0: "count"}, {0: "count"}]})

    return Family(trained(Integrator()), {"forward": call}, [{"count": 4}, {"count": 1}, {"count": 9}])


@family
def keywords() -> Family:
    class Resampler(nn.Module):
        """Keyword arguments, some of them numbers, strings and nothing, which are burnt in."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1))

        def forward(
            self,
            x: Tensor,
            *,
            factor: float,
            mode: str,
            times: int = 1,
            flip: bool = False,
            bias: Tensor | None = None,
            gain: Tensor | None = None,
        ) -> Tensor:
            for _ in range(times):
                x = F.interpolate(x, scale_factor=factor, mode=mode) * self.scale
            if flip:
                x = x.flip(-1)
            x = x if bias is None else x + bias
            return x if gain is None else x * gain

    def call(batch: int) -> Method:
        numbers = {"factor": 1.5, "mode": "linear", "times": 2, "flip": True}
        return Method(
            (torch.randn(batch, 3, 8),),
            {"gain": torch.randn(1), "bias": torch.randn(3, 1), **numbers},
            dynamic={"x": {0: "batch"}},
        )

    return Family(trained(Resampler()), {"forward": call}, batches(2, 1, 4))


@family
def static_containers() -> Family:
    class Energy(nn.Module):
        """A dataclass, a named tuple and a list whose sizes are all fixed, beside a tensor with a free one."""

        def forward(self, x: Tensor, state: State, given: Forces, others: list[tuple[Tensor, Tensor]]) -> Tensor:
            (a, b), (c, d) = others
            return x * (state.position - state.velocity) + given.force * given.energy + a - 2 * b + 3 * c - 4 * d

    def call(count: int) -> Method:
        state, given = State(torch.randn(3), torch.randn(3)), Forces(torch.randn(3), torch.randn(()))
        others = [(torch.randn(3), torch.randn(3)) for _ in range(2)]
        return Method((torch.randn(count, 3), state, given, others), dynamic={"x": {0: "count"}})

    return Family(Energy().eval(), {"forward": call}, [{"count": 4}, {"count": 1}, {"count": 9}])


@family
def absent_arguments() -> Family:
    class Optional(nn.Module):
        """``None`` between tensors."""

        def forward(self, x: Tensor, mask: Tensor | None, weight: Tensor) -> Tensor:
            x = x * weight
            return x if mask is None else x.masked_fill(mask, 0)

    return Family(Optional().eval(), {"forward": lambda: Method((torch.randn(3, 4), None, torch.randn(4)))})


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


@family
def mixed_precision() -> Family:
    class Mixed(nn.Module):
        """Matrix products in bfloat16, and an average without gradients."""

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(10, 16)
            self.two = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.two(F.relu(self.one(x)))
                with torch.autocast("cpu", enabled=False):
                    exact = self.one(x)
            with torch.no_grad():
                mean = exact.mean(0)
            return y, exact - mean

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 10),), dynamic={"x": {0: "batch"}})

    return Family(trained(Mixed()), {"forward": call}, batches(6, 2, 3))


@family
def complex_numbers() -> Family:
    class Spectral(nn.Module):
        """Fourier layers as in neural operators, with complex weights."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 6, dtype=torch.complex64))

        def forward(self, signal: Tensor, carrier: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            spectrum = torch.fft.rfft(signal, norm="ortho")[..., :6]
            mixed = torch.einsum("bim,iom->bom", spectrum, self.weight)
            shifted = signal * carrier.conj()
            return (
                torch.fft.irfft(mixed, n=16),
                torch.fft.fft2(shifted),
                torch.view_as_real(mixed).abs() + mixed.abs()[..., None],
            )

    def call(batch: int) -> Method:
        return Method(
            (torch.randn(batch, 3, 16), torch.randn(16, dtype=torch.complex64)), dynamic={"signal": {0: "batch"}}
        )

    return Family(trained(Spectral()), {"forward": call}, batches(2, 1, 3))


@family
def order_statistics() -> Family:
    class Robust(nn.Module):
        """Sorting, ranks and quantiles."""

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            ordered, order = x.sort(dim=-1, descending=True, stable=True)
            best, where = x.topk(3, dim=-1)
            low, high = torch.quantile(x, torch.tensor([0.1, 0.9]), dim=-1, keepdim=True)
            middle = x.median(dim=-1)
            return {
                "clipped": x.clamp(low, high),
                "ordered": ordered.cumsum(-1),
                "ranks": order.argsort(-1),
                "best": best,
                "where": where,
                "middle": middle.values,
                "bins": torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
                "above": (x > middle.values[:, None]).sum(-1, dtype=torch.int32),
            }

    def call(rows: int) -> Method:
        return Method((torch.randn(rows, 11),), dynamic={"x": {0: "rows"}})

    return Family(Robust().eval(), {"forward": call}, [{"rows": 4}, {"rows": 1}, {"rows": 9}])


@family
def sizes_from_data() -> Family:
    class Picker(nn.Module):
        """Results whose sizes only the data decides, a limit of them, and an argument twice as long as another."""

        def forward(self, pairs: Tensor, other: Tensor) -> dict[str, Tensor]:
            index = torch.nonzero(pairs > 0).flatten()
            torch._check(index.shape[0] <= 100)
            left, right = pairs.view(-1, 2).unbind(1)
            return {
                "index": index,
                "picked": pairs[index] * 2,
                "small": torch.masked_select(other, other.abs() < 1),
                "sum": left + right * other,
                "rows": pairs.view(-1, 2)[other > 0].cumsum(0),
            }

    def call(n: int) -> Method:
        return Method((torch.randn(2 * n), torch.randn(n)), dynamic={"pairs": {0: "2*n"}, "other": {0: "n"}})

    return Family(Picker().eval(), {"forward": call}, [{"n": 4}, {"n": 1}, {"n": 9}])


@family
def sizes_and_nothing() -> Family:
    class Sizes(nn.Module):
        """Results that are numbers and nothing, beside tensors."""

        def forward(self, x: Tensor) -> tuple[Any, ...]:
            rows, columns = x.shape
            return x.t() * columns, rows, None, rows * columns + 1, rows // 2, 7, 0.5, True

    def call(rows: int, columns: int) -> Method:
        return Method((torch.randn(rows, columns),), dynamic={"x": {0: "rows", 1: "columns"}})

    sizes = [{"rows": 3, "columns": 5}, {"rows": 9, "columns": 2}, {"rows": 4, "columns": 4}]
    return Family(Sizes().eval(), {"forward": call}, sizes, ranges={"rows": (2, None), "columns": (2, None)})


@family
def writes_into_copies() -> Family:
    class Editor(nn.Module):
        """In-place operators on views of a copy, as image code has them; the argument stays as it is."""

        def forward(self, image: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
            canvas = image.clone()
            canvas[:, 1:3].mul_(2).add_(1)
            canvas[..., ::2] -= 0.5
            canvas.view(-1)[1::7].zero_()
            canvas.transpose(0, 1)[where] = 9
            canvas[canvas > 5] = -1
            flat = canvas.reshape(-1).narrow(0, 4, 6)
            flat.clamp_(max=1)
            out = torch.empty_like(canvas)
            torch.add(canvas, image, out=out)
            return canvas, out

    def call() -> Method:
        return Method((3 * torch.randn(4, 6), torch.randint(0, 6, (2,))))

    return Family(Editor().eval(), {"forward": call})


@family
def tied_weights() -> Family:
    class Tied(nn.Module):
        """One weight under three names: embedding, output layer, and a view of both."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(25, 8)
            self.body = nn.Linear(8, 8)
            self.head = nn.Linear(8, 25, bias=False)
            self.head.weight = self.embedding.weight
            self.again = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = torch.tanh(self.body(self.embedding(tokens)))
            return self.head(x) + self.again.mean()

    def call(batch: int) -> Method:
        return Method((torch.randint(0, 25, (batch, 4)),), dynamic={"tokens": {0: "batch"}})

    return Family(trained(Tied()), {"forward": call}, batches(3, 1, 5))


@family
def siamese() -> Family:
    class Siamese(nn.Module):
        """One branch for both inputs, which also is a part of another module."""

        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())
            self.scored = nn.Sequential(self.branch, nn.Linear(6, 1))

        def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
            a, b = F.normalize(self.branch(one)), F.normalize(self.branch(other))
            return F.cosine_similarity(a, b), torch.cdist(a, b) + self.scored(one)

    def call() -> Method:
        return Method((torch.randn(3, 2, 12), torch.randn(3, 2, 12)))

    return Family(trained(Siamese()), {"forward": call})


@family
def norms_and_activations() -> Family:
    class Norms(nn.Module):
        """The normalisations and activations that others leave out."""

        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(
                [
                    nn.GroupNorm(2, 6),
                    nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
                    nn.LayerNorm([5, 7], bias=False),
                    nn.LocalResponseNorm(2),
                    nn.BatchNorm2d(6, affine=False),
                ]
            )
            self.activations = nn.ModuleList(
                [nn.ELU(), nn.SELU(), nn.PReLU(6), nn.Mish(), nn.Softplus(), nn.GELU("tanh"), nn.GLU(1), nn.Hardtanh()]
            )
            self.last = nn.Softmax2d()

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = norm(x)
            for activation in self.activations:
                x = activation(x)
            return self.last(x)

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 6, 5, 7),), dynamic={"x": {0: "batch"}})

    return Family(trained(Norms()), {"forward": call}, batches(2, 1, 4))


@family
def contractions() -> Family:
    class Contractions(nn.Module):
        """Einstein sums, a tensor train and a bilinear form."""

        def __init__(self) -> None:
            super().__init__()
            self.cores = nn.ParameterList([torch.randn(1, 3, 2), torch.randn(2, 4, 3), torch.randn(3, 5, 1)])
            self.bilinear = nn.Bilinear(3, 4, 6)

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            train = torch.einsum("aib,bjc,ckd->ijk", *self.cores)
            joined = torch.tensordot(torch.einsum("ni,nj,ijk->nk", a, b, train), c, dims=([1], [0]))
            return joined, self.bilinear(a, b), torch.kron(a[0], b[0]) + torch.linalg.norm(train)

    def call(rows: int) -> Method:
        return Method(
            (torch.randn(rows, 3), torch.randn(rows, 4), torch.randn(5, 2)),
            dynamic={"a": {0: "rows"}, "b": {0: "rows"}},
        )

    sizes = [{"rows": 3}, {"rows": 2}, {"rows": 8}]
    return Family(trained(Contractions()), {"forward": call}, sizes, ranges={"rows": (2, None)})


@family
def linear_algebra() -> Family:
    class GaussianProcess(nn.Module):
        """A posterior in float64: kernels, Cholesky factors and solves, for any number of points."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(3, dtype=torch.float64) + 0.5)

        def forward(self, known: Tensor, values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            def kernel(a: Tensor, b: Tensor) -> Tensor:
                return torch.exp(-((a[:, None] - b[None]) * self.scale).square().sum(-1))

            gram = kernel(known, known) + 0.1 * torch.eye(known.shape[0], dtype=known.dtype)
            factor = torch.linalg.cholesky(gram)
            mean = kernel(wanted, known) @ torch.cholesky_solve(values[:, None], factor).squeeze(1)
            half = torch.linalg.solve_triangular(factor, kernel(known, wanted), upper=False)
            return mean, 1 - half.square().sum(0), 2 * factor.diagonal().log().sum()

    def call(known: int, wanted: int) -> Method:
        wide = torch.float64
        return Method(
            (torch.randn(known, 3, dtype=wide), torch.randn(known, dtype=wide), torch.randn(wanted, 3, dtype=wide)),
            dynamic={"known": {0: "known"}, "values": {0: "known"}, "wanted": {0: "wanted"}},
        )

    sizes = [{"known": 6, "wanted": 4}, {"known": 3, "wanted": 9}, {"known": 12, "wanted": 2}]
    return Family(trained(GaussianProcess()), {"forward": call}, sizes)


@family
def running_statistics() -> Family:
    class Online(nn.Module):
        """Counts, averages and a ring of the last rows, all in buffers, of several dtypes."""

        count: Tensor
        mean: Tensor
        ring: Tensor
        started: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.tensor(0))
            self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
            self.register_buffer("ring", torch.zeros(4, 3))
            self.register_buffer("started", torch.tensor(False))

        def forward(self, row: Tensor) -> tuple[Tensor, ...]:
            self.count += 1
            self.mean += (row - self.mean) / self.count
            self.ring.copy_(self.ring.roll(1, 0))
            self.ring[0] = row
            first = ~self.started
            self.started.fill_(True)
            return self.count * 1, row - self.mean, self.ring.sum(0), first, self.ring.clone()

    return Family(Online().eval(), {"forward": lambda: Method((torch.randn(3),))}, [{}] * 6, stateful=True)


@family
def encode_and_decode() -> Family:
    class Codec(nn.Module):
        """Two methods that share a codebook."""

        def __init__(self) -> None:
            super().__init__()
            self.codebook = nn.Parameter(torch.randn(16, 4))
            self.project = nn.Linear(6, 4)
            self.restore = nn.Linear(4, 6)

        def encode(self, x: Tensor) -> Tensor:
            return (self.project(x)[:, None] - self.codebook).square().sum(-1).argmin(-1)

        def decode(self, codes: Tensor, *, scale: Tensor) -> Tensor:
            return self.restore(F.embedding(codes, self.codebook)) * scale

    def encode(batch: int) -> Method:
        return Method((torch.randn(batch, 6),), dynamic={"x": {0: "batch"}})

    def decode(batch: int) -> Method:
        return Method(
            (torch.randint(0, 16, (batch,)),), {"scale": torch.rand(1) + 0.5}, dynamic={"codes": {0: "batch"}}
        )

    return Family(trained(Codec()), {"encode": encode, "decode": decode}, batches(5, 1, 9))
