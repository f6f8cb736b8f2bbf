"""The C++ tools on this machine: what is there, what is missing, and how to get it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torchcc.errors import CompileError, message

_INSTALL_COMPILER = "apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), or set CXX to a C++20 compiler"


@dataclass(frozen=True)
class Finding:
    """One thing that torchcc needs.

    Attributes:
        name: What it is.
        good: Whether it is all right.
        detail: What is there, or what is wrong with it.
        fix: How to mend it.
        required: Whether torchcc does not work without it; else it is only slower.
    """

    name: str
    good: bool
    detail: str
    fix: str = ""
    required: bool = True


def cxx() -> str:
    """The C++ compiler that Inductor and torchcc use: ``CXX`` or ``g++``."""
    return os.environ.get("CXX", "g++")


@functools.cache
def check_compiler(compiler: str) -> Finding:
    """Whether the compiler exists and takes C++20."""
    path = shutil.which(compiler)
    if path is None:
        fix = _INSTALL_COMPILER
        if " " in compiler.strip():
            fix = "CXX is one program, without flags: put them into a script, and set CXX to that"
        return Finding("C++ compiler", False, f"{compiler or 'CXX is empty: it'} was not found", fix)
    error, _ = _try_compile(
        path,
        "#include <concepts>\n#include <span>\nint main() { return static_cast<int>(std::span<int>().size()); }\n",
    )
    if error:
        return Finding("C++ compiler", False, f"{path} cannot build C++20: {error}", _INSTALL_COMPILER)
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return Finding("C++ compiler", True, f"{version} ({path})")


@functools.cache
def check_libstdcxx(compiler: str) -> Finding:
    """Whether shared libraries link libstdc++ dynamically.

    A compiler that links it statically makes AOTInductor libraries that crash when they are loaded: ``std::regex`` then
    runs over two copies of the library's tables.
    """
    program = "#include <string>\nstd::string f(int x) { return std::to_string(x) + std::string(99, 'a'); }\n"
    error, library = _try_compile(compiler, program, "-shared", "-fPIC")
    if error:
        return Finding("libstdc++", False, f"{compiler} cannot build a shared library: {error}", _INSTALL_COMPILER)
    if _names_libstdcxx(library):
        return Finding("libstdc++", True, "linked dynamically")
    return Finding(
        "libstdc++",
        False,
        f"{compiler} links libstdc++ statically into shared libraries, which crash when loaded",
        "set CXX to the system's own compiler, e.g. export CXX=/usr/bin/g++",
    )


@functools.cache
def check_openmp(compiler: str) -> Finding:
    """Whether the compiler takes ``-fopenmp``, which all of Inductor's C++ is built with."""
    program = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n"
    error, _ = _try_compile(compiler, program, "-fopenmp")
    if error:
        return Finding(
            "OpenMP",
            False,
            f"{compiler} -fopenmp: {error}",
            "use g++, which has it; for clang, apt-get install libomp-dev or dnf install libomp-devel",
        )
    return Finding("OpenMP", True, "-fopenmp compiles and links")


def _try_compile(compiler: str, program: str, *flags: str) -> tuple[str, bytes]:
    """Compiles a small program as C++20.

    Returns:
        The start of the compiler's message, empty when it worked; and the file that it made.
    """
    with tempfile.TemporaryDirectory(prefix="torchcc-check-") as folder:
        source, output = Path(folder) / "check.cpp", Path(folder) / "check"
        source.write_text(program)
        command = [compiler, "-std=c++20", *flags, str(source), "-o", str(output)]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return str(error), b""
        if ran.returncode != 0 or not output.is_file():
            return ran.stderr.replace(folder + "/", "")[:300].strip() or f"it ended with status {ran.returncode}", b""
        return "", output.read_bytes()


def _names_libstdcxx(binary: bytes) -> bool:
    """Whether the dynamic section names libstdc++ or libc++ (read from the file's string table)."""
    return re.search(rb"\0lib(std)?c\+\+\.so\.\d", binary) is not None


def onednn() -> Path:
    """The folder with oneDNN's ``include`` and ``lib``: the Python environment's, or the system's.

    Raises:
        CompileError: There is none.
    """
    for folder in (Path(sys.prefix), Path("/usr/local"), Path("/usr")):
        if (folder / "include/dnnl.hpp").is_file():
            return folder
    raise CompileError(
        message(
            "oneDNN was not found",
            expected=f"include/dnnl.hpp in {sys.prefix}, /usr/local or /usr",
            got="none",
            fix="pip install 'torchcc[onednn]', or leave oneDNN out",
        )
    )


#: CPU features that code may need, by their name in GCC's ``__builtin_cpu_supports``; the runtime knows the same
#: (cpp/src/runtime/cpu.cpp). The compiler's macro is the name in upper case between double underscores.
CPU_FEATURES = (
    *("popcnt", "avx", "avx2", "fma", "bmi", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    *("avx512vnni", "avx512bf16", "avx512vbmi", "avx512vbmi2", "avx512ifma", "avx512bitalg", "avx512vpopcntdq"),
    *("gfni", "vpclmulqdq", "fma4", "xop", "sse4a", "amx-tile", "amx-int8", "amx-bf16"),
)


@functools.cache
def native_features(compiler: str) -> tuple[str, ...]:
    """The features of :data:`CPU_FEATURES` that ``-march=native`` lets the compiler use."""
    ran = subprocess.run(
        [compiler, "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"], capture_output=True, text=True, check=True
    )
    macros = set(ran.stdout.split())
    return tuple(feature for feature in CPU_FEATURES if f"__{feature.upper().replace('-', '_')}__" in macros)


def require_compiler() -> None:
    """Raises CompileError when there is no usable C++ compiler."""
    for finding in (check_compiler(cxx()), check_libstdcxx(cxx())):
        if not finding.good:
            raise CompileError(message(f"{finding.name}: {finding.detail}", fix=finding.fix))


def require_shared_libstdcxx(library: str) -> None:
    """Raises CompileError when a compiled library carries its own libstdc++."""
    if not _names_libstdcxx(Path(library).read_bytes()):
        raise CompileError(
            message(
                f"{library}: the compiled code carries its own libstdc++ and would crash when loaded",
                expected="a library that needs libstdc++.so.6",
                got=f"one linked statically by {cxx()}",
                fix="set CXX to the system's own compiler, e.g. export CXX=/usr/bin/g++",
            )
        )
