"""Models of packages that tests of the command line share, exported by conftest.py, and functions that give none."""

import torch

import torchcc


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, ids, *, state, mask=None):
        x = self.encode(ids) + state["bias"]
        return {"scores": self.head(x), "parts": (x.sum(0), mask.sum())}

    def encode(self, ids):
        return self.embed(ids).mean(1)


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x):
        self.total += x.sum(0)
        return self.total * 2


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        return torch.relu(self.linear(x)) * 2


class Noise(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def net():
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (2, 7))
    keywords = {"state": {"bias": torch.randn(16)}, "mask": torch.ones(2, 7)}
    sizes = {0: "batch", 1: "length"}
    return {
        "module": Net().eval(),
        "methods": {
            "forward": torchcc.Method((ids,), keywords, {"ids": sizes, "mask": sizes}),
            "encode": torchcc.Method((ids,), dynamic={"ids": sizes}),
        },
        "ranges": {"length": (1, 64)},
    }


def counter():
    return Counter(), (torch.randn(2, 3),)


def layer():
    torch.manual_seed(1)
    return {"module": Layer().eval(), "args": (torch.randn(3, 8),), "dynamic": {"x": {0: "n"}}}


def noise():
    return Noise(), (torch.randn(2, 3),), {}


def one():
    return (1,)


def unknown():
    return {"module": Counter(), "dynamics": 3}


def no_tuple():
    return Counter(), torch.ones(2, 3)


def no_module():
    return torch.relu, (torch.ones(2),)


def fails():
    return 1 / 0


VALUE = 3
