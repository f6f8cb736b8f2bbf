"""The networks of the benchmark ``training``, their optimisers and data; ``cpp/trainings.cpp`` has the same ones.

All are float32 and in training mode. The loss is the cross entropy of what a network gives and the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import Layer

#: Steps whose losses are compared.
STEPS = 20


def mlp() -> nn.Module:
    """Three linear layers."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    """Three convolutions, each with batch norm."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    blocks = [*block(3, 16, 1), *block(16, 32, 2), *block(32, 64, 2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Gpt(nn.Module):
    """Two layers with causal attention."""

    tokens, context, width, depth = 256, 64, 128, 2

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(self.tokens, self.width)
        self.position = nn.Parameter(0.02 * torch.randn(self.context, self.width))
        self.layers = nn.ModuleList(Layer(self.width, causal=True) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, self.tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next token, one row for each token of the batch."""
        x = self.token(tokens) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)).flatten(0, 1)


Batch = tuple[Tensor, Tensor]


def _images(batches: int, *sizes: int) -> list[Batch]:
    return [(torch.randn(sizes), torch.randint(10, (sizes[0],))) for _ in range(batches)]


def _texts(batches: int, count: int) -> list[Batch]:
    texts = [torch.randint(Gpt.tokens, (count, Gpt.context + 1)) for _ in range(batches)]
    return [(text[:, :-1].contiguous(), text[:, 1:].flatten()) for text in texts]


@dataclass(frozen=True)
class Training:
    """A network and how it is trained.

    Attributes:
        title: How cases name it.
        make: The network, with weights of its own.
        optimizer: Makes its optimiser.
        batches: Makes its data. They are random, and so many that no network learns them by heart while it is
            measured: gradients stay of ordinary size, and no time is one of denormal numbers.
    """

    title: str
    make: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    batches: Callable[[], list[Batch]]


#: By the name that the programs know.
TRAININGS = {
    "mlp": Training(
        "MLP 64-256-256-10, batch 256, Adam",
        mlp,
        lambda weights: torch.optim.Adam(weights, 1e-3),
        lambda: _images(64, 256, 64),
    ),
    "cnn": Training(
        "CNN with batch norm, 32 x 32 pixels, batch 32, SGD with momentum",
        cnn,
        lambda weights: torch.optim.SGD(weights, 0.01, momentum=0.9),
        lambda: _images(16, 32, 3, 32, 32),
    ),
    "gpt": Training(
        "GPT, 2 layers of width 128, 8 x 64 tokens, AdamW",
        Gpt,
        lambda weights: torch.optim.AdamW(weights, 3e-4),
        lambda: _texts(16, 8),
    ),
}


def make(name: str) -> tuple[nn.Module, torch.optim.Optimizer, list[Batch]]:
    """A network, its optimiser and its data, the same ones each time."""
    torch.manual_seed(0)
    training = TRAININGS[name]
    network = training.make()
    return network, training.optimizer(network.parameters()), training.batches()


def make_step(name: str, compiled: bool) -> tuple[Callable[[], Tensor], nn.Module, list[Batch]]:
    """A function that trains on the next batch and gives its loss; the network, and all batches.

    Args:
        name: Name of the training.
        compiled: Whether forward and backward are compiled by ``torch.compile``, and the optimiser by another one.
            Other forms (``foreach``, ``capturable``, one ``torch.compile`` around the whole step, which it leaves for
            backward) took the same time within 1 %.
    """
    network, optimizer, batches = make(name)

    def forward(x: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(network(x), target)

    loss_of = torch.compile(forward) if compiled else forward
    update = torch.compile(lambda: optimizer.step()) if compiled else optimizer.step
    done = 0

    def step() -> Tensor:
        nonlocal done
        x, target = batches[done % len(batches)]
        done += 1
        optimizer.zero_grad()
        loss = loss_of(x, target)
        loss.backward()
        update()
        return loss

    return step, network, batches
