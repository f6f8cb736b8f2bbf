"""What capture costs, and how compiled C++ compares with the other ways to run a model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

from benchmarks import contest, harness
from benchmarks.contest import CONTENDERS, Samples
from benchmarks.harness import Case, Report
from benchmarks.models import MODELS

#: Numbers of threads that the models are run with; as many as there are cores, at most.
_THREADS = (1, 2)

#: Functions that are recorded: what they are, and the limit in nanoseconds an operator.
_RECORDED = {
    "pointwise": ("pointwise operators on 16 floats", 500.0),
    "mixed": ("views, matmul, cat, softmax, in-place ... on 16 floats", 500.0),
    "large": ("pointwise operators on 1M floats", None),
}

_REPLAY_LIMIT = 1000.0

# A machine on which the same code differs by more is too busy to judge by.
_MOST_NOISE = 0.05


class _Recording(TypedDict):
    """Number of operators; nanoseconds an operator: "eager", "first" and "second" recording."""

    ops: int
    samples: dict[str, list[float]]


def run(quick: bool = False) -> Report:
    """Builds and runs the programs.

    Args:
        quick: Measure too little to judge by, and one model only.

    Raises:
        CompileError: A program cannot be built, or failed, or a contender gives other results.
    """
    sessions, rounds = (1, 3) if quick else (5, 40)
    cases = [*_recording_cases(5 if quick else 300), *_replay_cases(5 if quick else 5000)]
    program = harness.build("contest") / "contest"
    notes = [
        f"models: {sessions} sessions with new processes, of {rounds} rounds each; in a round "
        "about 5 ms of each contender, in an order that changes; results are compared before",
        "a contender's time is the median of a session's rounds, without those in which the machine was disturbed; "
        "a ratio is the median over the sessions",
        "noise: compiled C++, and eager C++, over itself in another process, the largest deviation from 1 of a "
        "session; for a ratio, the largest deviation of one of its sessions from it, if that is more; "
        f"a ratio that misses its limit by no more, and by no more than {_MOST_NOISE}, is a tie and holds",
    ]
    for threads in _THREADS[:1] if quick or harness.cores() < 2 else _THREADS:
        for model in ["mlp_1"] if quick else MODELS:
            samples = contest.run(program, model, sessions, rounds, threads)
            title = f"{MODELS[model].title}, {threads} thread{'s' if threads > 1 else ''}"
            cases += model_cases(title, samples)
            notes += _model_notes(title, samples)
    return Report(cases, notes)


def _recording_cases(rounds: int) -> list[Case]:
    program = harness.build("capture") / "capture"
    measured: Mapping[str, _Recording] = harness.run_json(
        [program, "recording", str(rounds)], "recording", {**harness.ONE_THREAD, "TORCHCC_COMPILER": "off"}
    )
    cases = []
    for key, (title, limit) in _RECORDED.items():
        samples = measured[key]["samples"]
        title = f"{measured[key]['ops']} {title}"
        cases.append(harness.case(f"{title}: eager", samples["eager"], "ns an operator"))
        for which in ("first", "second"):
            extra = _differences(samples[which], samples["eager"])
            cases.append(harness.case(f"{title}: {which} recording over eager", extra, "ns an operator", limit))
    return cases


def _replay_cases(rounds: int) -> list[Case]:
    program = harness.build("capture") / "capture"
    samples: Mapping[str, list[float]] = harness.run_json([program, "replay", str(rounds), "100"], "replaying")
    return [
        harness.case("call of a region, two inputs of 16 floats", samples["region"], "ns"),
        harness.case("replayed call, the same maths", samples["replay"], "ns"),
        harness.case(
            "replayed call's own cost over the region's call",
            _differences(samples["replay"], samples["region"]),
            "ns",
            _REPLAY_LIMIT,
        ),
    ]


def _differences(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(above, below, strict=True)]


def _deviation(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return max(abs(value - middle) for value in values)


def model_cases(title: str, samples: Samples) -> list[Case]:
    """The cases of one model: the contenders' times, and compiled C++ over each."""
    # Where torchcc found eager faster than its compiled code, that is its answer.
    eager = [reason for reason in samples.eager if "faster" not in reason]
    cases = [
        Case(f"{title}: sessions in which compiled C++ ran no compiled code", len(eager), "sessions", 0),
        Case(f"{title}: noise", samples.noise(), "ratio"),
    ]
    for key, name in CONTENDERS.items():
        if key in samples.missing:
            cases.append(Case(f"{title}: {name}", None, "us"))
        else:
            cases.append(harness.case(f"{title}: {name}", [time / 1000 for time in samples.times(key)], "us"))
    names = f"the better of {CONTENDERS['aoti']} and {CONTENDERS['compile']}"
    for key, name in ((samples.better("aoti", "compile"), names), ("eager", CONTENDERS["eager"])):
        ratios = samples.ratios(key)
        noise = min(_MOST_NOISE, max(samples.noise(), _deviation(ratios)))
        name = f"{title}: compiled C++ over {name}, ties within noise"
        cases.append(harness.case(name, ratios, "ratio", 1.0, noise=noise))
    for key in ("script", "onnx"):
        name = f"{title}: compiled C++ over {CONTENDERS[key]}"
        missing = key in samples.missing
        cases.append(Case(name, None, "ratio") if missing else harness.case(name, samples.ratios(key), "ratio"))
    return cases


def _model_notes(title: str, samples: Samples) -> list[str]:
    better = CONTENDERS[samples.better("aoti", "compile")]
    largest = max(samples.differences.values())
    notes = [f"{title}: {better} is the better one; results differ by at most {largest:.1g}"]
    if samples.disturbed:
        used = sum(len(times) for session in samples.sessions for times in session.values())
        notes.append(f"{title}: {samples.disturbed} times were disturbed and are left out, {used} are used")
    notes.append(f"{title}: {samples.stats.rstrip()}")
    return notes + [f"{title}: {CONTENDERS[key]} did not run: {reason}" for key, reason in samples.missing.items()]
