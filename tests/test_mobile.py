"""The target mobile: files for ExecuTorch, which Python and C++ run."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from models import FAMILIES
from standalone_models import Convolutions, trained

import torchcc
from torchcc import calling, mobile, native, targets
from torchcc.errors import ArgumentError, CompileError, PackageError
from torchcc.examples.digits import digits

EXAMPLE = Path(torchcc.__file__).parent / "examples" / "mobile"
DIGITS = "forward(images: uint8[n, 8, 8]) -> float32[n, 10] with 1 <= n <= 512"


def run(*command: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mobile")
    printed = run(sys.executable, EXAMPLE / "export.py", folder).stdout.splitlines()
    assert re.match(r"forward, mobile: equal to PyTorch on \d sets of sizes$", printed[0])
    assert printed[1] == str(folder / "digits.pte")
    assert [file.name for file in folder.iterdir()] == ["digits.pte"]  # no package for this target alone
    return folder / "digits.pte"


def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    records = torch.from_numpy(numpy.fromfile(digits.DATA, numpy.uint8).reshape(-1, 65))[:: digits.HELD_OUT]
    return records[:450, :64].reshape(-1, 8, 8), records[:450, 64]


def test_in_python(exported: Path, tmp_path: Path) -> None:
    """`torchcc run` runs it, by the names of the signature."""
    images, _ = held_out()
    numpy.save(tmp_path / "x.npy", images.numpy())
    command = [sys.executable, "-m", "torchcc", "run", exported, "--output", tmp_path]
    ran = json.loads(run(*command, "--input", f"images={tmp_path / 'x.npy'}", "--json").stdout)
    assert (ran["signature"], ran["backend"], ran["target"]) == (DIGITS, "executorch", "xnnpack")
    assert [(one["name"], one["sizes"]) for one in ran["outputs"]] == [("out", [450, 10])]
    with torch.no_grad():
        expected = digits.load()(images)
    got = torch.from_numpy(numpy.load(tmp_path / "out.npy"))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_in_cpp(exported: Path, tmp_path: Path) -> None:
    """The example, with ExecuTorch's own CMake package."""
    import executorch

    definitions = [f"CMAKE_PREFIX_PATH={next(iter(executorch.__path__))}", "CMAKE_BUILD_TYPE=Release"]
    native.build_project(EXAMPLE, tmp_path / "build", definitions)
    signatures, counted = run(tmp_path / "build/digits_mobile", exported, digits.DATA).stdout.strip().splitlines()
    assert [one["name"] for one in json.loads(signatures)] == ["forward"]
    images, labels = held_out()
    with torch.no_grad():
        right = (digits.load()(images).argmax(1) == labels).double().mean().item()
    assert counted == f"450 images, {100 * right:.1f} % right"
    errors = run(tmp_path / "build/digits_mobile", digits.WEIGHTS, digits.DATA, status=1).stderr
    assert errors.strip().endswith("not a file that torchcc wrote")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with its cache in buffers, and a CNN: two functions of one file."""
    torch.manual_seed(0)

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = FAMILIES["decoder_with_cache_in_buffers"]().module
            self.convolutions = trained(Convolutions())

        def decode(self, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.decoder(token)

        def see(self, picture: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": self.convolutions(picture)}

    methods = {
        "decode": torchcc.Method((torch.randint(0, 15, (1, 1)),)),
        "see": torchcc.Method((torch.randn(1, 3, 8, 8),)),
    }
    folder = tmp_path_factory.mktemp("several")
    made = torchcc.export(folder / "both.pt2", Both().eval(), methods=methods, targets=["mobile", "portable"])
    assert set(made.checks) == {"decode, mobile", "see, mobile"}
    assert made.package.exists() and made.mobile == folder / "both.pte"
    return made.mobile


def test_several_functions(several: Path) -> None:
    known = mobile.signatures(several)
    assert str(known["see"]) == "see(picture: float32[1, 3, 8, 8]) -> float32[1, 4]"
    assert [value.name for value in known["see"].outputs] == ["scores"]
    results, _ = mobile.run(several, known["decode"], [torch.tensor([[3]])])
    assert results[1].tolist() == [1]  # the position, which began with 0
    with pytest.raises(ArgumentError, match="it has several functions"):
        calling.run(several, None, [])


@pytest.mark.parametrize(
    ("tensor", "pattern"),
    [
        (torch.zeros(4, 8, 8), r"argument 'images' does not fit.*expected: +uint8\[n, 8, 8\].*got: +float32"),
        (torch.zeros(4, 8, 9, dtype=torch.uint8), r"does not fit.*got: +uint8 of sizes \[4, 8, 9\]"),
        (torch.zeros(4, 8, dtype=torch.uint8), r"does not fit.*got: +uint8 of sizes \[4, 8\]"),
        (torch.zeros(513, 8, 8, dtype=torch.uint8), r"out of range.*expected: +1 <= n <= 512.*got: +n = 513"),
    ],
)
def test_arguments_are_checked(exported: Path, tensor: torch.Tensor, pattern: str) -> None:
    with pytest.raises(ArgumentError, match=f"(?s){pattern}.*fix: "):
        mobile.run(exported, mobile.signatures(exported)["forward"], [tensor])


def test_other_files(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pte").write_bytes(exported.read_bytes()[:1000])
    with pytest.raises(PackageError, match=r"(?s)x\.pte: no file of torchcc's.*fix: +export the model with --target"):
        mobile.signatures(tmp_path / "x.pte")
    with pytest.raises(PackageError, match=r"(?s)absent\.pte: it cannot be read.*fix: +check the path"):
        mobile.signatures(tmp_path / "absent.pte")
    with pytest.raises(ArgumentError, match=r"(?s)got: +--portable.*fix: +leave it out"):
        calling.run(exported, None, [f"images={tmp_path / 'x.npy'}"], portable=True)


def test_models_that_it_cannot_be(tmp_path: Path) -> None:
    images = torch.zeros(2, 8, 8, dtype=torch.uint8)
    options: dict[str, Any] = {"dynamic": {"images": {0: "n"}}, "targets": ["mobile"]}
    with pytest.raises(ArgumentError, match=r"(?s)'n' has no largest value.*got: +1 <= n.*fix: +give one: ranges="):
        torchcc.export(tmp_path / "x.pt2", digits.load(), (images,), **options)

    class Writes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.add_(1)

    with pytest.raises(ArgumentError, match=r"(?s)'x' is none that mobile can have.*fix: +give the new value"):
        torchcc.export(tmp_path / "x.pt2", Writes(), (torch.zeros(2),), targets=["mobile"])

    class Eigenvalues(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    with pytest.raises(CompileError, match=r"(?s)ExecuTorch cannot translate forward.*fix: +ship it with libtorch"):
        torchcc.export(tmp_path / "x.pt2", Eigenvalues(), (torch.eye(2),), targets=["mobile"])
    assert not list(tmp_path.iterdir())


def test_without_executorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(CompileError, match=r"(?s)ExecuTorch was not found.*got: +none.*fix: +pip install 'torchcc"):
        targets.check_targets(["mobile"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.4.2")
    with pytest.raises(CompileError, match=r"(?s)too old.*expected: +the Python package executorch, 1\.5.*got: +1\.4"):
        targets.check_targets(["mobile"])
