"""What a call of compiled code costs beside the code itself, and how calls from many threads scale."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks import harness
from benchmarks.harness import Case, Report

_TARGET = "call_overhead"
_PACKAGE = Path("benchmark_regions.torchcc") / "benchmark_regions.pt2"

#: Names of the contenders, by their keys in the programs' output; the order is the table's.
_CALLS = {
    "typed": "torchcc, typed function",
    "handle": "torchcc::Function",
    "out": "torchcc, typed function into a given output",
    "loader": "AOTIModelPackageLoader::run, unchecked",
    "bare": "AOTInductorModelContainerRun, unchecked",
    "bare_single": "AOTInductorModelContainerRunSingleThreaded, unchecked",
    "eager": "eager LibTorch",
    "python_compile": "Python, torch.compile",
    "python_aoti": "Python, aoti_load_package",
}

#: Limits of the typed function's time over another's.
_LIMITS = {"loader": 0.8, "bare": 1.3, "bare_single": None}


class _Threads(TypedDict):
    """The heavy region: its size, nanoseconds per call on one thread, calls per second by number of threads."""

    size: int
    kernel: list[float]
    rates: dict[str, list[float]]


class _Native(TypedDict):
    """What the C++ program prints: nanoseconds per call by contender, the thread test, the number of wrong results."""

    calls: dict[str, list[float]]
    threads: _Threads
    wrong: int


def run(quick: bool = False) -> Report:
    """Builds and runs the programs.

    Args:
        quick: Measure too little to judge by.

    Raises:
        CompileError: A program cannot be built, or failed.
    """
    rounds, calls, thread_rounds, bursts = (5, 20, 3, 5) if quick else (5000, 100, 15, 100)
    folder = harness.build(_TARGET)
    package = folder / _PACKAGE
    native: _Native = harness.run_json(
        [folder / _TARGET, package, *map(str, (rounds, calls, thread_rounds, bursts))], "calling from C++"
    )
    python: dict[str, list[float]] = harness.run_json(
        [sys.executable, "-m", "benchmarks.python_calls", package, str(max(rounds // 10, 5)), str(calls)],
        "calling from Python",
    )
    threads = native["threads"]
    kernel = statistics.median(threads["kernel"]) / 1000
    notes = [
        f"calls: two inputs of 16 floats, one thread, {rounds} rounds of {calls} calls of each contender in turn",
        f"threads: one torchcc::Function, {threads['size']} floats, {kernel:.1f} us for a call on one thread, "
        f"{thread_rounds} rounds, of each the fastest of {bursts} bursts of 20 calls a thread",
    ]
    return Report([*_call_cases({**native["calls"], **python}), *_thread_cases(threads), _wrong(native)], notes)


def _call_cases(samples: Mapping[str, Sequence[float]]) -> list[Case]:
    cases = [harness.case(f"call: {name}", samples[key], "ns") for key, name in _CALLS.items()]
    for key, limit in _LIMITS.items():
        name = f"torchcc's typed function over {_CALLS[key].removesuffix(', unchecked')}"
        cases.append(harness.case(name, harness.ratios(samples["typed"], samples[key]), "ratio", limit))
    return cases


def _thread_cases(threads: _Threads) -> list[Case]:
    rates = threads["rates"]
    cases = [harness.case("threads: a call on one thread", [time / 1000 for time in threads["kernel"]], "us")]
    for count in ("1", "2", "4", "8"):
        cases.append(harness.case(f"threads: throughput of {count}", rates[count], "calls/s"))
    limit = 1.7 if harness.cores() >= 2 else None
    name = "throughput of 2 threads over 1, at least"
    cases.append(harness.case(name, harness.ratios(rates["2"], rates["1"]), "ratio", limit, at_least=True))
    return cases


def _wrong(native: _Native) -> Case:
    return Case("wrong results in 8 x 10,000 calls from 8 threads", native["wrong"], "results", 0)
