"""Contenders, each in a process of its own, that run or train one model in turns, and what their times say.

A contender first prints a line of JSON: ``difference``, the largest one of its result from the expected one,
``eager``, why compiled C++ does not run compiled code, else "", and, if it measures that, ``peak``, bytes of memory.
Then it reads numbers, a line each, makes a few calls untimed and that many timed, and answers with the nanoseconds per
call. It ends at the end of its input. Nothing runs between the requests: the next one is made when all threads of the
contender sleep. OpenMP's wait for work in a loop first, for about 10 ms, on a core that the next contender would lack.
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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from typing_extensions import NotRequired

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

#: Compiled C++ once more, in another process: what differs between the two is noise.
TWIN = "twin"

#: Eager C++ once more, in another process, where that is measured.
EAGER_TWIN = "eager twin"

_TWINS = {"compiled": TWIN, "eager": EAGER_TWIN}

#: Largest difference from the expected result, whose values are about 1.
TOLERANCE = 1e-4

#: A program with its arguments, and the contender in it.
Command = tuple[Sequence[str | Path], str]

# Nanoseconds that the calls of one contender take in one round, about.
_SLICE = 5e6

# A time is disturbed if it is this many times what the contender takes in its best rounds: a machine that others use
# may leave one core to two threads, which then take two to four times as long. Such times are left out; a session goes
# on until each contender has as many others as wanted, for this many times as many rounds at most.
_DISTURBED = 1.25
_MOST_ROUNDS = 3

# Seconds after which threads are taken not to fall asleep at all.
_MOST_WAIT = 1.0


@dataclass
class Samples:
    """Nanoseconds per call.

    Attributes:
        sessions: Undisturbed times of each session, by contender.
        disturbed: How many times were left out.
        differences: Largest difference from the expected result, by contender.
        missing: Why a contender could not run, by contender.
        eager: Why compiled C++ does not run compiled code, for each session in which it does not.
        stats: What the compiled function says of itself.
        uncompiled: Why a contender does not run compiled code, as it said last, by contender.
        peaks: Peak of memory in bytes, one for each session, by contender; of those that measure it.
    """

    sessions: list[dict[str, list[float]]] = field(default_factory=list)
    disturbed: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    eager: list[str] = field(default_factory=list)
    stats: str = ""
    uncompiled: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, list[float]] = field(default_factory=dict)

    def times(self, name: str) -> list[float]:
        """All times of a contender."""
        return [one for session in self.sessions for one in session[name]]

    def ratios(self, below: str) -> list[float]:
        """Compiled C++ over a contender, session by session; of what has two processes, the mean of both."""
        return harness.ratios(self._means("compiled"), self._means(below))

    def better(self, *contenders: str) -> str:
        """The contender with the smallest median."""
        return min(contenders, key=lambda name: statistics.median(self._medians(name)))

    def noise(self) -> float:
        """What has a twin over that, session by session: the largest deviation from 1."""
        pairs = [(self._medians(name), self._medians(twin)) for name, twin in self._twins()]
        return max(abs(ratio - 1) for one, twin in pairs for ratio in harness.ratios(one, twin))

    def _twins(self) -> list[tuple[str, str]]:
        return [(name, twin) for name, twin in _TWINS.items() if all(twin in session for session in self.sessions)]

    def _means(self, name: str) -> list[float]:
        twin = dict(self._twins()).get(name, name)
        return [statistics.mean(both) for both in zip(self._medians(name), self._medians(twin), strict=True)]

    def _medians(self, name: str) -> list[float]:
        return [statistics.median(session[name]) for session in self.sessions]


def undisturbed(times: Sequence[float]) -> list[float]:
    """The times in which the machine did nothing else."""
    most = _DISTURBED * sorted(times)[len(times) // 10]
    return [one for one in times if one <= most]


class _State(TypedDict):
    difference: float
    eager: str
    peak: NotRequired[int]


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
        """Nanoseconds per call; waits until the program sleeps."""
        assert self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)
        nanoseconds = float(self._read())
        end = time.monotonic() + _MOST_WAIT
        while self._runs() and time.monotonic() < end:
            time.sleep(0.001)
        return nanoseconds

    def _runs(self) -> bool:
        """Whether a thread of the program does; see ``proc_pid_stat(5)``."""
        for file in Path("/proc", str(self._process.pid), "task").glob("*/stat"):
            with contextlib.suppress(OSError):  # the thread has ended
                if file.read_text().rpartition(")")[2].split()[0] == "R":
                    return True
        return False


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
    samples = Samples()

    def commands(folder: Path) -> list[Command]:
        arguments: list[str | Path] = [model, folder, str(threads)]
        environment = environment_of(folder, threads)
        harness.run_program([sys.executable, "-m", "benchmarks.prepare", *arguments], f"preparing {model}", environment)
        # Each has a process of its own: what else is in memory makes calls of a few microseconds 8 % faster or slower.
        contenders: list[Command] = [
            *(([program, *arguments, name], name) for name in ("compiled", TWIN, "eager", "aoti", "script")),
            ([program, *arguments, "eager"], EAGER_TWIN),
            ([sys.executable, "-m", "benchmarks.contender", "compile", *arguments], "compile"),
        ]
        reason = folder / "onnx.txt"
        if reason.exists():
            samples.missing["onnx"] = reason.read_text()
        else:
            contenders.append(([sys.executable, "-m", "benchmarks.contender", "onnx", *arguments], "onnx"))
        return contenders

    run_sessions(samples, model, commands, sessions, rounds, threads)
    return samples


def environment_of(folder: Path, threads: int) -> dict[str, str]:
    """Environment variables of all programs that use a folder."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHCC_CACHE": str(folder / "cache"),  # what another version of torchcc compiled does not count
        # Else it depends on what a process did before whether glibc gives memory of results back to the kernel, which
        # has to clear it again, in each call.
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TRIM_THRESHOLD_": str(2**28),
    }


def run_sessions(
    samples: Samples,
    title: str,
    prepare: Callable[[Path], Sequence[Command]],
    sessions: int,
    rounds: int,
    threads: int,
    tolerance: float = TOLERANCE,
) -> None:
    """Runs all sessions and adds their times to the samples.

    Args:
        samples: Where times go.
        title: What is run.
        prepare: Fills a folder, and gives the programs that use it.
        sessions: How often all processes are started anew: where memory comes to lie differs between processes.
        rounds: Rounds of each session, of each contender in an order that changes.
        threads: Threads of each contender.
        tolerance: Largest difference from the expected result.

    Raises:
        CompileError: A program failed, or a result is wrong.
    """
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        commands = prepare(folder)
        environment = environment_of(folder, threads)
        while len(samples.sessions) < sessions:
            with Console(stderr=True).status(f"{title}: session {len(samples.sessions) + 1} of {sessions}"):
                measure(samples, commands, rounds, environment, tolerance)


def measure(
    samples: Samples,
    commands: Sequence[Command],
    rounds: int,
    environment: Mapping[str, str],
    tolerance: float = TOLERANCE,
) -> None:
    """Runs one session and adds its times to the samples.

    Args:
        samples: What earlier sessions found.
        commands: Programs and the contender in each.
        rounds: Number of undisturbed times of each contender that are wanted.
        environment: Further environment variables of the programs.
        tolerance: Largest difference from the expected result.

    Raises:
        CompileError: A program failed, or a result is wrong.
    """
    turns: list[tuple[_Process, str, int]] = []
    with contextlib.ExitStack() as stack:
        for command, name in commands:  # ready one after the other: some compile first
            process = stack.enter_context(_Process(command, environment))
            state = process.state()
            if not state["difference"] <= tolerance:
                raise CompileError(f"{name} gives another result: the largest difference is {state['difference']}")
            samples.differences[name] = state["difference"]
            if state["eager"]:
                samples.uncompiled[name] = state["eager"]
            if "peak" in state:
                samples.peaks.setdefault(name, []).append(state["peak"])
            if name == "compiled":
                samples.stats = process.errors()
                samples.eager += [state["eager"]] if state["eager"] else []
            call = min(process.time(1) for _ in range(5))  # one that was disturbed would make its slices shorter
            turns.append((process, name, max(1, int(_SLICE / call))))
        generator = random.Random(len(samples.sessions))
        times: dict[str, list[float]] = {name: [] for _, name, _ in turns}
        for done in itertools.count():
            if done >= rounds * _MOST_ROUNDS or (
                done >= rounds and all(len(undisturbed(all_of_one)) >= rounds for all_of_one in times.values())
            ):
                break
            generator.shuffle(turns)
            for process, name, count in turns:
                times[name].append(process.time(count))
    samples.sessions.append({name: undisturbed(all_of_one) for name, all_of_one in times.items()})
    samples.disturbed += sum(map(len, times.values())) - sum(map(len, samples.sessions[-1].values()))
