"""Packages, regions, compiled functions and CUDA graphs on a GPU. Without one, everything here is skipped."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import _boost, _cache, _key, _made_once

import torchcc
from torchcc import native, paths, toolchain

HERE = Path(__file__).resolve().parent

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and PyTorch with CUDA"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PyTorch's own, of files that it reads
]

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

PACKAGES = ("functions", "updatable", "training", "half", "eight", "portable", "many", "kernels")

# Else each process that compiles asks again which vectors the CPU has, by programs that import torch: 40 s and more.
VECTORS = {"TORCHINDUCTOR_VEC_ISA_OK": "1"}

# They fill the GPU's memory, or measure time.
ALONE = re.compile(r"a_lack_of_memory|two_streams_overlap")


def _run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        output = f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
        pytest.fail(f"{command}: status {done.returncode}\n{output}", pytrace=False)
    return done.stdout


def _cases(*files: str) -> list[Any]:
    """The cases in C++ files, as Boost calls them: each is a test of its own, which can run beside others."""
    found: list[Any] = []
    for file in files:
        text = (HERE / "cpp" / f"{file}.cpp").read_text()
        (suite,) = re.findall(r"^BOOST_AUTO_TEST_SUITE\((\w+)\)", text, re.MULTILINE)
        for case in re.findall(r"^BOOST_AUTO_TEST_CASE\((\w+)\)", text, re.MULTILINE):
            marks = [*([pytest.mark.alone] if ALONE.search(case) else []), *([two_gpus] if suite == "devices" else [])]
            found.append(pytest.param(f"{suite}/{case}", marks=marks))
    return found


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets tests of all processes run beside each other, but for those that have to be alone."""
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / "cuda-gpu.lock").open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield


@pytest.fixture(scope="session")
def files() -> Path:
    """The folder of the packages."""

    def make(folder: Path) -> None:
        def write(name: str) -> None:
            # Each would start as many processes as there are cores.
            _run(sys.executable, HERE / "packages.py", folder, name, TORCHINDUCTOR_COMPILE_THREADS="4", **VECTORS)

        with ThreadPoolExecutor() as pool:
            list(pool.map(write, PACKAGES))

    major, minor = torch.cuda.get_device_capability()
    return _made_once(f"cuda-sm{major}{minor}", [HERE / "packages.py", HERE / "kernels.py"], make)


def _built(program: str, **definitions: str | Path) -> Path:
    """A program of the C++ tests, built by one process; the others wait."""
    folder = _cache() / "cpp" / f"cuda-{_key()}"
    with paths.locked(_cache() / "cuda-build.lock"):
        _run(
            *(native.cmake(), "-S", HERE / "cpp", "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DCMAKE_MAKE_PROGRAM={native.ninja()}",
            f"-DCMAKE_CXX_COMPILER={shutil.which(toolchain.cxx())}",
            f"-DCMAKE_PREFIX_PATH={paths.cmake_dir()}",
            f"-DTORCHCC_PYTHON={sys.executable}",
            f"-DTORCHCC_TEST_BOOST={_boost()}",
            "-DTORCHCC_WARNINGS_AS_ERRORS=ON",
            "-DTORCHCC_UNITY_BUILD=OFF",  # as fast, where there are many cores
            *(f"-D{name}={value}" for name, value in definitions.items()),
        )
        _run(native.cmake(), "--build", folder, "--target", program)
    return folder / program


@pytest.fixture(scope="session")
def package_tests(files: Path) -> Path:
    """The C++ tests of packages."""
    return _built("cuda_tests", TORCHCC_TEST_PACKAGES=files)


@pytest.fixture(scope="session")
def compile_tests() -> Path:
    """The C++ tests of compiled functions, which need no packages."""
    return _built("cuda_compile_tests")


# First those for which a process makes the packages, while others compile.


def test_python_loads_what_it_exported(files: Path) -> None:
    function = torchcc.load(files / "functions.pt2")["forward"]
    x = torch.randn(4, 128, device="cuda")
    portable = torchcc.load(files / "functions.pt2", compiled=False)["forward"]
    assert function.target.startswith("cuda-sm")
    torch.testing.assert_close(function(x), portable(x))
    with pytest.raises(torchcc.ArgumentError, match="a tensor on a GPU"):
        function(x.cpu())


def test_code_for_cpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(torchcc.ArgumentError, match="is for models on the CPU"):
        module = torch.nn.Linear(4, 4).cuda()
        torchcc.export(tmp_path / "m.pt2", module, (torch.randn(2, 4, device="cuda"),), targets=["avx2"])


def test_kernels_as_ptx_are_in_the_package_if_asked_for(files: Path) -> None:
    """And the driver compiles them, as it would for another GPU. PyTorch's own kernels have no PTX: all else is done
    on the CPU."""
    fat = (0xBA55ED50).to_bytes(4, "little")  # how files begin that have PTX beside machine code

    def contents(name: str) -> bytes:
        with zipfile.ZipFile(files / name) as archive:
            return b"".join(archive.read(one) for one in archive.namelist() if one.endswith(".so"))

    assert fat in contents("many.pt2")
    assert fat not in contents("single.pt2")
    program = (
        "import sys, torch, torchcc; x = torch.randn(8, 128); "
        "y = torchcc.load(sys.argv[1])['forward'](x.cuda()).cpu(); "
        "torch.testing.assert_close(y, torch.nn.functional.gelu(x * 2) + 1)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(files / "many.pt2")],
        env={**os.environ, "CUDA_FORCE_PTX_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_verify_and_inspect(files: Path) -> None:
    verified = _run(sys.executable, "-m", "torchcc", "verify", files / "updatable.pt2")
    assert "differs" not in verified and "cuda-sm" in verified
    assert "cuda-sm" in _run(sys.executable, "-m", "torchcc", "inspect", files / "updatable.pt2")


@pytest.mark.parametrize("case", _cases("compile", "compile_graphs", "lazy", "compile_devices"))
def test_compile(compile_tests: Path, tmp_path: Path, case: str) -> None:
    print(_run_case(compile_tests, case, TORCHCC_CACHE=str(tmp_path)))


@pytest.mark.parametrize("case", _cases("packages", "graphs", "streams", "devices"))
def test_cpp(package_tests: Path, files: Path, case: str) -> None:
    print(_run_case(package_tests, case, TORCHCC_TEST_FILES=str(files)))


def _run_case(program: Path, case: str, **environment: str) -> str:
    # Kernels are few and small: processes to compile them would cost more than they save.
    environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return _run(program, f"--run_test={case}", "--log_level=message", **environment, **VECTORS)
