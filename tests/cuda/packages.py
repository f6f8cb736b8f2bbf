"""Writes the packages of these tests: ``python packages.py FOLDER NAME``. They need a GPU to be made and to be run."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import torchcc
from torchcc import Method, builder, package_reader, package_writer


class Functions(nn.Module):
    """One method for each thing that a function on a GPU may do."""

    state: Tensor
    mix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 256)
        self.second = nn.Linear(256, 64)
        self.register_buffer("state", torch.zeros(128))
        self.register_buffer("mix", torch.randn(64, 64) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))

    def add_into(self, x: Tensor, y: Tensor) -> Tensor:
        """Writes into an argument."""
        y.add_(x)
        return y * 2

    def remember(self, x: Tensor) -> Tensor:
        """Writes into a buffer."""
        self.state.mul_(0.5).add_(x.mean(0))
        return self.state + 1

    def mixed(self, x: Tensor, shift: Tensor) -> Tensor:
        """Takes an argument on the CPU."""
        return x + shift.to(x.device)

    def host(self, x: Tensor) -> Tensor:
        """Reads a value."""
        return x * x.sum().item()

    def random(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)

    def turned(self, x: Tensor) -> Tensor:
        """Returns a view."""
        return x.t()

    def chain(self, x: Tensor) -> Tensor:
        """Many small kernels, which leave most of the GPU to others."""
        for _ in range(100):
            x = torch.tanh(x @ self.mix)
        return x

    def large(self, x: Tensor) -> Tensor:
        """Needs 12 kB beside each number."""
        spread = x[:, None] * torch.linspace(0, 1, 1024, device=x.device)
        return torch.sort(spread, dim=1).values.sum(1)


def module() -> Functions:
    torch.manual_seed(0)
    return Functions().cuda().eval()


def export_functions(file: Path) -> None:
    """All methods, weights burnt in."""
    x, n = torch.randn(8, 128, device="cuda"), {0: "n"}
    methods = {
        "forward": Method((x,), dynamic={"x": n}),
        "add_into": Method((x, x.clone()), dynamic={"x": n, "y": n}),
        "remember": Method((x,), dynamic={"x": n}),
        "mixed": Method((x, torch.randn(128)), dynamic={"x": n, "shift": None}),
        "host": Method((x,), dynamic={"x": n}),
        "random": Method((x,), dynamic={"x": n}),
        "turned": Method((x,), dynamic={"x": n}),
        "chain": Method((torch.randn(64, 64, device="cuda"),)),
        "large": Method((torch.randn(8, device="cuda"),), dynamic={"x": n}),
    }
    torchcc.export(file, module(), methods=methods, ranges={"n": (2, 1 << 24)})


def export_updatable(file: Path) -> None:
    x = torch.randn(8, 128, device="cuda")
    torchcc.export(file, module(), (x,), dynamic={"x": {0: "n"}}, updatable=True)


def export_training(file: Path) -> None:
    x = torch.randn(8, 128, device="cuda")
    torchcc.export(file, module(), (x,), dynamic={"x": {0: "n"}}, train=True)


def export_half(file: Path) -> None:
    """In half and in bfloat16, with what Inductor measures."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(8, 128, device="cuda", dtype=dtype)
        name = file.with_name(f"{str(dtype).removeprefix('torch.')}.pt2")
        torchcc.export(name, module().to(dtype), (x,), options={"max_autotune": True})
    file.touch()


class Eight(nn.Module):
    """A product of matrices of 8-bit numbers."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        one = torch.ones((), device=a.device)
        return torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.float16)


def export_eight(file: Path) -> None:
    a, b = (torch.randn(size, 128, device="cuda").to(torch.float8_e4m3fn) for size in (32, 64))
    torchcc.export(file, Eight(), (a, b))


def export_portable(file: Path) -> None:
    """The graph alone; and beside it the code of another GPU, or what says that it is."""
    x = torch.randn(8, 128, device="cuda")
    torchcc.export(file, module(), (x,), dynamic={"x": {0: "n"}}, targets=["portable"])
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.pt2"
        torchcc.export(made, module(), (x,), dynamic={"x": {0: "n"}})
        (function,) = package_reader.read(made, Path(folder) / "files")
        for name, target in {"foreign": "cuda-sm35", "later": "cuda-sm999+", "earlier": "cuda-sm70+"}.items():
            variants = [dataclasses.replace(one, target=target) for one in function.variants]
            package_writer.write(file.with_name(f"{name}.pt2"), [dataclasses.replace(function, variants=variants)])


class Pointwise(nn.Module):
    """Needs kernels of Inductor's alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x * 2) + 1


def export_many(file: Path) -> None:
    """Kernels as PTX beside machine code, and as machine code alone."""
    x = torch.randn(8, 128, device="cuda")
    torchcc.export(file, Pointwise(), (x,), options={"aot_inductor.emit_multi_arch_kernel": True})
    torchcc.export(file.with_name("single.pt2"), Pointwise(), (x,))


def build_regions(file: Path) -> None:
    builder.build([Path(__file__).with_name("kernels.py")], file.parent, name="kernels", namespace="kernels")


PACKAGES = {
    "functions": export_functions,
    "updatable": export_updatable,
    "training": export_training,
    "half": export_half,
    "eight": export_eight,
    "portable": export_portable,
    "many": export_many,
    "kernels": build_regions,
}

if __name__ == "__main__":
    PACKAGES[sys.argv[2]](Path(sys.argv[1]) / f"{sys.argv[2]}.pt2")
