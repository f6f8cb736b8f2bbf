"""``torchcc doctor``: what torchcc needs on this machine, what is there, and how to get what is missing."""

from __future__ import annotations

import importlib.metadata
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from torchcc import _torch, paths, toolchain
from torchcc.errors import Error
from torchcc.toolchain import Finding

#: The range in pyproject.toml: from the first, below the second.
TORCH_RANGE = ((2, 11), (2, 14))

# `torchcc demo` leaves 1 MB in the cache and 270 MB in the temporary folder, where Inductor keeps precompiled headers.
_SPACE = 2**30

_CPU_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def findings() -> Iterator[Finding]:
    """Looks at one thing after the other."""
    yield _system()
    yield _python()
    yield check_torch(torch.__version__)
    yield _libtorch()
    compiler = toolchain.cxx()
    found = toolchain.check_compiler(compiler)
    yield found
    if found.good:
        libstdcxx = toolchain.check_libstdcxx(compiler)
        yield libstdcxx
        yield toolchain.check_openmp(compiler)
        yield _vector_isa()
    yield _tool("CMake", "cmake")
    yield _tool("Ninja", "ninja")
    yield _json_headers()
    if found.good and libstdcxx.good:
        yield _find_package()
    yield _folder("cache folder", paths.cache_dir(), "TORCHCC_CACHE")
    yield _temporary_folder()
    yield _memory_file()


def _system() -> Finding:
    libc = " ".join(platform.libc_ver())
    detail = f"{platform.system()} {platform.machine()}, {libc}, {os.cpu_count()} cores"
    return Finding("system", sys.platform == "linux", detail, "torchcc runs on Linux")


def _python() -> Finding:
    detail = f"{platform.python_version()} ({sys.executable})"
    return Finding("Python", sys.version_info >= (3, 10), detail, "install Python 3.10 or later")


def check_torch(version: str) -> Finding:
    """Whether this version of torch is one that torchcc works with."""
    low, high = TORCH_RANGE
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    devices = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    supported = ">={}.{},<{}.{}".format(*low, *high)
    if low <= numbers < high:
        return Finding("torch", True, f"{version}, {devices} ({Path(torch.__file__).parent})")
    return Finding("torch", False, f"{version}, where torchcc needs {supported}", f"pip install 'torch{supported}'")


def _libtorch() -> Finding:
    root = Path(torch.__file__).parent
    wanted = ("include/torch/csrc/api/include/torch/torch.h", "lib/libtorch.so", "lib/libtorch_cpu.so", "lib/libc10.so")
    missing = [name for name in wanted if not (root / name).is_file()]
    if missing:
        return Finding(
            "LibTorch", False, f"{root} lacks {', '.join(missing)}", f"use PyTorch's own wheel: {_CPU_TORCH}"
        )
    abi = int(torch.compiled_with_cxx11_abi())
    return Finding("LibTorch", True, f"headers and libraries are there; _GLIBCXX_USE_CXX11_ABI={abi}")


def _vector_isa() -> Finding:
    try:
        target, _, features = _torch.cpu_target()
    except Exception as error:  # whatever Inductor's own probe of the compiler raises
        return Finding("vector ISA", False, f"Inductor cannot tell: {error}", "set CXX to a g++ that works")
    if target == "cpu-x86_64":
        fix = "none if the CPU has no AVX2; else use a newer compiler, for this one cannot build AVX2 code"
        return Finding("vector ISA", False, "none: compiled code will be scalar", fix, required=False)
    return Finding("vector ISA", True, f"{target}" + (f" ({' '.join(features)})" if features else ""))


def _tool(title: str, module: str) -> Finding:
    fix = f"pip install {module}"
    try:
        from torchcc import native

        path = {"cmake": native.cmake, "ninja": native.ninja}[module]()
        ran = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    except ImportError as error:
        return Finding(title, False, str(error), f"pip install {error.name or module}")
    except (Error, OSError, subprocess.CalledProcessError) as error:
        return Finding(title, False, str(error).splitlines()[0], fix)
    version = re.search(r"\d+(\.\d+)+", ran.stdout)
    return Finding(title, True, f"{version.group() if version else '?'} ({path})")


def _json_headers() -> Finding:
    fix = "pip install nlohmann_json"
    try:
        import nlohmann_json
    except ImportError as error:
        return Finding("nlohmann_json", False, str(error), fix)
    header = Path(nlohmann_json.get_include()) / "nlohmann" / "json.hpp"
    if not header.is_file():
        return Finding("nlohmann_json", False, f"{header} is missing", fix)
    return Finding("nlohmann_json", True, f"{importlib.metadata.version('nlohmann_json')} ({header.parents[1]})")


def _find_package() -> Finding:
    """Configures a CMake project as users do: no other check sees all that ``find_package(torchcc)`` asks for."""
    with tempfile.TemporaryDirectory(prefix="torchcc-doctor-") as folder:
        project = "cmake_minimum_required(VERSION 3.18)\nproject(check CXX)\nfind_package(torchcc REQUIRED)\n"
        (Path(folder) / "CMakeLists.txt").write_text(project)
        try:
            from torchcc import native

            native.build_project(Path(folder), Path(folder) / "build")
        except (Error, ImportError, OSError) as error:
            return Finding("CMake package", False, str(error), "see CMake's message")
    return Finding("CMake package", True, f"find_package(torchcc) works with {paths.cmake_dir()}")


def _temporary_folder() -> Finding:
    try:
        return _folder("temporary folder", Path(tempfile.gettempdir()), "TMPDIR")
    except FileNotFoundError as error:
        return Finding("temporary folder", False, str(error), "set TMPDIR to a folder that you can write to")


def _folder(title: str, folder: Path, variable: str) -> Finding:
    """Whether a folder can be written, has space, and may hold programs: code is loaded and run from both."""
    other = f"set {variable} to another folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(title, False, f"{folder} cannot be written: {error}", other)
    free = shutil.disk_usage(folder).free
    detail = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < _SPACE:
        return Finding(title, False, f"{detail}, less than {_SPACE / 2**30:.1f}", f"free some space, or {other}")
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return Finding(title, False, f"{detail}, but mounted so that nothing there can be run (noexec)", other)
    return Finding(title, True, detail)


def _memory_file() -> Finding:
    """Whether code may be loaded from memory, as the C++ runtime does."""
    try:
        descriptor = os.memfd_create("torchcc-doctor")
        try:
            os.write(descriptor, b"\0" * mmap.PAGESIZE)
            mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        finally:
            os.close(descriptor)
    except (OSError, AttributeError) as error:
        fix = "allow it: Linux 3.17 or later, sysctl vm.memfd_noexec below 2, and no seccomp rule against memfd_create"
        return Finding("memory files", False, f"memfd_create: {error}", fix)
    return Finding("memory files", True, "memfd_create works, and its memory may be run")


def _line(finding: Finding) -> Text:
    mark, style = ("ok", "green") if finding.good else ("MISSING", "red") if finding.required else ("slower", "yellow")
    indent = " " * 27
    detail = finding.detail.replace("\n", "\n" + indent)
    text = Text.assemble((f"{mark:<9}", style), f"{finding.name:<18}{detail}")
    if not finding.good and finding.fix:
        text.append(f"\n{indent}fix: {finding.fix}")
    return text


def run() -> list[Finding]:
    """Checks everything, and prints one line for each thing as it is found."""
    console = Console(highlight=False, soft_wrap=True)
    found = []
    for finding in findings():
        console.print(_line(finding))
        found.append(finding)
    missing = missing_names(found)
    console.print(Text(f"missing: {', '.join(missing)}" if missing else "everything that torchcc needs is there"))
    return found


def missing_names(found: Iterable[Finding]) -> list[str]:
    """Names of what torchcc cannot do without."""
    return [finding.name for finding in found if finding.required and not finding.good]
