"""``torchcc demo``: builds and runs examples/digits, a C++ program around a network that was trained in Python."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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
class Report:
    """What came of a run.

    Attributes:
        cases: What was measured.
        facts: What the program printed, by name.
        program: The C++ program.
        seconds: How long the build took; ``None`` when it was there from an earlier run.
    """

    cases: tuple[Case, ...]
    facts: Mapping[str, str]
    program: Path
    seconds: float | None

    @property
    def holds(self) -> bool:
        """Whether every case holds."""
        return all(case.holds for case in self.cases)


def run(progress: Progress | None = None) -> Report:
    """Builds the program unless it is in the cache, and runs it.

    Args:
        progress: Called with a title, the steps done and the steps in all.

    Raises:
        CompileError: The build failed, or there is no usable compiler.
        Error: The cache folder cannot be written, or the program failed.
    """
    tell = progress or (lambda title, done, total: None)
    toolchain.require_compiler()
    folder = paths.cache_dir().absolute() / "demo" / _key()
    program = folder / "digits"
    seconds = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, tell):
            if not program.is_file():
                start = time.monotonic()
                _build(folder, program, tell)
                seconds = time.monotonic() - start
    except OSError as error:
        raise Error(
            message(
                f"{folder}: the demo cannot be built there",
                got=str(error),
                fix="set TORCHCC_CACHE to a folder that you can write to",
            )
        ) from error
    tell("running the C++ program", 0, 0)
    facts = _run(program, folder)
    return Report(_cases(facts), facts, program, seconds)


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


@contextlib.contextmanager
def _locked(folder: Path, tell: Progress) -> Iterator[None]:
    """Lets one process build at a time; the others wait and find its program."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another `torchcc demo` to build", 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path, program: Path, tell: Progress) -> None:
    """Copies the project into the cache, builds it there, and keeps the program, its sources and the weights."""
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

    tell("configuring with CMake", 0, 0)
    native.build_project(source, build, ["CMAKE_BUILD_TYPE=Release"], log=folder / "build.log", progress=step)
    # Under another name first: a program in its place is a whole one.
    temporary = folder / ".digits"
    shutil.copy2(build / "digits", temporary)
    temporary.replace(program)
    shutil.rmtree(build, ignore_errors=True)


def _run(program: Path, folder: Path) -> dict[str, str]:
    """Runs the program with no environment at all: it needs none, and no Python could be found through it."""
    log = folder / "run.log"
    command = [str(program), str(_DATA), str(folder / "source" / "weights.pt")]
    try:
        ran = subprocess.run(command, env={}, capture_output=True, text=True, check=False, timeout=600)
        status, output, errors = str(ran.returncode), ran.stdout, ran.stderr
    except subprocess.TimeoutExpired:
        status, output, errors = "still running after 600 s", "", ""
    with contextlib.suppress(OSError):
        log.write_text(f"{' '.join(command)}\n{output}{errors}")
    facts = dict(line.split(" ", 1) for line in output.splitlines() if " " in line)
    if status != "0" or not facts.keys() >= _FACTS:
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


_FACTS = frozenset(
    ["backend", "target", "threads", "held_out", "accuracy", "logit_difference", "python_files", "load_us"]
    + [f"{side}_{batch}_us" for side in ("compiled", "eager") for batch in ("1", "all")]
)


def _cases(facts: Mapping[str, str]) -> tuple[Case, ...]:
    def at_most(case: str, value: float, limit: float | None, unit: str) -> Case:
        return Case(case, value, limit, unit, limit is None or value <= limit)

    accuracy = float(facts["accuracy"])
    cases = [
        Case("accuracy on held-out images", accuracy, 0.96, "fraction", accuracy >= 0.96),
        # Logits reach about 50; float32 sums in another order differ in the seventh digit.
        at_most("largest difference of a logit from eager", float(facts["logit_difference"]), 1e-3, "absolute"),
        at_most("Python libraries in the process", int(facts["python_files"]), 0, "files"),
        at_most("time to load the package", float(facts["load_us"]), None, "us"),
    ]
    for batch, count in (("1", "1"), ("all", facts["held_out"])):
        compiled, eager = float(facts[f"compiled_{batch}_us"]), float(facts[f"eager_{batch}_us"])
        title = f"batch of {count}"
        cases.append(at_most(f"{title}: compiled, one call", compiled, None, "us"))
        cases.append(at_most(f"{title}: eager LibTorch, one call", eager, None, "us"))
        # Without a limit: a machine that is busy with other things is no reason for the demo to fail.
        cases.append(at_most(f"{title}: compiled / eager", compiled / eager, None, "ratio"))
    return tuple(cases)


def show(report: Report) -> None:
    """Prints a report to standard output."""
    facts = report.facts
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(
        "Handwritten digits: a network trained in Python, compiled, and called from a C++ program", style="bold"
    )
    built = "reused from an earlier run" if report.seconds is None else f"built in {report.seconds:.0f} s"
    threads = "1 thread" if facts["threads"] == "1" else f"{facts['threads']} threads"
    console.print(f"torch {torch.__version__}, {facts['target']}, {threads}; program {built}\n")
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 3, 0, 0))
    for title, justify in (("", "left"), ("measured", "right"), ("limit", "right"), ("", "left")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for case in report.cases:
        limit, verdict = "", Text()
        if case.limit is not None:
            limit = f"{'>=' if case.unit == 'fraction' else '<='} {_amount(case.limit, case.unit)}"
            verdict = Text("ok", "green") if case.holds else Text("DOES NOT HOLD", "red")
        table.add_row(case.case, _amount(case.value, case.unit), limit, verdict)
    console.print(table)
    console.print("\ntimes     medians of single calls, compiled and eager in turns, in that one process")
    console.print(f"program   {report.program}\nsources   {report.program.parent / 'source'}")


def _amount(value: float, unit: str) -> str:
    if unit == "fraction":
        return f"{100 * value:.3g} %"
    return f"{value:.3g} us" if unit == "us" and value < 100 else f"{value:.0f} us" if unit == "us" else f"{value:.2g}"
