"""Branches and loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._higher_order_ops import scan, while_loop
from torch._higher_order_ops.map import map as map_over

from models.family import Family, batches, family, trained
from models.perceptrons import MLP
from torchcc import Method


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
