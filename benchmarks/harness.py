"""What all benchmarks share: cases with limits, medians and spreads, building and running the C++ programs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from torchcc import CompileError, native, paths, toolchain

FOLDER = Path(__file__).resolve().parent

#: Both compiled code and eager operators then use one thread, in every process.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Case:
    """One measured number.

    Attributes:
        name: What was measured; ends with "at least" when the limit is a lower one.
        value: The median over the rounds; ``None`` when it could not be measured, and the notes say why.
        unit: "ns", "1/s", "ratio" ...
        limit: What is promised; ``None`` where nothing is.
        at_least: Whether the limit is a lower one; else it is an upper one.
        spread: First and third quartile over the rounds.
        noise: What the value may miss the limit by and still hold: so much two measurements of one thing differ.
    """

    name: str
    value: float | None
    unit: str
    limit: float | None = None
    at_least: bool = False
    spread: tuple[float, float] | None = None
    noise: float = 0.0

    @property
    def holds(self) -> bool | None:
        """Whether the limit is kept; true where there is none, ``None`` for what could not be measured."""
        if self.value is None:
            return None
        if self.limit is None:
            return True
        if self.at_least:
            return self.value >= self.limit - self.noise
        return self.value <= self.limit + self.noise


@dataclass(frozen=True)
class Report:
    """What a benchmark found: its cases, and lines for people on how they came about."""

    cases: Sequence[Case]
    notes: Sequence[str] = field(default_factory=tuple)


#: A benchmark module's ``run(quick)``, or ``run(quick, part)``.
Benchmark = Callable[..., Report]


def case(
    name: str,
    samples: Sequence[float],
    unit: str,
    limit: float | None = None,
    at_least: bool = False,
    noise: float = 0.0,
) -> Case:
    """The case of one value per round: its median and quartiles."""
    first, value, third = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [*samples] * 3
    return Case(name, value, unit, limit, at_least, (first, third), noise)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios round by round: what else the machine did in a round was alike for both."""
    return [a / b for a, b in zip(above, below, strict=True)]


def build(target: str, project: str = "cpp", definitions: Sequence[str] = ()) -> Path:
    """Builds a program of ``benchmarks/cpp``, optimised; the build folder is kept and used again.

    Args:
        target: The program, or ``all``.
        project: The folder of the CMake project.
        definitions: Further cache entries, ``NAME=VALUE``.

    Raises:
        CompileError: The build failed.
    """
    key = "\n".join([str(FOLDER / project), sys.executable, torch.__version__, toolchain.cxx()])
    folder = paths.cache_dir() / "benchmarks" / hashlib.sha256(key.encode()).hexdigest()[:16]
    with Console(stderr=True).status(f"building {target}") as status:

        def step(line: str) -> None:
            status.update(f"building {target}: {line[:80]}")

        settings = ["CMAKE_BUILD_TYPE=Release", f"TORCHCC_LIBRARIES={native.library_dir(step)}", *definitions]
        native.build_project(FOLDER / project, folder, settings, targets=[target], progress=step)
    return folder


def run_program(command: Sequence[str | Path], title: str, environment: Mapping[str, str] = ONE_THREAD) -> str:
    """Runs a program in this repository's root and returns what it prints.

    Raises:
        CompileError: The program failed.
    """
    with Console(stderr=True).status(title):
        ran = subprocess.run(
            [str(part) for part in command],
            cwd=FOLDER.parent,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    if ran.returncode != 0:
        raise CompileError(f"{title}: {command[0]} ended with status {ran.returncode}\n{ran.stderr[-2000:]}")
    return ran.stdout


def run_json(command: Sequence[str | Path], title: str, environment: Mapping[str, str] = ONE_THREAD) -> Any:
    """Runs a program in this repository's root and reads the JSON that it prints last.

    Raises:
        CompileError: The program failed.
    """
    return json.loads(run_program(command, title, environment).splitlines()[-1])


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        model = next(
            (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line), ""
        )
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": str(cores()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
        "compiler": toolchain.check_compiler(toolchain.cxx()).detail,
        **({"gpu": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"} if torch.cuda.is_available() else {}),
    }


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _limit(one: Case) -> str:
    if one.limit is None:
        return ""
    noise = f" {'-' if one.at_least else '+'} {one.noise:.3f}" if one.noise else ""
    return ("≥ " if one.at_least else "≤ ") + _number(one.limit) + noise


def _verdict(one: Case) -> str:
    if one.holds is None:
        return "[yellow]not measured[/]"
    if one.limit is None:
        return ""
    return "[green]holds[/]" if one.holds else "[bold red]does not hold[/]"


def show(report: Report, title: str) -> None:
    """Prints the cases as a table, with their spreads, and the notes."""
    table = Table(title=title, caption=", ".join(f"{key}: {value}" for key, value in machine().items()))
    for column in ("case", "value", "quartiles", "limit", "unit", ""):
        table.add_column(column, justify="left" if column in ("case", "unit", "") else "right")
    for one in report.cases:
        table.add_row(
            one.name,
            "" if one.value is None else _number(one.value),
            "" if one.spread is None else " - ".join(_number(value) for value in one.spread),
            _limit(one),
            one.unit,
            _verdict(one),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(table)
    for note in report.notes:
        console.print(note, markup=False, highlight=False)


def write_json(report: Report, file: Path) -> None:
    """Writes ``{"cases": [{"case", "value", "limit", "unit", "holds"}]}``, and beside them spreads and the machine."""
    content = {
        "cases": [
            {"case": one.name, "value": one.value, "limit": one.limit, "unit": one.unit, "holds": one.holds}
            for one in report.cases
        ],
        "quartiles": {one.name: one.spread for one in report.cases if one.spread is not None},
        "noise": {one.name: one.noise for one in report.cases if one.noise},
        "notes": list(report.notes),
        "machine": machine(),
    }
    file.write_text(json.dumps(content, indent=1) + "\n")
