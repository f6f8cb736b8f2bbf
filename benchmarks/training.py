"""Steps of training: compiled C++ against eager C++, and against Python's torch.compile; time and memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contest, harness
from benchmarks.contest import TWIN, Command, Samples
from benchmarks.harness import Case, Report
from benchmarks.trainings import STEPS, TRAININGS

#: Names of the contenders, by their keys.
CONTENDERS = {
    "compiled": "compiled C++ step",
    "loss": "C++, loss compiled, optimiser eager",
    "eager": "eager C++",
    "compile": "torch.compile in Python",
    "python": "eager Python",
}

# Largest difference of a loss from eager Python's, whose losses are 2 to 6. Each step begins where the one before
# ended, so rounding errors grow.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Limits:
    """What is promised: ratios of the compiled step's time, and of its peak of memory."""

    eager: float | None = None
    python: float | None = None
    memory: float | None = None


LIMITS = {"mlp": Limits(eager=0.7, python=1.05), "cnn": Limits(memory=1.05), "gpt": Limits(memory=1.05)}

#: Numbers of threads that each is trained with; as many as there are cores, at most.
_THREADS = {"mlp": (1, 2), "cnn": (2,), "gpt": (2,)}


def run(quick: bool = False) -> Report:
    """Builds and runs the programs.

    Args:
        quick: Measure too little to judge by, and the MLP alone, with PyTorch's own number of threads.

    Raises:
        CompileError: A program cannot be built, or failed, or a contender has other losses.
    """
    sessions, rounds = (1, 3) if quick else (5, 40)
    program = harness.build("training") / "training"
    cases = []
    notes = [
        f"{sessions} sessions with new processes, of {rounds} rounds each; in a round about 5 ms of each contender, in "
        f"an order that changes; the losses of {STEPS} steps are compared before",
        "memory: the most bytes of PyTorch's CPU allocator that are alive in a warm step, weights, gradients and the "
        "optimiser's state included, data not",
    ]
    for name in ["mlp"] if quick else TRAININGS:
        every = sorted({min(harness.cores(), number) for number in _THREADS[name]})
        for threads in every[-1:] if quick else every:
            samples = _train(program, name, sessions, rounds, threads)
            title = f"{TRAININGS[name].title}, {threads} thread{'s' if threads > 1 else ''}"
            # The limits are for PyTorch's own number of threads, one for each core.
            limits = LIMITS[name] if threads == every[-1] else Limits()
            cases += training_cases(title, samples, limits)
            notes += _notes(title, samples)
    return Report(cases, notes)


def _train(program: Path, name: str, sessions: int, rounds: int, threads: int) -> Samples:
    samples = Samples()

    def prepare(folder: Path) -> list[Command]:
        arguments: list[str | Path] = [name, folder, str(threads)]
        trainer: list[str | Path] = [sys.executable, "-m", "benchmarks.trainer"]
        environment = contest.environment_of(folder, threads)
        harness.run_program([*trainer, "prepare", *arguments], f"preparing {name}", environment)
        return [
            *(([program, *arguments, contender], contender) for contender in ("compiled", TWIN, "loss", "eager")),
            ([*trainer, "compile", *arguments], "compile"),
            ([*trainer, "eager", *arguments], "python"),
        ]

    contest.run_sessions(samples, name, prepare, sessions, rounds, threads, _TOLERANCE)
    return samples


def training_cases(title: str, samples: Samples, limits: Limits) -> list[Case]:
    """The cases of one network: the contenders' times, the compiled step over each, and memory."""
    cases = [
        Case(f"{title}: sessions in which the compiled step ran no compiled code", len(samples.eager), "sessions", 0),
        Case(f"{title}: noise", samples.noise(), "ratio"),
    ]
    for key, contender in CONTENDERS.items():
        cases.append(harness.case(f"{title}: {contender}", [time / 1000 for time in samples.times(key)], "us"))
    for key, limit in (("eager", limits.eager), ("compile", limits.python), ("loss", None)):
        ratios = samples.ratios(key)
        cases.append(harness.case(f"{title}: compiled C++ step over {CONTENDERS[key]}", ratios, "ratio", limit))
    for key in ("compiled", "eager"):
        kilobytes = [peak / 1000 for peak in samples.peaks[key]]
        cases.append(harness.case(f"{title}: peak of memory, {CONTENDERS[key]}", kilobytes, "kB"))
    peaks = harness.ratios(samples.peaks["compiled"], samples.peaks["eager"])
    name_of_memory = f"{title}: peak of memory, compiled C++ step over eager C++"
    return [*cases, harness.case(name_of_memory, peaks, "ratio", limits.memory)]


def _notes(title: str, samples: Samples) -> list[str]:
    largest = max(samples.differences.values())
    notes = [f"{title}: losses differ from eager Python's by at most {largest:.1g}"]
    if samples.disturbed:
        used = sum(len(times) for session in samples.sessions for times in session.values())
        notes.append(f"{title}: {samples.disturbed} times were disturbed and are left out, {used} are used")
    for key, reason in samples.uncompiled.items():
        if key in CONTENDERS:
            notes.append(f"{title}: {CONTENDERS[key]} ran no compiled code: {reason}")
    return [*notes, f"{title}: {samples.stats.rstrip()}"]
