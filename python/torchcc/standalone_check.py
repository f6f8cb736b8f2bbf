"""Builds standalone sources on this machine, and runs them, so that they can be compared with their graphs."""

from __future__ import annotations

import contextlib
import ctypes
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from torchcc import native, paths, toolchain
from torchcc.agreement import Run
from torchcc.errors import CompileError, message
from torchcc.signature import Signature
from torchcc.standalone import Emitted

# Called from Python: tensors go both ways through DLPack, which both sides share memory by.
_GLUE = """
#include <exception>
#include <string>
#include <vector>

#include "{name}.h"
#include <torchcc/function.h>

namespace {{
thread_local std::string reason;

template <class Work>
const char* guarded(const Work& work) {{
  try {{
    work();
    return nullptr;
  }} catch (const std::exception& error) {{
    reason = error.what();
    return reason.c_str();
  }}
}}
}}

extern "C" [[gnu::visibility("default")]] const char* torchcc_load(const char* weights) {{
  return guarded([&] {{ {load}; }});
}}

extern "C" [[gnu::visibility("default")]] const char* torchcc_call(const char* name, DLManagedTensor** inputs,
    size_t input_count, DLManagedTensor** outputs, size_t output_count) {{
  return guarded([&] {{
    std::vector<torchcc::Tensor> tensors;
    for (size_t i = 0; i < input_count; ++i) tensors.push_back(torchcc::from_dlpack(inputs[i]));
    const std::vector<torchcc::Argument> arguments(tensors.begin(), tensors.end());
    std::vector<torchcc::Tensor> results(output_count);
    {namespace}::{name}_package()[name].call_into(results, arguments);
    for (size_t i = 0; i < output_count; ++i) outputs[i] = torchcc::to_dlpack(results[i]);
  }});
}}

extern "C" [[gnu::visibility("default")]] const char* torchcc_state(const char* name, size_t position,
    DLManagedTensor** state) {{
  return guarded([&] {{
    *state = torchcc::to_dlpack({namespace}::{name}_package()[name].weights()[position].second);
  }});
}}
"""


class Program:
    """The functions of a package that was built."""

    def __init__(self, library: Path, weights: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("torchcc_load", "torchcc_call", "torchcc_state"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._check(self._library.torchcc_load(str(weights).encode()))

    def run(self, signature: Signature) -> Run:
        """What runs a function: takes its arguments, and then its states, which it changes in place."""

        def call(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            count = len(signature.inputs)
            states = [self._state(signature.name, position) for position in range(len(tensors) - count)]
            for own, given in zip(states, tensors[count:], strict=True):
                own.copy_(given)
            inputs = (ctypes.c_void_p * count)(*map(_to_dlpack, tensors[:count]))
            outputs = (ctypes.c_void_p * len(signature.outputs))()
            self._check(
                self._library.torchcc_call(
                    signature.name.encode(), inputs, ctypes.c_size_t(count), outputs, ctypes.c_size_t(len(outputs))
                )
            )
            for own, given in zip(states, tensors[count:], strict=True):
                given.copy_(own)
            return [_from_dlpack(one) for one in outputs]

        return call

    def _state(self, name: str, position: int) -> torch.Tensor:
        state = ctypes.c_void_p()
        self._check(self._library.torchcc_state(name.encode(), ctypes.c_size_t(position), ctypes.byref(state)))
        return _from_dlpack(state.value)

    @staticmethod
    def _check(reason: bytes | None) -> None:
        if reason is not None:
            raise CompileError(f"the sources were built here, and do not run: {reason.decode()}")


def _to_dlpack(tensor: torch.Tensor) -> int:
    """A pointer for C++, which owns it from here on."""
    capsule = tensor.detach().contiguous().__dlpack__()
    get, rename = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_SetName
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer = get(capsule, b"dltensor")
    rename(capsule, _USED)
    return int(pointer or 0)


def _from_dlpack(pointer: int | None) -> torch.Tensor:
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(make(pointer, _NEW, None))
    return tensor


# A capsule keeps the pointer to its name.
_NEW = b"dltensor"
_USED = b"used_dltensor"


@contextlib.contextmanager
def built(emitted: Emitted, namespace: str) -> Iterator[Program]:
    """Builds the sources of a package with this machine's compiler.

    Raises:
        CompileError: They cannot be built, or do not run here.
    """
    toolchain.require_compiler()
    name = emitted.source.stem
    embedded = "_begin[]" in emitted.source.read_text()
    with tempfile.TemporaryDirectory(prefix="torchcc-standalone-") as work:
        folder = Path(work)
        glue, library = folder / "glue.cpp", folder / "library.so"
        load = f"{namespace}::{name}_package({'' if embedded else 'weights'})"
        glue.write_text(_GLUE.format(name=name, namespace=namespace, load=load))
        compiler = shutil.which(toolchain.cxx()) or toolchain.cxx()
        used = _libraries(emitted)
        kernels = [*flags(emitted), *_vector_math(compiler), "-c", str(emitted.source), "-o", str(folder / "kernels.o")]
        _run([compiler, *kernels], "the kernels")
        mvec = ["-lmvec"] if _vector_math(compiler) else []
        linked = [str(glue), str(folder / "kernels.o"), *used, str(native.standalone_library()), *mvec]
        common = [compiler, "-O1", "-shared", "-fPIC", "-fopenmp", *native.standalone_flags()]
        _run([*common, f"-I{emitted.header.parent}", *linked, "-o", str(library)], "the library")
        yield Program(library, emitted.weights)


def flags(emitted: Emitted) -> list[str]:
    """Compiler flags for the source of a package, with OpenMP."""
    torch_include = Path(torch.__file__).parent / "include"
    compat = paths.cpp_dir() / "include/torchcc/standalone/compat"
    return [
        *(f"-I{compat}", *native.standalone_flags(), f"-I{emitted.header.parent}", f"-I{torch_include}"),
        *("-fPIC", "-fvisibility=hidden", "-w", "-fopenmp"),
        *shlex.split(emitted.flags.read_text()),
    ]


def _libraries(emitted: Emitted) -> list[str]:
    """What stands in for libtorch's operators: our source, and the library's own flags."""
    if "<torchcc/standalone/onednn.h>" not in emitted.source.read_text():
        return []
    place = toolchain.onednn()
    sources = paths.cpp_dir() / "src"
    return [
        *(str(sources / "standalone/onednn.cpp"), f"-I{sources / 'standalone'}", f"-I{sources / 'runtime'}"),
        *(f"-I{place / 'include'}", f"-L{place / 'lib'}", f"-Wl,-rpath,{place / 'lib'}", "-ldnnl"),
    ]


def _vector_math(compiler: str) -> list[str]:
    """Glibc's vector functions, where this compiler links them."""
    program = "int main() { return 0; }"
    done = subprocess.run(
        [compiler, "-x", "c++", "-", "-lmvec", "-o", "/dev/null"],
        input=program,
        text=True,
        capture_output=True,
        check=False,
    )
    return ["-DTORCHCC_LIBMVEC"] if done.returncode == 0 else []


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(
            message(
                f"{what} of standalone sources cannot be built",
                got="\n".join(done.stderr.splitlines()[:20]),
                fix="run `torchcc doctor`; if the generated code is at fault, report it",
            )
        )
