"""Models with operators of a user's own, from a shared library or from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

MODEL = '''
"""A model with operators of a shared library."""
import torch

own = torch.ops.torchcc_tests


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        y = own.soft_threshold(self.linear(x), 0.1)
        mean, variance = own.moments(y, [0])
        total = torch.zeros_like(y)
        own.accumulate_(total, [y, mean.expand_as(y), y.sin()])
        return {"total": total * 2, "spread": own.soft_threshold(variance.sqrt())}


def build():
    torch.manual_seed(3)
    return {"module": Net().eval(), "args": (torch.randn(4, 8),), "dynamic": {"x": {0: "n"}}}
'''

IN_PYTHON = '''
"""A model with an operator that is defined in Python."""
import torch


@torch.library.custom_op("torchcc_tests_python::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x):
    return torch.empty_like(x)


class Net(torch.nn.Module):
    def forward(self, x):
        return twice(x.cos()) + 1


def build():
    return Net(), (torch.randn(4, 8),)
'''


def torchcc(*arguments: object, code: int = 0) -> str:
    """Runs a command in a process of its own, where no operator is known yet; gives what it prints."""
    command = [sys.executable, "-m", "torchcc", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def library(libraries: Path, cpp_build: Callable[..., Path]) -> Path:
    return cpp_build("release") / "libcustom_operators.so"


@pytest.fixture(scope="module")
def exported(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("operators")
    (folder / "model.py").write_text(MODEL)
    printed = torchcc("export", f"{folder / 'model.py'}:build", "-o", folder / "model.pt2", "--operators", library)
    assert "equal to the graph on 5 sets of sizes" in printed
    return folder / "model.pt2"


def test_operators_of_a_library(library: Path, exported: Path) -> None:
    x = torch.randn(5, 8)
    file = exported.with_name("x.npy")
    numpy.save(file, x.numpy())
    torch.ops.load_library(library)
    module = torch.export.load(exported).module()
    with torch.no_grad():
        expected = module(x)
    for flags, backend in (((), "compiled"), (("--portable",), "portable")):
        ran = torchcc(
            "run", exported, "-i", file, "--operators", library, "--output", exported.parent / "out", "--json", *flags
        )
        assert json.loads(ran)["backend"] == backend
        for name, tensor in expected.items():
            got = torch.from_numpy(numpy.load(exported.parent / "out" / f"{name}.npy"))
            assert torch.allclose(got, tensor, atol=1e-5), (name, backend)
    checked = json.loads(torchcc("verify", exported, "--operators", library, "--json"))
    assert [check["outcome"] for check in checked["checks"]] == ["equal"] * 3, checked


def test_a_library_that_is_not_loaded(exported: Path) -> None:
    file = exported.with_name("y.npy")
    numpy.save(file, torch.randn(5, 8).numpy())
    printed = torchcc("run", exported, "-i", file, "--portable", code=1)
    assert "torchcc_tests" in printed and "fix:" in printed
    assert "load_operators" in printed
    printed = torchcc("verify", exported, code=1)
    assert "torchcc_tests" in printed and "--operators LIBRARY" in printed


@pytest.mark.slow
def test_operators_of_python(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(IN_PYTHON)
    torchcc("export", f"{tmp_path / 'model.py'}:build", "-o", tmp_path / "model.pt2")
    file = tmp_path / "x.npy"
    numpy.save(file, torch.randn(4, 8).numpy())
    # C++ has no such operator.
    printed = torchcc("run", tmp_path / "model.pt2", "-i", file, code=1)
    assert "torchcc_tests_python" in printed and "load_operators" in printed
