"""Uses the wheel from outside, as a user's project would: nothing here sees the repository's sources."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def run(*command: str | Path, **options: object) -> str:
    """Runs a command and returns what it prints; shows everything when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with torchcc installed from its wheel, which must hold all that a build needs."""
    wheels = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT)
    (wheel,) = wheels.glob("torchcc-*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture
def environment(site: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in which Python finds the installed wheel before this repository."""
    return {
        **os.environ,
        "PYTHONPATH": str(site),
        "PATH": f"{site / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TORCHCC_CACHE": str(tmp_path / "cache"),
    }


def check_ships_alone(program: Path, *arguments: Path) -> str:
    """Runs a program with an empty environment, after checking that it needs no libpython."""
    needed = [line.split()[0] for line in run("ldd", program).splitlines()]
    assert not [library for library in needed if "python" in library]
    return run(program, *arguments, env={})


def readme_blocks() -> dict[str, str]:
    """README's code blocks by the file name in their first line; the console block as ``console``."""
    blocks = {}
    for language, text in re.findall(
        r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    ):
        first = text.splitlines()[0]
        name = first.lstrip("#/ ") if re.match(r"(#|//) \S+\.\w+$", first) else language
        blocks.setdefault(name, text)
    return blocks


def test_cmake_project(environment: dict[str, str], site: Path, tmp_path: Path) -> None:
    """README's first page, word for word; then another project in the same build folder."""
    project, build = tmp_path / "project", tmp_path / "build"
    project.mkdir()
    blocks = readme_blocks()
    for name in ("kernels.py", "CMakeLists.txt", "main.cpp"):
        (project / name).write_text(blocks[name])
    prefix = run("torchcc", "--cmake-dir", env=environment).strip()
    assert prefix == str(site / "torchcc" / "cmake")
    settings = ("-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DTORCHCC_PYTHON={sys.executable}")
    run("cmake", "-S", project, "-B", build, *settings, f"-DCMAKE_PREFIX_PATH={prefix}", env=environment)
    run("cmake", "--build", build, env=environment)
    command, _, shown = blocks["console"].partition("\n")
    assert command.endswith("env -i build/app")
    assert check_ships_alone(build / "app") == shown
    assert "no work to do" in run("cmake", "--build", build, env=environment)

    shutil.copytree(HERE / "cmake_project", project, dirs_exist_ok=True, copy_function=shutil.copyfile)
    run("cmake", "--build", build, env=environment)
    assert check_ships_alone(build / "app") == "scale 3\n"
    # A module that the regions import changed, so they have to be built again.
    (project / "scaling.py").write_text("SCALE = 5.0\n")
    assert "torchcc: compiling the regions" in run("cmake", "--build", build, "--", "-n", env=environment)


def test_plain_prefix_path(environment: dict[str, str], site: Path, tmp_path: Path) -> None:
    """The folder of the installed packages itself, as CMAKE_PREFIX_PATH, is enough to find torchcc."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(prefix CXX)\nfind_package(torchcc REQUIRED)\n"
        'message(STATUS "found ${torchcc_DIR}")\n'
    )
    settings = (f"-DTORCHCC_PYTHON={sys.executable}", f"-DCMAKE_PREFIX_PATH={site}")
    output = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", *settings, env=environment)
    assert f"found {site / 'torchcc' / 'cmake'}" in output


@pytest.mark.slow
def test_without_cmake(environment: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(HERE / "plain", tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    run("torchcc", "build", "kernels.py", "-o", out, cwd=tmp_path, env=environment)
    compile_flags = shlex.split(run("torchcc", "--cxxflags", env=environment))
    link_flags = shlex.split(run("torchcc", "--ldflags", env=environment))
    program = tmp_path / "program"
    sources = (tmp_path / "main.cpp", out / "kernels.cpp", f"-I{out}")
    run(os.environ.get("CXX", "g++"), "-O1", *compile_flags, *sources, "-o", program, *link_flags)
    captured, regions = check_ships_alone(program, out / "kernels.pt2").splitlines()
    assert captured.startswith("right: there is no place for compiled code")
    assert regions == "same compiled"
