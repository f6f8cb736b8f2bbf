"""`torchcc doctor` on this machine, and on one where something is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchcc import doctor, toolchain


def run_doctor(tmp_path: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], dict[str, dict]]:
    file = tmp_path / "doctor.json"
    done = subprocess.run(
        [sys.executable, "-m", "torchcc", "doctor", "--json", str(file)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert file.is_file(), done.stdout + done.stderr
    assert done.stderr == ""
    return done, {finding["name"]: finding for finding in json.loads(file.read_text())["findings"]}


def wrapper(tmp_path: Path, script: str) -> str:
    """A compiler that is g++ behind a shell script."""
    file = tmp_path / "wrapped-g++"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def test_this_machine_has_all_that_is_required(tmp_path: Path) -> None:
    done, found = run_doctor(tmp_path, TORCHCC_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("everything that torchcc needs is there\n")
    assert list(found) == [
        *("system", "Python", "torch", "LibTorch", "C++ compiler", "libstdc++", "OpenMP", "vector ISA", "CMake"),
        *("Ninja", "nlohmann_json", "CMake package", "cache folder", "temporary folder", "memory files"),
    ]
    assert all(finding["good"] for finding in found.values() if finding["required"])
    assert found["vector ISA"]["detail"].startswith("cpu-")
    assert str(tmp_path / "cache") in found["cache folder"]["detail"]


def test_a_missing_compiler_is_named_with_its_remedy(tmp_path: Path) -> None:
    done, found = run_doctor(tmp_path, CXX="/nonexistent/c++")
    assert done.returncode == 1
    assert "MISSING  C++ compiler      /nonexistent/c++ was not found" in done.stdout
    assert "fix: apt-get install g++" in done.stdout
    assert done.stdout.endswith("missing: C++ compiler\n")
    assert not {"libstdc++", "OpenMP", "vector ISA", "CMake package"} & found.keys()  # nothing to check them with


def test_a_compiler_that_links_libstdcxx_statically_is_refused(tmp_path: Path) -> None:
    done, found = run_doctor(tmp_path, CXX=wrapper(tmp_path, 'exec g++ "$@" -static-libstdc++'))
    assert done.returncode == 1
    assert "links libstdc++ statically" in found["libstdc++"]["detail"]
    assert "export CXX=/usr/bin/g++" in found["libstdc++"]["fix"]
    assert found["C++ compiler"]["good"] and found["OpenMP"]["good"]
    assert done.stdout.endswith("missing: libstdc++\n")


def test_a_compiler_without_cpp20_is_refused(tmp_path: Path) -> None:
    compiler = wrapper(tmp_path, "echo 'unrecognized option -std=c++20' >&2; exit 1")
    found = toolchain.check_compiler(compiler)
    assert not found.good
    assert found.detail == f"{compiler} cannot build C++20: unrecognized option -std=c++20"


def test_a_compiler_without_openmp_is_refused(tmp_path: Path) -> None:
    compiler = wrapper(tmp_path, 'case "$*" in *-fopenmp*) echo no OpenMP >&2; exit 1;; esac; exec g++ "$@"')
    assert toolchain.check_compiler(compiler).good
    found = toolchain.check_openmp(compiler)
    assert not found.good
    assert "no OpenMP" in found.detail and "libomp-dev" in found.fix


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "not-a-compiler"
    file.write_bytes(b"\0\0\0\0")
    file.chmod(0o755)
    assert "cannot build C++20" in toolchain.check_compiler(str(file)).detail


def test_flags_in_cxx_are_explained() -> None:
    found = toolchain.check_compiler("ccache g++")
    assert not found.good
    assert "put them into a script" in found.fix


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cu128", "2.13.0+cpu"])
def test_torch_in_range(version: str) -> None:
    assert doctor.check_torch(version).good


@pytest.mark.parametrize("version", ["2.10.1", "2.14.0a0+git1234", "3.0.0", "1.13.1"])
def test_torch_out_of_range(version: str) -> None:
    found = doctor.check_torch(version)
    assert not found.good
    assert version in found.detail
    assert found.fix == "pip install 'torch>=2.11,<2.14'"


def test_range_of_torch_is_the_package_metadatas() -> None:
    low, high = doctor.TORCH_RANGE
    requirements = {requirement.replace(" ", "") for requirement in importlib.metadata.requires("torchcc") or ()}
    versions = {f">={low[0]}.{low[1]}", f"<{high[0]}.{high[1]}"}
    assert [one for one in requirements if one.startswith("torch") and set(one[len("torch") :].split(",")) == versions]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHCC_CACHE", str(tmp_path / "file" / "cache"))
    found = doctor._folder("cache folder", tmp_path / "file" / "cache", "TORCHCC_CACHE")
    assert not found.good
    assert found.fix == "set TORCHCC_CACHE to another folder"
