"""Runs the C++ tests of the runtime: as users build them, and with sanitizers. Each suite is a test of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sanitizers import SETTINGS, fix_addresses

SUITES = (
    *("calls", "layouts_of_inputs", "mutation", "outputs", "failures"),
    *("models", "packages", "damage", "threads", "training"),
)


def run_program(program: Path, files: Path, *options: str, preset: str = "release") -> subprocess.CompletedProcess[str]:
    """Runs a C++ test program with nothing in its environment but what it needs."""
    return subprocess.run(
        [str(program), *options],
        env={"TORCHCC_TEST_FILES": str(files), "OMP_NUM_THREADS": "1", **SETTINGS[preset]},
        preexec_fn=fix_addresses if preset == "tsan" else None,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def check(build: Callable[[str], Path], files: Path, preset: str, suite: str) -> None:
    """Runs a suite; fails with all of its output."""
    ran = run_program(
        build(preset) / "runtime_tests", files, f"--run_test={suite}", "--log_level=message", preset=preset
    )
    print(ran.stdout)
    if ran.returncode != 0:
        pytest.fail(f"{preset}, {suite}: status {ran.returncode}\n{ran.stdout}\n{ran.stderr[-20000:]}", pytrace=False)


@pytest.mark.parametrize("suite", SUITES)
def test_release(cpp_build: Callable[[str], Path], files: Path, suite: str) -> None:
    check(cpp_build, files, "release", suite)


@pytest.mark.parametrize("suite", SUITES)
def test_asan_ubsan(cpp_build: Callable[[str], Path], files: Path, suite: str) -> None:
    check(cpp_build, files, "asan-ubsan", suite)


@pytest.mark.slow
def test_tsan(cpp_build: Callable[[str], Path], files: Path) -> None:
    check(cpp_build, files, "tsan", "threads")


def test_all_suites_run(cpp_build: Callable[[str], Path], files: Path) -> None:
    """No suite of the C++ files is missing in the list above."""
    listed = run_program(cpp_build("release") / "runtime_tests", files, "--list_content").stderr
    assert {line.rstrip("*") for line in listed.splitlines() if not line.startswith(" ")} == set(SUITES)
