"""Contenders, each in a process of its own, that run one model in turns, and what their times say.

A contender first prints a line of JSON: ``difference``, the largest one of its result from the expected one, and
``eager``, why compiled C++ does not run compiled code, else "". Then it reads numbers, a line each, makes a few calls
untimed and that many timed, and answers with the nanoseconds per call. It ends at the end of its input. Nothing runs
between the requests.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from rich.console import Console

from benchmarks import harness
from torchcc import CompileError

#: Names of the contenders, by their keys.
CONTENDERS = {
    "compiled": "compiled C++",
    "eager": "eager C++",
    "aoti": "AOTInductor from C++",
    "compile": "torch.compile in Python",
    "script": "TorchScript from C++",
    "onnx": "ONNX Runtime in Python",
}

# Compiled C++ once more, in another process: what differs between the two is noise.
_TWIN = "twin"

# Largest difference from the expected result, whose values are about 1.
_TOLERANCE = 1e-4

# Nanoseconds that the calls of one contender take in one round, about.
_SLICE = 5e6

# A session was disturbed if the quartiles of compiled C++ over its twin, which is the same code, lie further apart. It
# is measured again, so often for one model at most.
_MOST_SPREAD = 0.25
_REPEATS = 3


@dataclass
class Samples:
    """Nanoseconds per call, a value per round; the sessions one after the other.

    Attributes:
        times: By contender.
        sessions: Rounds of each session.
        differences: Largest difference from the expected result, by contender.
        missing: Why a contender could not run, by contender.
        eager: Why compiled C++ does not run compiled code, for each session in which it does not.
        stats: What the compiled function says of itself.
        disturbed: Sessions that were measured again, because the machine was busy with something else.
    """

    times: dict[str, list[float]] = field(default_factory=dict)
    sessions: list[int] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    eager: list[str] = field(default_factory=list)
    stats: str = ""
    disturbed: int = 0

    def ratios(self, above: str, below: str) -> list[float]:
        """Ratios of two contenders' times, round by round."""
        return harness.ratios(self.times[above], self.times[below])

    def better(self, *contenders: str) -> str:
        """The contender with the smallest median."""
        return min(contenders, key=lambda name: statistics.median(self.times[name]))

    def noise(self) -> float:
        """Compiled C++ over its twin, the median of each session: the largest deviation from 1."""
        ratios = iter(self.ratios("compiled", _TWIN))
        return max(abs(statistics.median(itertools.islice(ratios, rounds)) - 1) for rounds in self.sessions)

    def drop_if_disturbed(self) -> None:
        """Forgets the times of the last session if it says nothing; does so a few times only."""
        rounds = self.sessions[-1]
        first, _, third = statistics.quantiles(self.ratios("compiled", _TWIN)[-rounds:], n=4)
        if third - first <= _MOST_SPREAD or self.disturbed == _REPEATS:
            return
        self.disturbed += 1
        self.sessions.pop()
        for times in self.times.values():
            del times[-rounds:]


class _State(TypedDict):
    difference: float
    eager: str


class _Process:
    """A running contender."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str]):
        self._command = command
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        self._process = subprocess.Popen(
            [str(part) for part in command],
            cwd=harness.FOLDER.parent,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._errors.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise CompileError(f"{self._command[0]} ended with status {status}\n{self.errors()[-2000:]}")
        return line

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def state(self) -> _State:
        """What the program says when it is ready."""
        state: _State = json.loads(self._read())
        return state

    def time(self, count: int) -> float:
        assert self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)
        return float(self._read())


def run(program: Path, model: str, sessions: int, rounds: int, threads: int) -> Samples:
    """Runs all contenders on a model.

    Args:
        program: The C++ program.
        model: Name of the model.
        sessions: How often all processes are started anew: where memory comes to lie differs between processes.
        rounds: Rounds of each session, of each contender in an order that changes.
        threads: Threads of each contender.

    Raises:
        CompileError: A program failed, or a result is wrong.
    """
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    samples = Samples()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        environment["TORCHCC_CACHE"] = str(folder / "cache")  # what another version of torchcc compiled does not count
        arguments: list[str | Path] = [model, folder, str(threads)]
        harness.run_program([sys.executable, "-m", "benchmarks.prepare", *arguments], f"preparing {model}", environment)
        # Each has a process of its own: what else is in memory makes calls of a few microseconds 8 % faster or slower.
        commands: list[tuple[list[str | Path], str]] = [
            *(([program, *arguments, name], name) for name in ("compiled", _TWIN, "eager", "aoti", "script")),
            ([sys.executable, "-m", "benchmarks.contender", "compile", *arguments], "compile"),
        ]
        reason = folder / "onnx.txt"
        if reason.exists():
            samples.missing["onnx"] = reason.read_text()
        else:
            commands.append(([sys.executable, "-m", "benchmarks.contender", "onnx", *arguments], "onnx"))
        while len(samples.sessions) < sessions:
            with Console(stderr=True).status(f"{model}: session {len(samples.sessions) + 1} of {sessions}"):
                measure(samples, commands, rounds, environment)
            samples.drop_if_disturbed()
    return samples


def measure(
    samples: Samples,
    commands: Sequence[tuple[Sequence[str | Path], str]],
    rounds: int,
    environment: Mapping[str, str],
) -> None:
    """Runs one session and adds its rounds to the samples.

    Args:
        samples: What earlier sessions found.
        commands: Programs and the contender in each.
        rounds: Number of rounds.
        environment: Further environment variables of the programs.

    Raises:
        CompileError: A program failed, or a result is wrong.
    """
    turns: list[tuple[_Process, str, int]] = []
    with contextlib.ExitStack() as stack:
        for command, name in commands:  # ready one after the other: some compile first
            process = stack.enter_context(_Process(command, environment))
            state = process.state()
            if not state["difference"] <= _TOLERANCE:
                raise CompileError(f"{name} gives another result: the largest difference is {state['difference']}")
            samples.differences[name] = state["difference"]
            if name == "compiled":
                samples.stats = process.errors()
                samples.eager += [state["eager"]] if state["eager"] else []
            turns.append((process, name, max(1, int(_SLICE / process.time(1)))))
        generator = random.Random(len(samples.sessions) + samples.disturbed)
        for _ in range(rounds):
            generator.shuffle(turns)
            for process, name, count in turns:
                samples.times.setdefault(name, []).append(process.time(count))
    samples.sessions.append(rounds)
