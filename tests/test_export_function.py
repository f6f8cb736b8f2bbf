"""``torchcc::export_function``: packages of functions written in C++, opened in C++ and in Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from torchcc import package_reader


@dataclass(frozen=True)
class Ran:
    """What the program printed, by the first word of the line, and the folder that it wrote to."""

    lines: dict[str, str]
    folder: Path


def run(program: Path, command: str, folder: Path) -> Ran:
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "CXX", "TORCHINDUCTOR_CACHE_DIR") if name in os.environ}
    done = subprocess.run(
        [program, command, folder],
        env={**keep, "TORCHCC_CACHE": str(folder / "cache"), "TORCHCC_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    parts = (line.partition(" ") for line in done.stdout.splitlines() if not line.startswith(" "))
    return Ran({first.rstrip(":"): rest for first, _, rest in parts}, folder)


@pytest.fixture(scope="module")
def ran(cpp_build: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(cpp_build("release") / "exports", "good", tmp_path_factory.mktemp("exports"))


@pytest.mark.parametrize(("target", "backend"), [("portable", "portable"), ("native", "compiled")])
def test_a_network_of_torch_nn(ran: Ran, target: str, backend: str) -> None:
    ran_backend, difference, signature = ran.lines[target].split(" ", 2)
    assert ran_backend == backend
    assert float(difference) < 1e-5
    assert signature == "forward(image: float32[4, 1, 8, 8]) -> float32[4, 10]"


@pytest.mark.parametrize("target", ["portable", "native"])
def test_python_opens_it(ran: Ran, target: str) -> None:
    program = torch.export.load(ran.folder / f"network-{target}.pt2")
    x, expected = torch.load(ran.folder / f"network-{target}.pt", weights_only=True)
    assert torch.allclose(program.module()(x), expected, atol=1e-5)
    assert set(program.state_dict) == {
        *(f"{name}.{kind}" for name in ("conv", "norm", "head.0", "head.2") for kind in ("weight", "bias")),
        "norm.running_mean",
        "norm.running_var",
    }
    assert isinstance(program.state_dict["conv.weight"], torch.nn.Parameter)
    assert not isinstance(program.state_dict["norm.running_mean"], torch.nn.Parameter)


def test_a_lambda_with_named_weights(ran: Ran) -> None:
    assert float(ran.lines["lambda"]) < 1e-5
    x, mean, cell = torch.load(ran.folder / "lambda.pt", weights_only=True)
    program = torch.export.load(ran.folder / "lambda.pt2")
    for got, expected in zip(program.module()(x), (mean, cell), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)
    assert {"linear.weight", "lstm.weight_ih_l0"} <= set(program.state_dict)
    (function,) = package_reader.read_manifest(ran.folder / "lambda.pt2")["functions"]
    assert [value["name"] for value in function["signature"]["inputs"]] == ["arg0"]


def test_captured_state_persists(ran: Ran) -> None:
    assert float(ran.lines["state"]) == 6


def test_a_chain_is_one_graph(ran: Ran) -> None:
    """The function of the package is captured operator by operator, although it has compiled code."""
    difference, replayed, operators = (ran.lines["chain"].split()[position] for position in (0, 2, 4))
    assert float(difference) < 1e-5
    assert int(replayed) == 3
    assert int(operators) > 8


@pytest.mark.parametrize(
    ("title", "kind", "words"),
    [
        ("branch", "CaptureError", "item"),
        ("counter", "CaptureError", "differs from call to call"),
        ("argument", "CaptureError", "a result that is an argument"),
        ("target", "ArgumentError", "unknown target 'z80'"),
        ("python", "CompileError", "no Python with torchcc was found"),
    ],
)
def test_mistakes(mistakes: str, title: str, kind: str, words: str) -> None:
    (message,) = [part for part in mistakes.split("\n## ") if part.startswith(f"{title}: {kind} ")]
    assert words in message
    assert "fix:" in message


@pytest.fixture(scope="module")
def mistakes(cpp_build: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mistakes")
    done = subprocess.run(
        [cpp_build("release") / "exports", "mistakes", folder],
        env={**os.environ, "TORCHCC_CACHE": str(folder / "cache"), "TORCHCC_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert not (folder / "mistake.pt2").exists()
    return "\n" + "\n".join(line if line.startswith(" ") else f"## {line}" for line in done.stdout.splitlines())
