"""Runs the C++ tests of the runtime: as users build them, and with sanitizers. Each suite is a test of its own."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

SUITES = ("calls", "layouts_of_inputs", "mutation", "outputs", "failures", "packages", "damage", "threads")

_ADDR_NO_RANDOMIZE = 0x0040000

_SETTINGS = {
    "release": {},
    "asan-ubsan": {
        # Sizes in damaged packages ask for more memory than there is; that has to be an exception, not an abort.
        "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
        "LSAN_OPTIONS": f"suppressions={HERE / 'cpp' / 'lsan.supp'}:use_tls=0:print_suppressions=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    "tsan": {"TSAN_OPTIONS": "halt_on_error=1"},
}


def run_program(program: Path, files: Path, *options: str, preset: str = "release") -> subprocess.CompletedProcess[str]:
    """Runs a C++ test program with nothing in its environment but what it needs."""
    return subprocess.run(
        [str(program), *options],
        env={"TORCHCC_TEST_FILES": str(files), "OMP_NUM_THREADS": "1", **_SETTINGS[preset]},
        preexec_fn=_fix_addresses if preset == "tsan" else None,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _fix_addresses() -> None:
    """ThreadSanitizer of GCC 12 has no room for its shadow memory where the kernel scatters addresses widely."""
    ctypes.CDLL(None).personality(_ADDR_NO_RANDOMIZE)


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


def test_tsan(cpp_build: Callable[[str], Path], files: Path) -> None:
    check(cpp_build, files, "tsan", "threads")


def test_all_suites_run(cpp_build: Callable[[str], Path], files: Path) -> None:
    """No suite of the C++ files is missing in the list above."""
    listed = run_program(cpp_build("release") / "runtime_tests", files, "--list_content").stderr
    assert [line.rstrip("*") for line in listed.splitlines() if not line.startswith(" ")] == sorted(SUITES)
