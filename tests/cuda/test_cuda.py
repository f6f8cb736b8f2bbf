"""Packages, regions, compiled functions and CUDA graphs on a GPU. Without one, everything here is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import _boost

import torchcc
from torchcc import native, paths, toolchain

HERE = Path(__file__).resolve().parent

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and PyTorch with CUDA"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PyTorch's own, of files that it reads
]

SUITES = ("packages", "graphs", "streams")
COMPILED = ("compile", "lazy", "compiled_graphs")

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
PACKAGES = ("functions", "updatable", "training", "half", "eight", "portable", "many", "kernels")


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{command}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}", pytrace=False)
    return done.stdout


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the packages."""
    folder = tmp_path_factory.mktemp("packages")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: _run(sys.executable, HERE / "packages.py", folder, name), PACKAGES))
    return folder


@pytest.fixture(scope="session")
def programs(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the C++ tests."""
    folder = Path(os.environ.get("TORCHCC_TEST_BUILD") or tmp_path_factory.mktemp("build"))
    _run(
        *(native.cmake(), "-S", HERE / "cpp", "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
        f"-DCMAKE_MAKE_PROGRAM={native.ninja()}",
        f"-DCMAKE_CXX_COMPILER={shutil.which(toolchain.cxx())}",
        f"-DCMAKE_PREFIX_PATH={paths.cmake_dir()}",
        f"-DTORCHCC_PYTHON={sys.executable}",
        f"-DTORCHCC_TEST_PACKAGES={files}",
        f"-DTORCHCC_TEST_BOOST={_boost()}",
        "-DTORCHCC_WARNINGS_AS_ERRORS=ON",
    )
    _run(native.cmake(), "--build", folder)
    return folder


@pytest.mark.parametrize("suite", SUITES)
def test_cpp(programs: Path, files: Path, suite: str) -> None:
    _run_suite(programs / "cuda_tests", suite, {"TORCHCC_TEST_FILES": str(files)})


@pytest.mark.parametrize("suite", COMPILED)
def test_compile(programs: Path, tmp_path: Path, suite: str) -> None:
    _run_suite(programs / "cuda_compile_tests", suite, {**os.environ, "TORCHCC_CACHE": str(tmp_path)})


@two_gpus
@pytest.mark.parametrize("program", ["cuda_tests", "cuda_compile_tests"])
def test_devices(programs: Path, files: Path, tmp_path: Path, program: str) -> None:
    environment = {**os.environ, "TORCHCC_TEST_FILES": str(files), "TORCHCC_CACHE": str(tmp_path)}
    _run_suite(programs / program, "devices", environment)


def _run_suite(program: Path, suite: str, environment: dict[str, str]) -> None:
    ran = subprocess.run(
        [str(program), f"--run_test={suite}", "--log_level=message"],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    print(ran.stdout)
    if ran.returncode != 0:
        pytest.fail(f"{suite}: status {ran.returncode}\n{ran.stdout}\n{ran.stderr[-8000:]}", pytrace=False)


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
