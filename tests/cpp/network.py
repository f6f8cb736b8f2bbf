"""Packages of whole models for the C++ tests, written into the folder that is the first argument."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import torchcc


class Network(nn.Module):
    """A small network whose output shows which weights it was computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(self.norm(self.first(x))))
        return y


class Scales(nn.Module):
    """Weights that are all one number, whose sum shows whether a call saw them all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.ones(64) for _ in range(8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for weight in self.weights:
            y = y + x * weight
        return y


class Cache(nn.Module):
    """Keeps what it was given, like a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(16, 4))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.index_copy_(0, self.count, x.unsqueeze(0))
        self.count.add_(1)
        return {"mean": self.seen.sum(0) / self.count, "count": self.count.clone()}

    def reset(self, value: torch.Tensor) -> torch.Tensor:
        self.seen.zero_()
        self.count.zero_()
        return value + 1


def main(folder: Path) -> None:
    torch.manual_seed(5)
    network = Network()
    network(torch.randn(64, 8))  # statistics
    network.eval()
    x = torch.randn(3, 8)
    dynamic = {"x": {0: "n"}}
    torchcc.export(folder / "network.pt2", network, (x,), dynamic=dynamic)
    torchcc.export(folder / "network-updatable.pt2", network, (x,), dynamic=dynamic, updatable=True)
    torchcc.export(folder / "network-portable.pt2", network, (x,), dynamic=dynamic, targets=["portable"])
    torchcc.export(folder / "scales.pt2", Scales(), (torch.randn(64),), updatable=True)
    torchcc.export(folder / "trains.pt2", Network().train(), (x,), dynamic=dynamic, ranges={"n": (2, None)}, train=True)
    methods = {"forward": torchcc.Method((torch.randn(4),)), "reset": torchcc.Method((torch.randn(1),))}
    torchcc.export(folder / "cache.pt2", Cache(), methods=methods)
    torch.export.save(
        torch.export.export(network, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n")}}), folder / "plain.pt2"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
