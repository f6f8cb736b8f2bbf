"""Models for phones: ``.pte`` files by ExecuTorch, whose kernels are XNNPACK's where that has them.

A file holds its signatures as JSON, under the method :data:`SIGNATURES`, so that names of functions, arguments and
results are known where it is run.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from torchcc import _torch, agreement, package, paths, sizes
from torchcc.errors import ArgumentError, CompileError, PackageError, message, reason
from torchcc.signature import Signature, Value

#: The name of the target.
TARGET = "mobile"

#: The method of a file that gives the signatures of the others.
SIGNATURES = "torchcc_signatures"

_LEAST = (1, 5)  # its wheel is the first with C++ headers, libraries and a CMake package
_INSTALL = "pip install 'torchcc[mobile]'"


@dataclass(frozen=True)
class Written:
    """A file that was written, and per function how its code was checked."""

    file: Path
    checks: Mapping[str, str]


def require() -> None:
    """Raises CompileError unless ExecuTorch is installed, in a version that works."""
    expected = f"the Python package executorch, {'.'.join(map(str, _LEAST))} or later"
    try:
        version = importlib.metadata.version("executorch")
    except importlib.metadata.PackageNotFoundError:
        raise CompileError(message("ExecuTorch was not found", expected=expected, got="none", fix=_INSTALL)) from None
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _LEAST:
        raise CompileError(message("this ExecuTorch is too old", expected=expected, got=version, fix=_INSTALL))


def write(
    file: Path,
    functions: Sequence[package.Function],
    progress: Callable[[str, int, int], None] | None = None,
) -> Written:
    """Writes functions into a ``.pte`` file, once its results were compared with those of the graphs.

    Args:
        file: Where to write.
        functions: With their graphs.
        progress: Called with a title, the steps done and the steps in all.

    Raises:
        ArgumentError: ExecuTorch cannot call a function of this form.
        CompileError: ExecuTorch is missing, cannot translate a function, or gives other results.
        OSError: The file cannot be written.
    """
    require()
    tell = progress or (lambda title, done, total: None)
    for function in functions:
        _check_form(function)
    tell("translating for ExecuTorch", 0, len(functions) + 1)
    content = _translated(functions)
    checks = {}
    for position, function in enumerate(functions):
        tell(f"comparing {function.signature.name}", position + 1, len(functions) + 1)
        name = function.signature.name
        checks[f"{name}, {TARGET}"] = agreement.compare(function, _fresh(content, name), ())
        if _written_buffers(function):
            _compare_steps(function, _Method(content, name))
    paths.write_whole(file, content)
    return Written(file, checks)


def signatures(file: Path) -> dict[str, Signature]:
    """Signatures of a file's functions by name.

    Raises:
        CompileError: ExecuTorch is missing.
        PackageError: The file is missing or damaged, or torchcc did not write it.
    """
    require()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise PackageError(message(f"{file}: it cannot be read", got=str(error), fix="check the path")) from error
    try:
        (text,) = _Method(content, SIGNATURES)([])
        entries = json.loads(text)
    except Exception as error:
        raise PackageError(
            message(
                f"{file}: no file of torchcc's for ExecuTorch",
                expected=f"a .pte file with a method {SIGNATURES}",
                got=reason(error),
                fix="export the model with --target mobile",
            )
        ) from error
    known = [Signature.from_json(entry) for entry in entries]
    return {one.name: one for one in known}


def run(
    file: Path, signature: Signature, tensors: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], Mapping[str, Any]]:
    """Calls a function of a file in ExecuTorch's runtime.

    Args:
        file: The ``.pte`` file.
        signature: Of the function.
        tensors: One for each input.

    Returns:
        One tensor for each output, and what ``torchcc run`` reports.

    Raises:
        ArgumentError: The tensors do not fit the signature.
        PackageError: ExecuTorch cannot run the function.
    """
    check_inputs(signature, tensors)
    start = time.monotonic()
    try:
        method = _Method(file.read_bytes(), signature.name)
        loaded = time.monotonic() - start
        results = method([tensor.contiguous() for tensor in tensors])
    except (OSError, RuntimeError) as error:
        raise PackageError(
            message(f"{file}: ExecuTorch cannot run '{signature.name}'", got=reason(error), fix="export it again")
        ) from error
    report = {"backend": "executorch", "target": "xnnpack", "load_seconds": loaded}
    return results, {**report, "reasons": [], "portable_calls": 0, "portable_reason": ""}


def check_inputs(signature: Signature, tensors: Sequence[torch.Tensor]) -> None:
    """Raises ArgumentError unless the tensors fit: ExecuTorch itself would name no argument."""
    values: dict[str, int] = {}
    for value, tensor in zip(signature.inputs, tensors, strict=True):
        fits = str(tensor.dtype) == f"torch.{value.dtype}" and tensor.dim() == len(value.sizes)
        for size, got in zip(value.sizes, tensor.shape, strict=False):
            if isinstance(size, str):
                fits = fits and values.setdefault(size, got) == got
        if not fits:
            _refuse(signature, value, tensor)
    for value, tensor in zip(signature.inputs, tensors, strict=True):
        if [sizes.evaluate(size, values) for size in value.sizes] != list(tensor.shape):
            _refuse(signature, value, tensor)
    for symbol in signature.symbols:
        got = values.get(symbol.name, symbol.minimum)
        if symbol.clamp(got) != got:
            raise ArgumentError(
                message(
                    f"{signature.name}: a size is out of range",
                    signature=str(signature),
                    expected=symbol.text(),
                    got=f"{symbol.name} = {got}",
                    fix="pass other sizes, or export it with a wider range",
                )
            )


def _refuse(signature: Signature, value: Value, tensor: torch.Tensor) -> NoReturn:
    raise ArgumentError(
        message(
            f"{signature.name}: argument '{value.name}' does not fit",
            signature=str(signature),
            expected=value.type(),
            got=f"{str(tensor.dtype).removeprefix('torch.')} of sizes {list(tensor.shape)}",
            fix="convert it, or pass sizes that agree",
        )
    )


class _Method:
    """A method of a file, with state of its own."""

    def __init__(self, content: bytes, name: str) -> None:
        with _quiet():
            from executorch.runtime import Runtime

            self._program = Runtime.get().load_program(content)
            if name not in self._program.method_names:
                raise ValueError(f"no method {name}")
            self._method: Any = self._program.load_method(name)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        with _quiet():
            # The results are memory of the method's, which the next call writes into.
            return [
                one.clone() if isinstance(one, torch.Tensor) else one for one in self._method.execute(list(tensors))
            ]


def _fresh(content: bytes, name: str) -> agreement.Run:
    """Calls of a method, each of which begins with the state that the file has."""
    return lambda tensors: _Method(content, name)(tensors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ExecuTorch warns of what is experimental, and of kernels of torchao for other versions of PyTorch."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check_form(function: package.Function) -> None:
    """Raises ArgumentError for what ExecuTorch cannot call, or not without surprises."""
    signature, program = function.signature, function.program
    assert program is not None

    def refuse(subject: str, expected: str, got: str, fix: str) -> NoReturn:
        raise ArgumentError(message(f"function {signature.name}: {subject}", expected=expected, got=got, fix=fix))

    for value in signature.inputs:
        if value.number or value.mutated:
            got = "a number" if value.number else "one that the function writes into"
            fix = "pass it as a tensor" if value.number else "give the new value as a result"
            refuse(f"argument '{value.name}' is none that {TARGET} can have", "a tensor that is only read", got, fix)
    inputs, results = _torch.leaf_names(program)
    if len(inputs) != len(signature.inputs) or len(results) != len(signature.outputs):
        others = sorted({*inputs, *results} - {value.name for value in (*signature.inputs, *signature.outputs)})
        refuse(
            "not all of its arguments and results are tensors",
            "tensors alone, and containers of them",
            ", ".join(others),
            "leave the others out, or set them in the module",
        )
    for symbol in signature.symbols:
        if symbol.maximum is None:
            refuse(
                f"the size '{symbol.name}' has no largest value, and ExecuTorch plans memory ahead",
                "a range with two ends",
                symbol.text(),
                f'give one: ranges={{"{symbol.name}": ({symbol.minimum}, 64)}}, for instance',
            )


def _translated(functions: Sequence[package.Function]) -> bytes:
    description = json.dumps([function.signature.to_json() for function in functions])
    with _quiet():  # The originals are compared with it; it may change what it is given.
        programs = {function.signature.name: copy.deepcopy(function.program) for function in functions}
    try:
        # Parameters that require grad make ExecuTorch's passes fail where a buffer is written into.
        with _quiet(), torch.no_grad():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
            from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass

            edge = to_edge_transform_and_lower(
                programs, partitioner=[XnnpackPartitioner()], constant_methods={SIGNATURES: description}
            )
            # Without, buffers that are written into begin with whatever is in memory. An empty pattern fits every name.
            passes = [InitializedMutableBufferPass([""])]
            return bytes(edge.to_executorch(ExecutorchBackendConfig(passes=passes)).buffer)
    except Exception as error:
        names = ", ".join(programs)
        raise CompileError(
            message(
                f"ExecuTorch cannot translate {names}",
                expected="operators and sizes that it has",
                got=reason(error),
                fix="ship it with libtorch (targets native or portable), or standalone",
            )
        ) from error


def _written_buffers(function: package.Function) -> frozenset[str]:
    assert function.program is not None
    return _torch.mutations(function.program)[1]


def _compare_steps(function: package.Function, method: _Method) -> None:
    """Compares three calls one after the other, each of which finds what the one before left in the buffers."""
    program = function.program
    assert program is not None
    with _quiet():
        run = _torch.as_function(copy.deepcopy(program))
    values = next(iter(agreement.size_sets(function)))
    for step in range(3):
        leaves = agreement.inputs(function, values, torch.Generator().manual_seed(step))
        got = method([one.clone() for one in agreement.tensors(function, leaves)])
        wanted = agreement.as_tensors(run(leaves))
        for value, one, other in zip(function.signature.outputs, got, wanted, strict=True):
            if not agreement.close(one, other):
                raise CompileError(
                    message(
                        f"function {function.signature.name}: ExecuTorch's call {step + 1} differs from the graph's",
                        expected=f"an equal output '{value.name}'",
                        got="another",
                        fix="ship it with libtorch (targets native or portable), or standalone",
                    )
                )
