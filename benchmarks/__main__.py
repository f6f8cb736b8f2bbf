"""``python -m benchmarks NAME [--json FILE] [--plot FILE] [--quick]`` runs one benchmark; without a name, lists all."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from rich.console import Console

import torchcc
from benchmarks import harness
from torchcc import loss_plot

#: Name of the module in this folder, perhaps with what it takes behind a dash, and what it measures.
BENCHMARKS = {
    "call_overhead": "what a call costs beside the compiled code, and how calls from many threads scale",
    "packages": "the portable engine, compiled packages against the plain loader, and swaps of weights",
    "capture": "what recording and replay cost, and compiled C++ against other ways to run a model",
    "lazy": "what lazy mode costs an operator, and a loop over time steps",
    "sizes": "what code for many sizes costs beside code for one",
    "footprint": "programs with libtorch and without, ExecuTorch, ONNX Runtime: size, start, memory, time of a call",
    "training": "compiled steps of training in C++ against eager ones and Python's, and their memory",
    "cuda-mlp": "on a GPU: a small MLP from C++ with CUDA graphs against Python's torch.compile",
    "cuda-decode": "the same for a step of GPT-2 with a cache",
    "cuda-encoder": "the same for BERT-base on a large batch",
    "cuda-training": "on a GPU: steps of training GPT-2 in compiled C++ against Python's torch.compile",
}


def main() -> int:
    """Runs the command line; returns the exit status, 0 also when a limit does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, help="the benchmark to run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the cases to this file")
    parser.add_argument("--quick", action="store_true", help="measure too little to judge by; to try the benchmark out")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the cases into this PNG file (footprint)")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name, title in BENCHMARKS.items():
            print(f"{name:<16}{title}")
        return 0
    name, _, part = arguments.name.partition("-")
    module = importlib.import_module(f"benchmarks.{name}")
    run: harness.Benchmark = module.run
    if arguments.plot is not None and not hasattr(module, "draw"):
        parser.error(f"{name} draws nothing: leave --plot out")
    try:
        if arguments.plot is not None:
            loss_plot.require(arguments.plot)
        report = run(arguments.quick, part) if part else run(arguments.quick)
    except torchcc.Error as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        return 1
    harness.show(report, arguments.name)
    if arguments.json is not None:
        harness.write_json(report, arguments.json)
    if arguments.plot is not None:
        module.draw(arguments.plot, report.cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
