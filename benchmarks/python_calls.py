"""Times calls of compiled code from Python: ``python -m benchmarks.python_calls PACKAGE ROUNDS CALLS`` prints JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import regions

Call = Callable[[], object]


def measure(contenders: dict[str, Call], rounds: int, calls: int) -> dict[str, list[float]]:
    """Nanoseconds per call, one value per round; the contenders take turns, as in ``cpp/rounds.h``."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        for _ in range(calls):
            call()
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter_ns()
            for _ in range(calls):
                call()
            samples[name].append((time.perf_counter_ns() - start) / calls)
    return samples


def main(package: str, rounds: int, calls: int) -> None:
    """Compiles, loads and measures the region ``small``."""
    torch.set_num_threads(1)
    x, y = torch.randn(16), torch.randn(16)
    compiled = torch.compile(regions.small.target)
    loaded = torch._inductor.aoti_load_package(package)
    with torch.no_grad():
        contenders: dict[str, Call] = {
            "python_compile": lambda: compiled(x, y),
            "python_aoti": lambda: loaded(x, y),
        }
        print(json.dumps(measure(contenders, rounds, calls)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
