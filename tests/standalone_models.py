"""The models that are shipped without libtorch, and calls of them; conftest.py exports them once for all tests."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from models import FAMILIES, trained
from torch import Tensor, nn
from torch.nn import functional

import torchcc
from torchcc import Method, exporter, package_reader
from torchcc.examples.digits import digits
from torchcc.export_settings import ExportSettings
from torchcc.exporter import Exported
from torchcc.signature import Guard


def _sentences() -> ModuleType:
    """The example with all-MiniLM-L6-v2, which is a script."""
    file = Path(torchcc.__file__).parent / "examples/sentences/export.py"
    spec = importlib.util.spec_from_file_location("sentences", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Zoo(nn.Module):
    """Several models as the methods of one, which are generated and built in one go."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _sentences().load()
        self.language = FAMILIES["lstm"]().module
        self.decoder = FAMILIES["decoder_with_cache_in_buffers"]().module

    def embed(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """MiniLM with its weights: one vector for each row of token ids."""
        return self.encoder(ids, mask)

    def predict(self, tokens: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An LSTM's scores of next tokens, and its state."""
        scores, (hidden, cell) = self.language(tokens, (hidden, cell))
        return scores, hidden, cell

    def decode(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """A small GPT's scores after one more token; keys and values stay in its buffers."""
        return self.decoder(token)


class Convolutions(nn.Module):
    """What libtorch's own kernels do, or oneDNN's: convolutions, into which batch norm is folded, and products."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.layers(x)).mean((2, 3)))

    def relate(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Products of matrices whose last size varies, or the size that is summed over."""
        alike = rows @ rows.T
        mixed = torch.addmm(rows[0], alike, rows, beta=0.5, alpha=0.25)
        both = torch.stack([alike, alike.tanh()])
        return alike, self.head(mixed), both @ both


def classifier() -> dict[str, Any]:
    images = torch.randint(0, 17, (5, 8, 8), dtype=torch.uint8)
    return {"module": digits.load(), "args": (images,), "dynamic": {"images": {0: "n"}}}


def zoo() -> dict[str, Any]:
    size = {0: "batch", 1: "length"}
    methods = {
        "embed": Method(_ids(3, 12), dynamic={"ids": size, "mask": size}),
        "predict": Method((torch.randint(0, 20, (3, 7)), torch.randn(2, 3, 12), torch.randn(2, 3, 12))),
        "decode": Method((torch.randint(0, 15, (1, 1)),)),
    }
    return {"module": Zoo().eval(), "methods": methods, "ranges": {"batch": (1, 64), "length": (2, 256)}}


def convolutions() -> dict[str, Any]:
    methods = {
        "forward": Method((torch.randn(1, 3, 8, 8),)),
        "relate": Method((torch.randn(5, 8),), dynamic={"rows": {0: "n"}}),
    }
    return {"module": trained(Convolutions()), "methods": methods, "ranges": {"n": (2, 100)}}


def export(folder: Path, name: str, **options: Any) -> Exported:
    """Exports a model of this file by its name, by default as sources alone."""
    torch.manual_seed(0)
    given = globals()[name]()
    return torchcc.export(folder / f"{name}.pt2", **given, **{"targets": ["standalone"], **options})


def export_all(folder: Path) -> None:
    """Writes a package and sources of each model, and ``checks.json``: how sources were compared with the graphs."""
    checks: dict[str, str] = {}
    models: dict[str, dict[str, Any]] = {
        "classifier": {},
        "zoo": {"weights": "file"},
        "convolutions": {"libraries": ["onednn"]},
    }
    for name, options in models.items():
        exported = export(folder, name, targets=["portable", "standalone"], **options)
        checks.update({f"{name}: {function}": checked for function, checked in exported.checks.items()})
    exported = _export_for_any_machine(folder / "classifier.pt2", folder / "scalar")
    checks.update({f"scalar: {function}": checked for function, checked in exported.checks.items()})
    (folder / "checks.json").write_text(json.dumps(checks))


def _export_for_any_machine(file: Path, folder: Path) -> Exported:
    """Writes sources without vectors, with flags for 64-bit ARM, of a package whose function is not for 3 images.

    Functions that were captured in C++ can have such conditions.
    """
    folder.mkdir()
    with tempfile.TemporaryDirectory() as work:
        (function,) = package_reader.read(file, Path(work))
        signature = dataclasses.replace(function.signature, guards=(Guard("!=", "n", 3),))
        functions = [dataclasses.replace(function, signature=signature)]
        settings = ExportSettings(["standalone-scalar"], march="armv8-a")
        return exporter.write(folder / file.name, functions, settings)


#: A call: package, function, arguments.
Call = tuple[str, str, Sequence[Tensor]]


def calls(packages: Sequence[str]) -> list[Call]:
    """Calls of the functions of some packages, at several sizes; those of the decoder continue one another."""
    torch.manual_seed(1)
    made: list[Call] = [
        *(("classifier", "forward", (torch.randint(0, 17, (n, 8, 8), dtype=torch.uint8),)) for n in (7, 1, 40)),
        *(("zoo", "embed", _ids(*size)) for size in ((1, 9), (4, 21))),
        ("zoo", "predict", (torch.randint(0, 20, (3, 7)), torch.randn(2, 3, 12), torch.randn(2, 3, 12))),
        *(("zoo", "decode", (torch.randint(0, 15, (1, 1)),)) for _ in range(6)),
        ("convolutions", "forward", (torch.randn(1, 3, 8, 8),)),
        *(("convolutions", "relate", (torch.randn(n, 8),)) for n in (2, 5, 33)),
    ]
    return [call for call in made if call[0] in packages]


def _ids(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids, and a mask that leaves some out at the end of all rows but the first."""
    lengths = length - torch.arange(batch).unsqueeze(1) % (length - 1)
    return torch.randint(1000, 20000, (batch, length)), (torch.arange(length) < lengths).long()


def write_calls(file: Path, made: Sequence[Call]) -> None:
    """Writes calls as standalone/calls.h reads them."""
    with file.open("wb") as out:
        for package, function, tensors in made:
            name = f"{package}.{function}".encode()
            out.write(struct.pack("q", len(name)) + name)
            for tensor in tensors:
                out.write(struct.pack(f"{1 + tensor.dim()}q", tensor.dim(), *tensor.shape) + tensor.numpy().tobytes())


def read_results(file: Path, like: Sequence[Tensor]) -> list[Tensor]:
    """Reads results that have these forms."""
    content = bytearray(file.read_bytes())
    assert len(content) == sum(one.numel() * one.element_size() for one in like)
    found, start = [], 0
    for one in like:
        found.append(torch.frombuffer(content, dtype=one.dtype, count=one.numel(), offset=start).view(one.shape))
        start += one.numel() * one.element_size()
    return found


if __name__ == "__main__":
    export_all(Path(sys.argv[1]))
