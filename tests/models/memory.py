"""What models do with memory: they share weights, keep state, and write into tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from models.family import Family, batches, family, trained
from torchcc import Method


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
