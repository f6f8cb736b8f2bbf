"""``torchcc demo``: builds and runs the two C++ programs of examples/digits.

The first calls a network that was trained and compiled in Python. In the second the network is written in C++ with
``torch::nn``, and compiled while the program runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchcc import native, paths, toolchain
from torchcc._version import __version__
from torchcc.errors import Error, message

_HERE = Path(__file__).resolve().parent
_PROJECT = _HERE / "examples" / "digits"
_DATA = _HERE / "data" / "digits.bin"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Case:
    """One thing that was measured; it holds when it keeps its limit, if it has one."""

    case: str
    value: float
    limit: float | None
    unit: str
    holds: bool


@dataclass(frozen=True)
class Part:
    """What came of one of the programs.

    Attributes:
        title: What it shows.
        cases: What was measured.
        facts: What the program printed, by name.
        program: The C++ program.
    """

    title: str
    cases: tuple[Case, ...]
    facts: Mapping[str, str]
    program: Path


@dataclass(frozen=True)
class Report:
    """What came of a run.

    Attributes:
        parts: One per program.
        seconds: How long the build took; ``None`` when it was there from an earlier run.
    """

    parts: tuple[Part, ...]
    seconds: float | None

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases of all parts."""
        return tuple(case for part in self.parts for case in part.cases)

    @property
    def holds(self) -> bool:
        """Whether every case holds."""
        return all(case.holds for case in self.cases)


def run(progress: Progress | None = None) -> Report:
    """Builds the programs unless they are in the cache, and runs them.

    Args:
        progress: Called with a title, the steps done and the steps in all.

    Raises:
        CompileError: The build failed, or there is no usable compiler.
        Error: The cache folder cannot be written, or a program failed.
    """
    tell = progress or (lambda title, done, total: None)
    toolchain.require_compiler()
    folder = paths.cache_dir().absolute() / "demo" / _key()
    programs = [folder / name for name in _PROGRAMS]
    seconds = None
    try:
        with paths.locked(folder / "lock", lambda: tell("waiting for another `torchcc demo` to build", 0, 0)):
            if not all(program.is_file() for program in programs):
                start = time.monotonic()
                _build(folder, tell)
                seconds = time.monotonic() - start
    except OSError as error:
        raise Error(
            message(
                f"{folder}: the demo cannot be built there",
                got=str(error),
                fix="set TORCHCC_CACHE to a folder that you can write to",
            )
        ) from error
    tell("running the program with the Python network", 0, 0)
    region = _run(folder / "digits", [folder / "source" / "weights.pt"], _REGION_FACTS, {})
    tell("running the program with the C++ network: it trains, then compiles", 0, 0)
    # The compiler, which the program starts, needs the C++ compiler and a cache; the program itself needs neither.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "CXX") if name in os.environ}
    kept["TORCHCC_CACHE"] = str(paths.cache_dir().absolute())
    network = _run(folder / "convolutional", [], _NETWORK_FACTS, kept)
    tell("running it again, without Python", 0, 0)
    again = _run(folder / "convolutional", [], _NETWORK_FACTS, {**kept, "TORCHCC_COMPILER": "off"})
    return Report(
        (
            Part(
                "a network trained in Python, compiled, and called from a C++ program",
                _region_cases(region),
                region,
                folder / "digits",
            ),
            Part(
                "a network written in C++ with torch::nn, compiled while the program runs",
                _network_cases(network, again),
                network,
                folder / "convolutional",
            ),
        ),
        seconds,
    )


def _key() -> str:
    """A name for the build: the same only for the same torchcc, torch, interpreter, compiler, CPU and sources."""
    cpu = {
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.lower().startswith(("flags", "feat"))
    }
    parts = [__version__, torch.__version__, torch.__file__, sys.executable, platform.machine(), *sorted(cpu)]
    parts.append(toolchain.check_compiler(toolchain.cxx()).detail)
    digest = hashlib.sha256("\n".join(parts).encode())
    suffixes = {".py", ".h", ".cpp", ".txt", ".cmake", ".jinja", ".bin"}
    for root in (_HERE, paths.cpp_dir(), paths.cmake_dir()):
        for file in sorted(root.rglob("*")):
            if file.suffix in suffixes and file.is_file():
                digest.update(f"\n{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _build(folder: Path, tell: Progress) -> None:
    """Copies the project into the cache, builds it there, and keeps the programs, their sources and the weights."""
    source, build = folder / "source", folder / "build"
    source.mkdir(exist_ok=True)
    for file in _PROJECT.iterdir():
        if file.is_file():
            shutil.copyfile(file, source / file.name)

    def step(line: str) -> None:
        # Ninja's "[3/12] Building CXX object ...", printed when the step is done.
        if (numbers := re.match(r"\[(\d+)/(\d+)\] ", line)) is None:
            return
        compiled = re.search(r"([\w.]+\.cpp)\.o$", line)
        what = f"built {compiled[1]}" if compiled else "linked" if "Linking" in line else "compiled the network"
        tell(what, int(numbers[1]), int(numbers[2]))

    tell("building torchcc's libraries", 0, 0)
    libraries = native.library_dir(step)
    tell("configuring with CMake", 0, 0)
    settings = ["CMAKE_BUILD_TYPE=Release", f"TORCHCC_LIBRARIES={libraries}"]
    native.build_project(source, build, settings, log=folder / "build.log", progress=step)
    for name in _PROGRAMS:
        native.put(build / name, folder / name)
    shutil.rmtree(build, ignore_errors=True)


def _run(
    program: Path, arguments: Sequence[Path], expected: frozenset[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Runs a program with hardly any environment, so that no Python can be found through it."""
    folder = program.parent
    log = folder / f"{program.name}.log"
    command = [str(program), str(_DATA), *map(str, arguments)]
    try:
        ran = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
        status, output, errors = str(ran.returncode), ran.stdout, ran.stderr
    except subprocess.TimeoutExpired:
        status, output, errors = f"still running after {_TIMEOUT} s", "", ""
    with contextlib.suppress(OSError):
        log.write_text(f"{' '.join(command)}\n{output}{errors}")
    facts = dict(line.split(" ", 1) for line in output.splitlines() if " " in line)
    if status != "0" or not facts.keys() >= expected:
        raise Error(
            message(
                f"{program}: the demo's C++ program failed",
                expected="exit status 0",
                got=f"{status}\n{errors.strip() or output.strip()}".strip(),
                log=str(log),
                fix=f"run `torchcc doctor`; remove {folder} to build it again",
            )
        )
    return facts


_TIMEOUT = 900
_PROGRAMS = ("digits", "convolutional")
_TIMES = frozenset(f"{side}_{batch}_us" for side in ("compiled", "eager") for batch in ("1", "all"))
_COMMON = _TIMES | {"threads", "held_out", "accuracy", "logit_difference", "python_files"}
_REGION_FACTS = _COMMON | {"backend", "target", "load_us"}
_NETWORK_FACTS = _COMMON | {"training_us", "variants", "replayed", "compile_seconds", "reason"}


def _at_most(case: str, value: float, limit: float | None, unit: str) -> Case:
    return Case(case, value, limit, unit, limit is None or value <= limit)


def _common_cases(facts: Mapping[str, str], prefix: str) -> list[Case]:
    accuracy = float(facts["accuracy"])
    return [
        Case(f"{prefix}accuracy on held-out images", accuracy, 0.96, "fraction", accuracy >= 0.96),
        # Logits reach about 50; float32 sums in another order differ in the seventh digit.
        _at_most(
            f"{prefix}largest difference of a logit from eager", float(facts["logit_difference"]), 1e-3, "absolute"
        ),
        _at_most(f"{prefix}Python libraries in the process", int(facts["python_files"]), 0, "files"),
    ]


def _times(facts: Mapping[str, str], prefix: str) -> list[Case]:
    cases = []
    for batch, count in (("1", "1"), ("all", facts["held_out"])):
        compiled, eager = float(facts[f"compiled_{batch}_us"]), float(facts[f"eager_{batch}_us"])
        title = f"{prefix}batch of {count}"
        cases.append(_at_most(f"{title}: compiled, one call", compiled, None, "us"))
        cases.append(_at_most(f"{title}: eager LibTorch, one call", eager, None, "us"))
        # Without a limit: a machine that is busy with other things is no reason for the demo to fail.
        cases.append(_at_most(f"{title}: compiled / eager", compiled / eager, None, "ratio"))
    return cases


def _region_cases(facts: Mapping[str, str]) -> tuple[Case, ...]:
    load = _at_most("time to load the package", float(facts["load_us"]), None, "us")
    return (*_common_cases(facts, ""), load, *_times(facts, ""))


def _network_cases(facts: Mapping[str, str], again: Mapping[str, str]) -> tuple[Case, ...]:
    prefix = "C++ network: "
    replayed, warm = int(facts["replayed"]), int(again["replayed"])
    return (
        *_common_cases(facts, prefix),
        Case(f"{prefix}calls that ran compiled code", replayed, 1, "calls", replayed >= 1),
        Case(f"{prefix}compiled calls at a second start, no compiler", warm, 1, "calls", warm >= 1),
        _at_most(f"{prefix}training in C++, eager", float(facts["training_us"]) / 1e6, None, "s"),
        _at_most(f"{prefix}time in the compiler", float(facts["compile_seconds"]), None, "s"),
        *_times(facts, prefix),
    )


def show(report: Report) -> None:
    """Prints a report to standard output."""
    facts = report.parts[0].facts
    # Wide enough for every row: a narrow terminal may wrap a line, but no verdict is cut off.
    console = Console(highlight=False, soft_wrap=True, markup=False, width=110)
    built = "reused from an earlier run" if report.seconds is None else f"built in {report.seconds:.0f} s"
    threads = "1 thread" if facts["threads"] == "1" else f"{facts['threads']} threads"
    console.print(f"torch {torch.__version__}, {facts['target']}, {threads}; program {built}")
    for part in report.parts:
        console.print(f"\nHandwritten digits: {part.title}", style="bold")
        table = Table(box=None, pad_edge=False, header_style="", padding=(0, 3, 0, 0))
        for title, justify in (("", "left"), ("measured", "right"), ("limit", "right"), ("", "left")):
            table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for case in part.cases:
            limit, verdict = "", Text()
            if case.limit is not None:
                limit = f"{'>=' if case.unit in _AT_LEAST else '<='} {_amount(case.limit, case.unit)}"
                verdict = Text("ok", "green") if case.holds else Text("DOES NOT HOLD", "red")
            table.add_row(case.case.removeprefix("C++ network: "), _amount(case.value, case.unit), limit, verdict)
        console.print(table)
        console.print(f"program   {part.program}")
    console.print(f"\nsources   {report.parts[0].program.parent / 'source'}")
    console.print("times     medians of single calls, compiled and eager in turns, in one process per table")


_AT_LEAST = ("fraction", "calls")


def _amount(value: float, unit: str) -> str:
    if unit == "fraction":
        return f"{100 * value:.3g} %"
    if unit in ("calls", "files"):
        return f"{value:.0f}"
    if unit == "s":
        return f"{value:.1f} s"
    return f"{value:.3g} us" if unit == "us" and value < 100 else f"{value:.0f} us" if unit == "us" else f"{value:.2g}"
