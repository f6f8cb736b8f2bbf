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


class _Measured(TypedDict):
    """Nanoseconds a call, by kind."""

    call: dict[str, list[float]]
    encoder: dict[str, list[float]]


def run(quick: bool = False) -> Report:
    """Builds and runs the program.

    Args:
        quick: Measure too little to judge by.

    Raises:
        CompileError: It cannot be built, or failed, or some code does not run or gives wrong results.
    """
    rounds, calls, encoder_rounds = (5, 100, 2) if quick else (400, 2000, 60)
    program = harness.build("sizes") / "sizes"
    counts = (str(rounds), str(calls), str(encoder_rounds))
    measured: _Measured = harness.run_json([program, *counts], "sizes", harness.ONE_THREAD)
    title = "a call of 4 tensors"
    fixed = measured["call"]["fixed"]
    cases = [harness.case(f"{title}: code for one size", fixed, "ns")]
    for key, name in _CALLS.items():
        times = measured["call"][key]
        more = [time - own for time, own in zip(times, fixed, strict=True)]
        cases += [
            harness.case(f"{title}: {name}", times, "ns"),
            harness.case(f"{title}: {name}, above code for one size", more, "ns", _CHECKS),
        ]
    title = "encoder, batch 8, sequence 128"
    for key, name in {"fixed": "code for one size", "sized": "code for many sizes"}.items():
        cases.append(harness.case(f"{title}: {name}", [time / 1e6 for time in measured["encoder"][key]], "ms"))
    ratios = harness.ratios(measured["encoder"]["sized"], measured["encoder"]["fixed"])
    cases.append(harness.case(f"{title}: code for many sizes over code for one", ratios, "ratio", _KERNELS))
    notes = [f"one thread, without gradients, {rounds} rounds of {calls} calls, {encoder_rounds} of the encoder"]
    return Report(cases, notes)
