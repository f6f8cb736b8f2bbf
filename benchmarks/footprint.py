"""Programs with libtorch and without: how large they are, how soon they answer, and what memory and time they take."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import torchcc
from benchmarks import harness, models
from benchmarks.harness import Case, Report
from torchcc.examples.digits import digits

#: What the issue names: sizes in MB, times in ms, memory in MiB.
_LIMITS = {
    "classifier": {"size": 3.0, "start": 5.0, "memory": 8.0},
    "encoder": {"size": 4.0, "start": 20.0, "memory": None},
    "mlp": {"size": None, "start": None, "memory": None},
    "cnn": {"size": None, "start": None, "memory": None},
}
_TITLES = {
    "classifier": "digits classifier",
    "encoder": models.MODELS["encoder"].title,
    "mlp": models.MODELS["mlp_1"].title,
    "cnn": "CNN, 4 convolutions of width 32 with batch norm, 64 x 64 pixels",
}
_OWN = "standalone"

#: Time of a call over the same model's with libtorch.
_RATIOS = {"classifier": None, "encoder": 1.1, "mlp": 0.6, "cnn": 1.1}
_CALLS = {"classifier": 2000, "encoder": 5, "mlp": 2000, "cnn": 10}


class _Cnn(nn.Module):
    """What oneDNN does, and batch norm, which is folded."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for position in range(4):
            layers += [nn.Conv2d(32 if position else 3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


def _models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    return {
        "classifier": (digits.load(), torch.zeros(1, 8, 8, dtype=torch.uint8)),
        "encoder": models.make("encoder"),
        "mlp": models.make("mlp_1"),
        "cnn": (_Cnn().eval(), torch.zeros(1, 3, 64, 64)),
    }


def run(quick: bool = False) -> Report:
    """Exports the models, builds the programs, and measures them in turns.

    Args:
        quick: Measure too little to judge by.

    Raises:
        CompileError: A program or a model cannot be built, or failed.
    """
    starts, rounds = (3, 3) if quick else (30, 60)
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="torchcc-benchmark-") as work:
        folder = Path(work)
        for name, (module, x) in _models().items():
            weights = "file" if name == "encoder" else "embedded"
            torchcc.export(
                folder / f"{name}.pt2",
                module,
                (x,),
                targets=["native", "standalone"],
                weights=weights,
                libraries=["onednn"],
            )
        built = harness.build("all", "cpp/footprint", [f"TORCHCC_BENCHMARK_MODELS={folder}"])
        for name, title in _TITLES.items():
            programs = {
                _OWN: (built / f"{name}_standalone", folder / f"{name}.standalone" / f"{name}.weights"),
                "libtorch": (built / f"{name}_libtorch", folder / f"{name}.pt2"),
            }
            cases += _cases(name, title, programs, starts, rounds)
    notes = [
        f"start: from exec to the first result, {starts} times, files in the page cache; memory: VmHWM after it",
        "size: the stripped program, and for libtorch the libraries that it loads, without those of the system",
        "time of a call: one thread, in turns",
        "CNN: with oneDNN, whose library is loaded and counted",
    ]
    return Report(cases, notes)


def _cases(name: str, title: str, programs: dict[str, tuple[Path, Path]], starts: int, rounds: int) -> list[Case]:
    limits = _LIMITS[name]
    cases = []
    for kind, (program, _) in programs.items():
        own = kind == _OWN
        cases.append(Case(f"{title}: size, {kind}", _size(program) / 1e6, "MB", limits["size"] if own else None))
    samples: dict[str, list[tuple[float, float]]] = {kind: [] for kind in programs}
    for _ in range(starts):
        for kind, (program, file) in programs.items():
            samples[kind].append(_start(program, file))
    for kind, values in samples.items():
        own = kind == _OWN
        times, memory = [one for one, _ in values], [one for _, one in values]
        cases.append(harness.case(f"{title}: start, {kind}", times, "ms", limits["start"] if own else None))
        cases.append(harness.case(f"{title}: memory, {kind}", memory, "MiB", limits["memory"] if own else None))
    calls = _calls(programs, _CALLS[name], rounds)
    cases += [harness.case(f"{title}: time of a call, {kind}", values, "ns") for kind, values in calls.items()]
    cases.append(
        harness.case(
            f"{title}: time of a call, standalone over libtorch",
            harness.ratios(calls[_OWN], calls["libtorch"]),
            "ratio",
            _RATIOS[name],
        )
    )
    return cases


def _environment() -> dict[str, str]:
    return {**os.environ, **harness.ONE_THREAD}


def _size(program: Path) -> int:
    """Bytes of the stripped program, and of the libraries that are not the system's."""
    with tempfile.NamedTemporaryFile() as stripped:
        subprocess.run(["strip", "-o", stripped.name, str(program)], check=True)
        size = Path(stripped.name).stat().st_size
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        path = next((word for word in line.split() if word.startswith("/")), "")
        if path and not path.startswith(("/lib", "/usr/lib")):
            size += Path(path).stat().st_size
    return size


def _start(program: Path, file: Path) -> tuple[float, float]:
    """Milliseconds from exec to the first result, and MiB of memory at most until then."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [str(program), str(file)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=_environment()
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        elapsed = time.perf_counter() - begin
        peak = process.stdout.readline()
    if process.returncode != 0 or not first:
        raise torchcc.CompileError(f"{program} {file}: it ended with status {process.returncode}")
    return elapsed * 1e3, int(peak) / 1024


def _calls(programs: dict[str, tuple[Path, Path]], calls: int, rounds: int) -> dict[str, Sequence[float]]:
    """Nanoseconds a call, one value for each round, of programs that wait for their turn."""
    processes = {
        kind: subprocess.Popen(
            [str(program), str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        for kind, (program, file) in programs.items()
    }
    times: dict[str, list[float]] = {kind: [] for kind in programs}
    try:
        for process in processes.values():
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.readline()
        for round_ in range(-2, rounds):
            for kind, process in processes.items():
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(f"{calls}\n")
                process.stdin.flush()
                value = float(process.stdout.readline())
                if round_ >= 0:
                    times[kind].append(value)
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    return {**times}
