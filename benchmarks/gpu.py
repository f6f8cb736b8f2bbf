"""What the benchmarks on a GPU share: the C++ programs beside them, and how calls and kernels are timed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from torchcc import CompileError


class Program:
    """A C++ program that measures when it is told to."""

    def __init__(self, *command: str | Path) -> None:
        self._command = command[0]
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, kind: str, calls: int) -> Any:
        """Its answer, of JSON, to a line of these two.

        Raises:
            CompileError: It has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print(kind, calls, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        if not line:
            raise CompileError(f"{self._command} ended with status {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """Lets it end."""
        self._process.communicate()


def nanoseconds(call: Callable[[], object], calls: int) -> float:
    """Nanoseconds of one of several calls, which the GPU is waited for once, behind the last."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - start) / calls


@dataclass(frozen=True)
class Kernels:
    """What the GPU does for a call, without what is between.

    Attributes:
        nanoseconds: The time of all kernels and copies of a call.
        counts: How many there are of each, by name.
        times: Nanoseconds of each, by name, of all in a call.
    """

    nanoseconds: float
    counts: dict[str, float]
    times: dict[str, float]

    def longest(self, number: int) -> str:
        """Those that take the most time, a line each."""
        names = sorted(self.times, key=lambda name: -self.times[name])[:number]
        return "\n".join(f"  {self.times[name] / 1000:.1f} us, {self.counts[name]:.0f} x {name[:80]}" for name in names)


def kernels(call: Callable[[], object], calls: int = 20) -> Kernels:
    """Measures the kernels of a call by PyTorch's profiler, which adds about a microsecond to each."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    counts: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            counts[event.name] += 1
            times[event.name] += event.device_time_total * 1000
    return Kernels(
        sum(times.values()) / calls,
        {name: count / calls for name, count in counts.items()},
        {name: one / calls for name, one in times.items()},
    )
