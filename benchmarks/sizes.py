"""What code for many sizes costs beside code for one: the checks of a call, and the kernels of an encoder."""

from __future__ import annotations

from typing import TypedDict

from benchmarks import harness
from benchmarks.harness import Report

#: Nanoseconds that a call of four tensors may take longer, and the encoder's time over that with code for one size.
_CHECKS, _KERNELS = 300.0, 1.15

#: Kinds of calls, by their keys in the program's output.
_CALLS = {
    "seen": "code for many sizes, sizes that were seen before",
    "promised": "code for many sizes, sizes that were promised",
}


#: Rows of the four tensors, and what is promised. Code for one size runs few elements on one thread without asking
#: OpenMP; that for many sizes asks it in each call, which is not the sizes' cost.
_ROWS = {"16": None, "2304": _CHECKS}


class _Measured(TypedDict):
    """Nanoseconds a call, by rows and kind, and by kind."""

    calls: dict[str, dict[str, list[float]]]
    encoder: dict[str, list[float]]


def run(quick: bool = False) -> Report:
    """Builds and runs the program.

    Args:
        quick: Measure too little to judge by.

    Raises:
        CompileError: It cannot be built, or failed, or some code does not run or gives wrong results.
    """
    rounds, calls, encoder_rounds = (5, 100, 2) if quick else (300, 1000, 60)
    program = harness.build("sizes") / "sizes"
    counts = (str(rounds), str(calls), str(encoder_rounds))
    measured: _Measured = harness.run_json([program, *counts], "sizes", harness.ONE_THREAD)
    cases = []
    for rows, limit in _ROWS.items():
        title = f"a call of 4 tensors of {rows} x 4"
        fixed = measured["calls"][rows]["fixed"]
        cases.append(harness.case(f"{title}: code for one size", fixed, "ns"))
        for key, name in _CALLS.items():
            times = measured["calls"][rows][key]
            more = [time - own for time, own in zip(times, fixed, strict=True)]
            cases += [
                harness.case(f"{title}: {name}", times, "ns"),
                harness.case(f"{title}: {name}, above code for one size", more, "ns", limit),
            ]
    title = "encoder, batch 8, sequence 128"
    for key, name in {"fixed": "code for one size", "sized": "code for many sizes"}.items():
        cases.append(harness.case(f"{title}: {name}", [time / 1e6 for time in measured["encoder"][key]], "ms"))
    ratios = harness.ratios(measured["encoder"]["sized"], measured["encoder"]["fixed"])
    cases.append(harness.case(f"{title}: code for many sizes over code for one", ratios, "ratio", _KERNELS))
    notes = [f"one thread, without gradients, {rounds} rounds of {calls} calls, {encoder_rounds} of the encoder"]
    return Report(cases, notes)
