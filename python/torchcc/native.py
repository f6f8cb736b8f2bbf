"""Builds C++ with the CMake and Ninja that pip installed: torchcc's libraries for projects without CMake, the demo."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import nlohmann_json
import torch

from torchcc import paths, toolchain
from torchcc._version import __version__
from torchcc.errors import CompileError, message


def _tool(name: str, module: str) -> str:
    """A tool from its pip package, which may not be on ``PATH``; else from ``PATH``."""
    try:
        package = importlib.import_module(module)
        bundled = Path(getattr(package, "CMAKE_BIN_DIR", None) or package.BIN_DIR) / name
        if bundled.is_file():
            return str(bundled)
    except ImportError:
        pass
    found = shutil.which(name)
    if found is None:
        raise CompileError(message(f"{name} was not found", fix=f"pip install {module}"))
    return found


def cmake() -> str:
    """Path of CMake."""
    return _tool("cmake", "cmake")


def ninja() -> str:
    """Path of Ninja."""
    return _tool("ninja", "ninja")


def build_project(
    source: Path,
    folder: Path,
    definitions: Sequence[str] = (),
    targets: Sequence[str] = (),
    log: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Configures and builds a CMake project that uses ``find_package(torchcc)``.

    Args:
        source: Folder of ``CMakeLists.txt``.
        folder: Build folder; made if missing, reused if not.
        definitions: Cache entries, ``NAME=VALUE``.
        targets: What to build; everything by default.
        log: File for all output; by default ``torchcc-build.log`` in the build folder.
        progress: Called with each line of Ninja's that starts a step.

    Raises:
        CompileError: CMake or the compiler failed; the message ends with the last lines.
    """
    toolchain.require_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    log = log or folder / "torchcc-build.log"
    configure = [
        *(cmake(), "-S", str(source), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja()}",
        f"-DCMAKE_CXX_COMPILER={shutil.which(toolchain.cxx())}",
        f"-DCMAKE_PREFIX_PATH={paths.cmake_dir()}",
        f"-DTORCHCC_PYTHON={sys.executable}",
        *(f"-D{definition}" for definition in definitions),
    ]
    build = [cmake(), "--build", str(folder), *(("--target", *targets) if targets else ())]
    with log.open("w") as file:
        for command in (configure, build):
            _run(command, file.fileno(), log, progress)


def _run(command: list[str], descriptor: int, log: Path, progress: Callable[[str], None] | None) -> None:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            os.write(descriptor, line.encode())
            if progress and line.startswith("["):
                progress(line.strip())
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise CompileError(
            message(
                "the C++ build failed",
                got=tail,
                log=str(log),
                fix="run `torchcc doctor`, or see the log",
            )
        )


_LIBRARIES_PROJECT = """cmake_minimum_required(VERSION 3.18)
project(torchcc_libraries CXX)
find_package(torchcc REQUIRED)
add_custom_target(libraries ALL DEPENDS torchcc_capture torchcc_runtime)
"""

_STANDALONE_PROJECT = """cmake_minimum_required(VERSION 3.18)
project(torchcc_libraries CXX)
find_package(torchcc REQUIRED COMPONENTS standalone)
add_custom_target(libraries ALL DEPENDS torchcc_standalone)
"""

#: Names of the static libraries, in the order in which a linker wants them.
LIBRARIES = ("libtorchcc_capture.a", "libtorchcc_runtime.a")


def library_place() -> Path:
    """The folder of the static libraries, whether they are there or not.

    There is one for each C++ compiler, interpreter, torch and torchcc.
    """
    compiler = toolchain.check_compiler(toolchain.cxx()).detail
    sources = "".join(
        file.read_text() for file in sorted(paths.cpp_dir().rglob("*")) if file.suffix in (".h", ".cpp", ".txt")
    )
    key = "\n".join([__version__, torch.__version__, torch.__file__, sys.executable, compiler, sources])
    return paths.cache_dir() / "runtime" / hashlib.sha256(key.encode()).hexdigest()[:16]


def library_dir(progress: Callable[[str], None] | None = None) -> Path:
    """The folder of the static libraries, which are built on first use into the cache.

    Args:
        progress: Called with each line of Ninja's that starts a step.

    Raises:
        CompileError: The build failed.
        OSError: The cache cannot be written.
    """
    folder = library_place()
    made = [folder / name for name in LIBRARIES]
    _build_once(made, folder / "lock", lambda: _build_libraries(made, progress))
    return folder


def _build_once(made: Sequence[Path], lock: Path, build: Callable[[], None]) -> None:
    """Builds what is missing, in one process at a time. A cache that has everything need not be writable."""
    if all(file.is_file() for file in made):
        return
    with paths.locked(lock):
        if not all(file.is_file() for file in made):
            build()


def _build_libraries(made: Sequence[Path], progress: Callable[[str], None] | None) -> None:
    with tempfile.TemporaryDirectory(prefix="torchcc-libraries-") as work:
        source = Path(work)
        (source / "CMakeLists.txt").write_text(_LIBRARIES_PROJECT)
        build_project(source, source / "build", ["CMAKE_BUILD_TYPE=Release"], progress=progress)
        for library in made:
            put(source / "build" / "torchcc" / library.name, library)


def standalone_flags() -> list[str]:
    """Compiler flags for a file that uses torchcc without LibTorch."""
    return ["-std=c++20", "-DTORCHCC_STANDALONE", f"-I{paths.cpp_dir() / 'include'}"]


def standalone_library() -> Path:
    """The static library behind torchcc::standalone, for this machine, built on first use into the cache.

    Raises:
        CompileError: The build failed.
        OSError: The cache cannot be written.
    """
    library = library_place() / "libtorchcc_standalone.a"
    _build_once([library], library.parent / "lock", lambda: _build_standalone(library))
    return library


def _build_standalone(library: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="torchcc-libraries-") as work:
        source = Path(work)
        (source / "CMakeLists.txt").write_text(_STANDALONE_PROJECT)
        build_project(source, source / "build", ["CMAKE_BUILD_TYPE=Release"])
        put(source / "build" / "torchcc-standalone" / library.name, library)


def put(made: Path, place: Path) -> None:
    """Copies a file, so that it appears whole or not at all."""
    temporary = place.with_name(f".{place.name}")
    shutil.copy2(made, temporary)
    temporary.replace(place)


def runner() -> Path:
    """The program ``torchcc-run`` (cpp/tools/run.cpp), built on first use.

    Raises:
        CompileError: The build failed.
        OSError: The cache cannot be written.
    """
    folder = library_dir()
    program = folder / "torchcc-run"
    _build_once([program], folder / "lock", lambda: _build_runner(folder, program))
    return program


def _build_runner(folder: Path, program: Path) -> None:
    source = paths.cpp_dir() / "tools" / "run.cpp"
    with tempfile.TemporaryDirectory(prefix="torchcc-runner-") as work:
        made, log = Path(work) / program.name, Path(work) / "build.log"
        command = [shutil.which(toolchain.cxx()) or "g++", "-O2", *cxx_flags(), str(source), "-o", str(made)]
        with log.open("w") as file:
            _run([*command, *_link_flags(folder)], file.fileno(), log, None)
        put(made, program)


def cxx_flags() -> list[str]:
    """Compiler flags for a file that uses torchcc and LibTorch."""
    torch_include = Path(torch.__file__).parent / "include"
    return [
        "-std=c++20",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{paths.cpp_dir() / 'include'}",
        f"-isystem{torch_include}",
        f"-isystem{torch_include / 'torch/csrc/api/include'}",
        f"-isystem{nlohmann_json.get_include()}",
    ]


def ld_flags(progress: Callable[[str], None] | None = None) -> list[str]:
    """Linker flags for a program that uses torchcc and LibTorch; builds torchcc's libraries on first use."""
    return _link_flags(library_dir(progress))


def _link_flags(folder: Path) -> list[str]:
    torch_lib = Path(torch.__file__).parent / "lib"
    torch_libraries = ["-ltorch", "-ltorch_cpu", "-lc10"]
    if torch.version.cuda:
        torch_libraries += ["-Wl,--push-state,--no-as-needed", "-ltorch_cuda", "-Wl,--pop-state", "-lc10_cuda"]
    own = [str(folder / name) for name in LIBRARIES]
    return [*own, f"-L{torch_lib}", f"-Wl,-rpath,{torch_lib}", *torch_libraries, "-ldl", "-pthread"]
