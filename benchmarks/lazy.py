"""What lazy mode costs an operator and a loop over time steps, beside eager LibTorch and PyTorch's own lazy tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from benchmarks import harness
from benchmarks.harness import Case, Report

#: Names of the contenders, by their keys in the program's output.
_CONTENDERS = {
    "lazy": "torchcc's lazy mode",
    "eager": "eager LibTorch",
    "theirs": "PyTorch's lazy tensors, TorchScript backend",
}

#: Limits of lazy mode's time over eager's.
_TINY, _CELL = 0.35, 0.6


class _Measured(TypedDict):
    """Number of operators and of time steps; nanoseconds a call by contender."""

    operators: int
    tiny: dict[str, list[float]]
    steps: int
    cell: dict[str, list[float]]


def run(quick: bool = False) -> Report:
    """Builds and runs the program.

    Args:
        quick: Measure too little to judge by.

    Raises:
        CompileError: It cannot be built, or failed, or gives other results than eager LibTorch.
    """
    # Some milliseconds of each at a time: after the others had the caches, the first calls are slower.
    rounds, calls = (5, 3) if quick else (60, 100)
    program = harness.build("lazy") / "lazy"
    measured: _Measured = harness.run_json([program, str(rounds), str(calls)], "lazy mode", harness.ONE_THREAD)
    notes = [
        f"one thread, without gradients, {rounds} rounds of {calls} calls of each contender in turn; a call's own work "
        "and that of its compiled code are in the times"
    ]
    tiny = f"{measured['operators']} pointwise operators on 16 floats"
    cell = f"LSTM cell, {measured['steps']} time steps, 32 inputs, 64 hidden, batch 1"
    return Report(
        [
            *_cases(tiny, _per_operator(measured["tiny"], measured["operators"]), "ns an operator", _TINY),
            *_cases(cell, _per_operator(measured["cell"], 1000), "us", _CELL),
        ],
        notes,
    )


def _per_operator(samples: Mapping[str, Sequence[float]], count: int) -> dict[str, list[float]]:
    return {name: [time / count for time in times] for name, times in samples.items()}


def _cases(title: str, samples: Mapping[str, Sequence[float]], unit: str, limit: float) -> list[Case]:
    cases = [harness.case(f"{title}: {_CONTENDERS[key]}", times, unit) for key, times in samples.items()]
    for key in samples:
        if key != "lazy":
            ratios = harness.ratios(samples["lazy"], samples[key])
            name = f"{title}: {_CONTENDERS['lazy']} over {_CONTENDERS[key]}"
            cases.append(harness.case(name, ratios, "ratio", limit if key == "eager" else None))
    return cases
