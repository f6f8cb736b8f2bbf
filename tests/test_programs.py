"""Runs C++ programs eagerly and compiled, and compares: see cpp/programs/harness.h.

A few suites share a process and its compiler, which takes longer to start than to compile a program. What was compiled
stays in the cache of the tests, so that a second run takes seconds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from torchcc import paths

# Suites that share a process; the longest first, since the other process cannot help with a test that has begun.
GROUPS = (
    ("lazy", "steps"),
    ("operators", "guards"),
    ("sequences", "mutation"),
    ("changes", "signatures", "eager"),
    ("convolutions", "layers", "concurrency", "random_numbers"),
    ("training",),
    ("sizes",),
)

# The same for the programs that have the label "slow"; some suites have none.
SLOW_GROUPS = (
    ("lazy", "steps", "operators", "guards", "sequences", "mutation", "changes", "sizes"),
    ("signatures", "eager", "convolutions", "layers", "concurrency", "random_numbers", "training"),
)

# Suites whose programs run with gradients too, and lazily; see TORCHCC_PROGRAMS in harness.h.
TRAINED = ("operators", "sequences", "mutation", "signatures", "eager", "convolutions", "layers", "random_numbers")

# Suites most of whose programs take arguments of other sizes; see check_sizes() in harness.cpp.
SIZED = ("operators", "sequences", "convolutions", "layers")

PROGRAMS = int(os.environ.get("TORCHCC_RANDOM_PROGRAMS", "300"))
SEED = int(os.environ.get("TORCHCC_RANDOM_SEED", "1"))
PARTS = 2  # processes that share the random programs

_LIMIT = 1500  # seconds for one process

_PASSED_ON = ("PATH", "HOME", "TMPDIR", "CXX", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Run:
    """A process of the C++ program, and which tests it is for."""

    suites: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)
    is_whole: bool = False  # with the programs that have the label "slow"
    is_slow: bool = False  # these alone

    @property
    def selection(self) -> tuple[str, ...]:
        """Boost.Test's options for it."""
        if self.is_slow:
            others = [suite for group in SLOW_GROUPS for suite in group if suite not in self.suites]
            return ("--run_test=@slow", *(f"--run_test=!{suite}" for suite in others))
        chosen = tuple(f"--run_test={suite}" for suite in self.suites)
        return chosen if self.is_whole else (*chosen, "--run_test=!@slow")

    @property
    def name(self) -> str:
        return "-".join([*self.suites, *self.settings.values()])


RANDOM = tuple(
    Run(
        ("random_programs",),
        {
            "TORCHCC_RANDOM_SEED": str(SEED + PROGRAMS * part // PARTS),
            "TORCHCC_RANDOM_PROGRAMS": str(PROGRAMS * (part + 1) // PARTS - PROGRAMS * part // PARTS),
        },
    )
    for part in range(PARTS)
)
# Two compilations for each of two halves, in place of one.
RANDOM_TRAINING = Run(
    ("random_training",),
    {"TORCHCC_RANDOM_SEED": str(SEED), "TORCHCC_RANDOM_PROGRAMS": str(max(1, PROGRAMS // 30))},
)
RANDOM_READS = Run(("random_reads",), {"TORCHCC_RANDOM_SEED": str(SEED), "TORCHCC_RANDOM_PROGRAMS": str(PROGRAMS)})
SLOW = {run.name: run for run in (Run(group, is_slow=True) for group in SLOW_GROUPS)}
RUNS = {run.name: run for run in (*RANDOM, RANDOM_TRAINING, RANDOM_READS, *(Run(group) for group in GROUPS))}


@dataclass(frozen=True)
class Ran:
    """What came out: one line for each program, and everything that was wrong."""

    status: int
    lines: list[str]
    failures: list[str]
    output: str


def _read(report: Path, status: int, output: str) -> Ran:
    """Reads Boost.Test's JUnit file; without one (the process died), the output is all there is."""
    lines, failures = [], []
    try:
        cases = list(ET.parse(report).iter("testcase"))
    except (FileNotFoundError, ET.ParseError):
        return Ran(status, [], ["no report: the process ended early"], output)
    for case in cases:
        if case.find("skipped") is not None:
            continue
        wrong = [*case.iter("failure"), *case.iter("error")]
        lines.append(f"{'FAILED' if wrong else 'passed'}  {float(case.get('time', 0)):7.2f} s  {case.get('name')}")
        failures += [f"{case.get('name')}: {(one.text or '').strip()[:4000]}" for one in wrong]
    return Ran(status, lines, failures, output)


def _execute(program: Path, run: Run, folder: Path) -> Ran:
    report = folder / f"{run.name}.xml"
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {
        "TORCHCC_PYTHON": sys.executable,
        "TORCHCC_CACHE": str(paths.cache_dir() / "tests" / "compiled"),
        "OMP_NUM_THREADS": "1",
        **run.settings,
    }
    command = [str(program), *run.selection, f"--logger=HRF,warning,stdout:JUNIT,all,{report}"]
    try:
        done = subprocess.run(
            [*command, "--report_level=no", "--color_output=no"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        return Ran(-1, [], [f"not finished after {_LIMIT} s"], (expired.output or b"").decode(errors="replace"))
    return _read(report, done.returncode, done.stdout)


@pytest.mark.parametrize("name", RUNS)
def test_programs(cpp_build: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """All but those with the label "slow", which are variations of others, so that CI takes less than half an hour."""
    _check(_execute(cpp_build("release") / "programs", RUNS[name], tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_slow_programs(cpp_build: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """Those with the label."""
    _check(_execute(cpp_build("release") / "programs", SLOW[name], tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("suite", TRAINED)
def test_programs_with_gradients(cpp_build: Callable[[str], Path], tmp_path: Path, suite: str) -> None:
    """All that can be differentiated are right; nearly all that could be compiled are."""
    ran, compiled, programs = _summary(cpp_build, tmp_path, (suite,), "training", r"training: (\d+) of (\d+) compiled")
    must_be_eager = ran.output.count(": the function writes to a tensor that requires grad\n")
    # Programs that must stay eager without gradients must with them.
    assert suite == "eager" or compiled >= 0.8 * (programs - must_be_eager)


@pytest.mark.slow
def test_programs_lazily(cpp_build: Callable[[str], Path], tmp_path: Path) -> None:
    """All are right, and at least half of their operators run compiled."""
    _, good, every = _summary(cpp_build, tmp_path, TRAINED, "lazy", r"lazy: (\d+) of (\d+) operators compiled")
    assert good >= 0.5 * every


@pytest.mark.slow
@pytest.mark.parametrize("suite", SIZED)
def test_programs_of_many_sizes(cpp_build: Callable[[str], Path], tmp_path: Path, suite: str) -> None:
    """All are right, and most dimensions that may have other sizes need one code for all of them."""
    _, good, every = _summary(
        cpp_build, tmp_path, (suite,), "sizes", r"sizes: (\d+) of (\d+) dimensions served by one code"
    )
    assert good >= 0.6 * every


def _summary(
    cpp_build: Callable[[str], Path], tmp_path: Path, suites: tuple[str, ...], mode: str, pattern: str
) -> tuple[Ran, int, int]:
    """Runs suites with their programs in another way; with the numbers of the last line."""
    run = Run(suites, {"TORCHCC_PROGRAMS": mode}, is_whole=mode == "training")
    ran = _execute(cpp_build("release") / "programs", run, tmp_path)
    _check(ran)
    summary = re.search(pattern, ran.output)
    assert summary is not None, ran.output
    print(*(line for line in ran.output.splitlines() if line.startswith(f"{mode}:")), sep="\n")
    good, every = map(int, summary.groups())
    return ran, good, every


def _check(ran: Ran) -> None:
    print("\n".join(ran.lines))
    if ran.failures or ran.status != 0:
        pytest.fail(
            f"status {ran.status}\n" + "\n".join([*ran.lines, *ran.failures]) + f"\n{ran.output[-20000:]}",
            pytrace=False,
        )


def test_all_groups_run(cpp_build: Callable[[str], Path]) -> None:
    """No suite of the C++ files is missing in the lists above."""
    program = cpp_build("release") / "programs"
    listed = subprocess.run([str(program), "--list_content"], capture_output=True, text=True, check=True).stderr
    suites = {line.rstrip("*") for line in listed.splitlines() if not line.startswith(" ")}
    assert suites == {suite for run in RUNS.values() for suite in run.suites}
    random = {"random_programs", "random_training", "random_reads"}
    assert suites - random == {suite for run in SLOW.values() for suite in run.suites}
