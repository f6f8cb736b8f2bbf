"""``torchcc demo``: builds and runs the three C++ programs of examples/digits.

The first calls a network that was trained and compiled in Python. In the second the network is written in C++ with
``torch::nn``, and compiled while the program runs. The third trains that network, with the whole step compiled.
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
from pathlib import Path

import torch

from torchcc import native, paths, toolchain
from torchcc._version import __version__
from torchcc.demo_report import Part, Report, network_cases, region_cases, training_cases, training_notes
from torchcc.errors import Error, message

_HERE = Path(__file__).resolve().parent
_PROJECT = _HERE / "examples" / "digits"
_DATA = _HERE / "data" / "digits.bin"

Progress = Callable[[str, int, int], None]


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
    cached = {**kept, "TORCHCC_COMPILER": "off"}
    again = _run(folder / "convolutional", [], _NETWORK_FACTS, cached)
    tell("running the program that trains, eagerly and compiled", 0, 0)
    training = _run(folder / "training", [], _TRAINING_FACTS, kept)
    tell("running it again, without Python", 0, 0)
    training_again = _run(folder / "training", [], _TRAINING_FACTS, cached)
    return Report(
        (
            Part(
                "a network trained in Python, compiled, and called from a C++ program",
                region_cases(region),
                region,
                folder / "digits",
            ),
            Part(
                "a network written in C++ with torch::nn, compiled while the program runs",
                network_cases(network, again),
                network,
                folder / "convolutional",
            ),
            Part(
                "the same network trained in C++, the whole step compiled",
                training_cases(training, training_again),
                training,
                folder / "training",
                training_notes(training),
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
_PROGRAMS = ("digits", "convolutional", "training")
_TIMES = frozenset(f"{side}_{batch}_us" for side in ("compiled", "eager") for batch in ("1", "all"))
_COMMON = _TIMES | {"threads", "held_out", "accuracy", "logit_difference", "python_files"}
_REGION_FACTS = _COMMON | {"backend", "target", "load_us"}
_NETWORK_FACTS = _COMMON | {"training_us", "variants", "replayed", "compile_seconds", "reason"}
_TRAINING_FACTS = frozenset(
    f"{side}_{fact}" for side in ("eager", "compiled") for fact in ("losses", "epoch_s", "ops")
) | {"threads", "epochs", "eager_steps", "accuracy", "eager_accuracy", "python_files", "compile_seconds", "reason"}
