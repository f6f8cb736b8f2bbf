"""Packages of whole models: the portable engine against eager C++, compiled code against the plain loader, swaps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

import torchcc
from benchmarks import harness
from benchmarks.harness import Report
from benchmarks.models import MODELS, make

_TARGET = "packages"

#: A dispatcher call of the portable engine may cost so much of one that C++ code makes.
_PORTABLE_LIMIT = 1.1
_NATIVE_LIMIT = 1.02
#: A call beside a swap of the weights may wait for no more than another call.
_SWAP_LIMIT = 2.0


class HundredOperators(nn.Module):
    """The operators of ``hundred_operators`` in cpp/packages.cpp."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Two tensors of 8 floats."""
        y = x
        for _ in range(25):
            y = torch.relu(torch.mul(torch.add(y, w), x))
            y = torch.sub(y, w)
        return y


def run(quick: bool = False) -> Report:
    """Builds and runs the program.

    Args:
        quick: Measure too little to judge by.

    Raises:
        CompileError: A program or a model cannot be built, or failed.
    """
    rounds, calls = (5, 20) if quick else (1500, 100)
    program = harness.build(_TARGET) / _TARGET
    with tempfile.TemporaryDirectory(prefix="torchcc-benchmark-") as work:
        folder = Path(work)
        small = (torch.randn(8), torch.randn(8))
        torchcc.export(folder / "small.pt2", HundredOperators().eval(), small, targets=["portable"])
        module, x = make("encoder")
        torchcc.export(folder / "encoder.pt2", module, (x,))
        torchcc.export(folder / "encoder-updatable.pt2", module, (x,), updatable=True)
        with torch.no_grad():
            program_of = torch.export.export(module, (x,), strict=False)
            torch._inductor.aoti_compile_and_package(program_of, package_path=str(folder / "plain.pt2"))
        torch.save((x,), folder / "x.pt")
        overhead: Mapping[str, Sequence[float]] = harness.run_json(
            [program, "portable", folder, str(rounds), str(calls)], "the portable engine"
        )
        cases = [
            harness.case("100 operators on 8 floats: portable engine", overhead["portable"], "ns"),
            harness.case("100 operators on 8 floats: eager C++", overhead["eager"], "ns"),
            harness.case(
                "100 operators on 8 floats: portable engine over eager C++",
                harness.ratios(overhead["portable"], overhead["eager"]),
                "ratio",
                _PORTABLE_LIMIT,
            ),
        ]
        for threads in (1, 2):
            environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            native: Mapping[str, Sequence[float]] = harness.run_json(
                [program, "native", folder, str(5 if quick else 150), "1"], f"the encoder, {threads}", environment
            )
            title = f"{MODELS['encoder'].title}, {threads} {'thread' if threads == 1 else 'threads'}"
            cases += [harness.case(f"{title}: {name}", native[name], "ns") for name in native]
            cases.append(
                harness.case(
                    f"{title}: native package over AOTIModelPackageLoader::run",
                    harness.ratios(native["native"], native["loader"]),
                    "ratio",
                    _NATIVE_LIMIT,
                )
            )
        swap: Mapping[str, Sequence[float]] = harness.run_json(
            [program, "swap", folder, "2" if quick else "10", "1"], "swaps of weights"
        )
    cases.append(harness.case("set_weights() of the encoder", swap["swap"], "ns"))
    cases.append(
        harness.case(
            "slowest of 100 calls of 4 threads: beside swaps over without",
            harness.ratios(swap["beside"], swap["without"]),
            "ratio",
            _SWAP_LIMIT,
        )
    )
    notes = [
        f"portable engine: {rounds} rounds of {calls} calls of each in turn, one thread, grad mode off",
        "swaps: code that takes its weights as inputs; one thread replaces all weights every millisecond",
    ]
    return Report(cases, notes)
