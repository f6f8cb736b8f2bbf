"""Standalone: C++ sources of functions that need no libtorch, for the user's own build.

A package becomes ``NAME.h`` and ``NAME.cpp``, which declare and define the same functions as with libtorch, over
:class:`torchcc::Tensor`; ``NAME.weights``, which the source embeds or the program maps; and ``NAME.flags``, what the
compiler has to be told.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchcc import _torch, generated, header, package, package_writer, paths, sizes, workers
from torchcc.errors import ArgumentError, CompileError, message, no_such
from torchcc.signature import Guard, Signature, Value

#: What ``weights`` may be.
WEIGHTS = ("embedded", "file")

#: Instruction sets by the bits of their vectors, as Inductor's ``cpp.simdlen`` has them.
SIMDLEN = {0: "scalar", 256: "avx2", 512: "avx512"}

_ALIGNMENT = 64
_MAX_RANK = 8  # Tensor::kMaxRank in C++
_STEPS = {"+": "add", "*": "mul", "//": "floordiv", "%": "mod", "max": "max", "min": "min", "**": "pow"}
_RELATIONS = {"==": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal"}
_SCALARS = {
    "uint8": "Byte",
    "int8": "Char",
    "int16": "Short",
    "int32": "Int",
    "int64": "Long",
    "uint16": "UInt16",
    "uint32": "UInt32",
    "uint64": "UInt64",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "float32": "Float",
    "float64": "Double",
    "bool": "Bool",
}

# Inductor's own flags for its kernels.
_FLAGS = (
    *("-O3", "-DNDEBUG", "-fno-trapping-math", "-fno-signed-zeros", "-fno-math-errno", "-ffp-contract=off"),
    *("-Wno-unused-variable", "-Wno-unknown-pragmas", "-Wno-unused-but-set-variable", "-Wno-unused-function"),
)
_VECTOR_FLAGS = ("-fno-tree-loop-vectorize",)  # the loops are vectors already, unless the code is scalar


@dataclass(frozen=True)
class Emitted:
    """The files of a package, and per function how its code was checked."""

    header: Path
    source: Path
    weights: Path
    flags: Path
    checks: Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """A function to generate: its graph, its documentation, and what its compilation takes.

    Attributes:
        function: With its graph.
        doc: For the header.
        options: Options of Inductor.
        imports: As :class:`torchcc.workers.Job` takes them.
    """

    function: package.Function
    doc: str = ""
    options: Mapping[str, Any] | None = None
    imports: tuple[str, ...] = ()


def check_weights(weights: str) -> None:
    """Raises ArgumentError unless it is one of :data:`WEIGHTS`."""
    if weights not in WEIGHTS:
        raise ArgumentError(no_such(f"weights cannot be '{weights}'", weights, WEIGHTS))


def isa_of(simdlen: int) -> str:
    """The instruction set whose vectors have so many bits.

    Raises:
        ArgumentError: There is none.
    """
    if simdlen not in SIMDLEN:
        known = [str(bits) for bits in SIMDLEN]
        raise ArgumentError(no_such(f"simdlen cannot be {simdlen}", str(simdlen), known, "choose one; 0 is no vectors"))
    return SIMDLEN[simdlen]


def check_libraries(libraries: Collection[str]) -> None:
    """Raises ArgumentError unless all are in :data:`torchcc.generated.LIBRARIES`."""
    for one in libraries:
        if one not in generated.LIBRARIES:
            raise ArgumentError(no_such(f"there is no library '{one}'", one, generated.LIBRARIES))


def emit(
    folder: Path,
    name: str,
    namespace: str,
    origins: Sequence[str],
    functions: Sequence[Source],
    *,
    weights: str = "embedded",
    isa: str = "",
    libraries: Collection[str] = (),
    march: str = "",
    log_folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
    check: Callable[[Emitted], Mapping[str, str]] | None = None,
) -> Emitted:
    """Generates the sources of a package.

    Args:
        folder: Where to write them; made if missing.
        name: The package's name, a C++ identifier.
        namespace: C++ namespace of the functions.
        origins: Names of the Python files, for the first line of the sources.
        functions: What to generate.
        weights: ``"embedded"`` into the program, or ``"file"``: the program gives them before the first call.
        isa: As in :func:`torchcc._torch.cpu_target`.
        libraries: Libraries of :data:`torchcc.generated.LIBRARIES` that the program may link.
        march: The compiler's ``-march``, which may be another machine's; by default the least that the code needs.
        log_folder: For the compiler's logs.
        progress: Called with a title, the steps done and the steps in all.
        check: Compares the sources with the graphs, and says how; it is given them in a temporary folder, before they
            are written where they belong.

    Raises:
        ArgumentError: A name cannot be used in C++.
        CompileError: Inductor failed, or a function needs operators that there are only in libtorch.
        OSError: The files cannot be written.
    """
    check_weights(weights)
    check_libraries(libraries)
    header.check_identifier(name, "package name")
    header.check_identifier(namespace, "namespace")
    for one in functions:
        header.check_identifier(one.function.signature.name, "function")
        _check_ranks(one.function.signature)
    tell = progress or (lambda title, done, total: None)
    with tempfile.TemporaryDirectory(prefix="torchcc-standalone-") as work:
        results = _generate(functions, Path(work), isa, log_folder, tell)
        blob = _Blob()
        described = []
        used: set[str] = set()
        includes: dict[str, None] = {}
        for one, result in zip(functions, results, strict=True):
            signature = one.function.signature
            code = generated.read(f"function {signature.name}", result.files, libraries)
            used |= code.libraries
            includes.update(dict.fromkeys(code.includes))
            described.append(_describe(one, code, blob, isa, result.exclusive))
        features = _target(isa)[2]
        content = blob.content()
        folder.mkdir(parents=True, exist_ok=True)
        weights_file = paths.write_whole(folder / f"{name}.weights", content)
        standalone = {
            "embedded": weights == "embedded",
            "weights_file": str(weights_file.resolve()),
            "weights_size": len(content),
            "weights_key": int.from_bytes(content[:8], "little"),
            "target": _target(isa)[0],
            "requires": _required_macros(features),
            "cpu_features": features,
            "includes": list(includes),
            "headers": [generated.LIBRARIES[one] for one in sorted(used)],
        }
        # With these they are checked here.
        flags_file = paths.write_whole(folder / f"{name}.flags", _flags(isa).encode())
        written = header.write(folder, name, namespace, origins, described, standalone)
    emitted = Emitted(*written, weights_file, flags_file, {})
    try:
        checks = check(emitted) if check else {}
    except Exception:
        for file in (*written, weights_file, flags_file):
            file.unlink(missing_ok=True)  # nobody shall build what is wrong
        raise
    if march:
        paths.write_whole(flags_file, _flags(isa, march).encode())
    return Emitted(*written, weights_file, flags_file, checks)


def _check_ranks(signature: Signature) -> None:
    for value in (*signature.inputs, *signature.outputs):
        if len(value.sizes) > _MAX_RANK or value.dtype not in _SCALARS:
            raise ArgumentError(
                message(
                    f"function {signature.name}: '{value.name}' cannot be standalone",
                    expected=f"at most {_MAX_RANK} dimensions, and one of {', '.join(_SCALARS)}",
                    got=value.type(),
                    fix="ship it with libtorch, or give it another form",
                )
            )


def _target(isa: str) -> tuple[str, str | None, tuple[str, ...]]:
    return _torch.cpu_target(isa)


def _required_macros(features: Sequence[str]) -> list[str]:
    """Macros of the compiler that say that it may use what the code needs."""
    return [f"__{one.upper()}__" for one in features if one in ("avx2", "fma", "avx512f", "avx512bw", "avx512vl")]


def _flags(isa: str, march: str = "") -> str:
    """The flags for the sources, as a line; without ``march``, with the least ``-march`` that they need."""
    if isa == "scalar":
        machine = [f"-march={march}"] if march else []
        return " ".join([*machine, *_FLAGS]) + "\n"
    _, own, features = _target(isa)
    return " ".join([f"-march={march or own or 'native'}", *_capability(features), *_FLAGS, *_VECTOR_FLAGS]) + "\n"


def _capability(features: Sequence[str]) -> list[str]:
    """PyTorch's headers have to be told which of their vectors to use."""
    if "avx512f" in features:
        beyond = [one for one in features if one in ("avx512vnni", "avx512bf16") or one.startswith("amx")]
        return ["-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512", *(f"-m{one}" for one in beyond)]
    return ["-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2"] if "avx2" in features else []


def _generate(
    functions: Sequence[Source],
    work: Path,
    isa: str,
    log_folder: Path,
    tell: Callable[[str, int, int], None],
) -> list[workers.Result]:
    jobs = []
    for position, one in enumerate(functions):
        program = one.function.program
        assert program is not None
        saved = work / f"{position}.pt2"
        with package_writer.storing([one.function.signature.name]):
            _torch.save(_torch.without_own_containers(program), saved)
        jobs.append(
            workers.Job(
                title=f"function {one.function.signature.name}, standalone",
                program=str(saved),
                into_outputs=False,
                options=dict(one.options or {}),
                imports=one.imports,
                log=str(log_folder / f"{one.function.signature.name}-standalone.log"),
                weights=states(one.function),
                isa=isa,
                sources=str(work / f"{position}-sources"),
            )
        )
    done = [0]

    def finished(job: workers.Job, result: workers.Result) -> None:
        done[0] += 1
        tell(f"generated {job.title} in {result.seconds:.0f} s", done[0], len(jobs))

    tell("generating", 0, len(jobs))
    # A cache of its own: what Inductor finds there was made with the same settings.
    own_cache = {"TORCHINDUCTOR_CACHE_DIR": str(paths.cache_dir() / "inductor-standalone")}
    return workers.compile_all(jobs, finished, environment=own_cache)


def states(function: package.Function) -> tuple[str, ...]:
    """Buffers that the graph writes into: inputs of the code, which the runtime keeps."""
    assert function.program is not None
    _, written = _torch.mutations(function.program)
    return tuple(sorted(written))


class _Blob:
    """The file of weights: its key, and every weight once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = _ALIGNMENT  # the key's
        self._known: dict[bytes, int] = {}

    def add(self, content: bytes) -> int:
        """Where the content is in the file."""
        digest = hashlib.sha256(content).digest()
        if digest not in self._known:
            padded = content + bytes(-len(content) % _ALIGNMENT)
            self._known[digest] = self._size
            self._parts.append(padded)
            self._size += len(padded)
        return self._known[digest]

    def content(self) -> bytes:
        body = b"".join(self._parts)
        return hashlib.sha256(body).digest()[:8] + bytes(_ALIGNMENT - 8) + body


def _describe(one: Source, code: generated.Code, blob: _Blob, isa: str, exclusive: bool) -> dict[str, Any]:
    """What the templates take of a function."""
    signature, program = one.function.signature, one.function.program
    assert program is not None
    tables: list[str] = []
    constants = []
    for constant in code.constants:
        content = code.weights[constant.start : constant.start + constant.size]
        position = blob.add(content) + constant.offset * _element_size(constant.dtype)
        constants.append(
            _tensor_table(tables, constant.name, constant.dtype, position, constant.sizes, constant.strides)
        )
    held = _torch.weights(program)
    kept = []
    for name in states(one.function):
        tensor = held[name].detach().contiguous()
        position = blob.add(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        dtype = str(tensor.dtype).removeprefix("torch.")
        kept.append(_tensor_table(tables, name, dtype, position, tuple(tensor.shape), tensor.stride()))
    entries = {
        "inputs": ("ValueTable", [_value_table(tables, signature, value) for value in signature.inputs]),
        "outputs": ("ValueTable", [_value_table(tables, signature, value) for value in signature.outputs]),
        "symbols": (
            "SymbolTable",
            [f'{{"{s.name}", {s.minimum}, {_limit(s.maximum, "INT64_MAX")}}}' for s in signature.symbols],
        ),
        "guards": ("GuardTable", [_guard_table(tables, signature, guard) for guard in signature.guards]),
        "constants": ("ConstantTable", constants),
        "states": ("ConstantTable", kept),
    }
    lines = list(tables)
    for title, (kind, rows) in entries.items():
        lines.append(_array(title, kind, rows))
    lines.append(
        f'constexpr FunctionTable table{{"{signature.name}", "standalone {_target(isa)[0]}", inputs, outputs, symbols, '
        f"guards, constants, states, run, {str(exclusive).lower()}}};"
    )
    known = all(size is not None for value in signature.outputs for size in value.sizes)
    return {
        "signature": signature,
        "doc": one.doc,
        "out": known,
        "gradients": [],
        "code": code.body,
        "tables": "\n".join(lines),
    }


def _array(name: str, kind: str, rows: Sequence[str]) -> str:
    joined = ",\n    ".join(rows)
    return (
        f"constexpr std::array<{kind}, {len(rows)}> {name}{{{{{joined}}}}};"
        if rows
        else (f"constexpr std::array<{kind}, 0> {name}{{}};")
    )


def _numbers(tables: list[str], values: Sequence[int]) -> str:
    """The name of an array with these numbers."""
    name = f"numbers_{len(tables)}"
    tables.append(_array(name, "int64_t", [str(one) for one in values]))
    return name


def _tensor_table(
    tables: list[str], name: str, dtype: str, position: int, shape: Sequence[int], strides: Sequence[int]
) -> str:
    if len(shape) > _MAX_RANK or dtype not in _SCALARS:
        raise CompileError(
            message(
                f"the weight '{name}' cannot be standalone",
                expected=f"at most {_MAX_RANK} dimensions, and one of {', '.join(_SCALARS)}",
                got=f"{dtype} of {len(shape)} dimensions",
                fix="ship it with libtorch",
            )
        )
    own_sizes, own_strides = _numbers(tables, shape), _numbers(tables, strides)
    return f'{{"{name}", ScalarType::{_SCALARS[dtype]}, {position}, {own_sizes}, {own_strides}}}'


def _element_size(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)


def _limit(value: int | None, default: str) -> str:
    if value is None:
        return default
    return "INT64_MIN" if value == -(2**63) else f"{value}"


def _value_table(tables: list[str], signature: Signature, value: Value) -> str:
    rows = [_size_table(tables, signature, size) for size in value.sizes]
    name = f"sizes_{len(tables)}"
    tables.append(_array(name, "SizeTable", rows))
    return (
        f'{{"{value.name}", ScalarType::{_SCALARS[value.dtype]}, {name}, {str(value.number).lower()}, '
        f"{_limit(value.minimum, 'INT64_MIN')}, {_limit(value.maximum, 'INT64_MAX')}, {str(value.mutated).lower()}}}"
    )


def _size_table(tables: list[str], signature: Signature, size: sizes.Size) -> str:
    symbols = [symbol.name for symbol in signature.symbols]
    name = f"steps_{len(tables)}"
    rows = [f"SizeStep{{SizeStep::Kind::{kind}, {number}}}" for kind, number in steps(size, symbols)]
    tables.append(_array(name, "SizeStep", rows))
    return f'{{"{sizes.text(size)}", {name}}}'


def _guard_table(tables: list[str], signature: Signature, guard: Guard) -> str:
    left, right = (_size_table(tables, signature, size) for size in (guard.left, guard.right))
    return f'{{"{guard.text()}", SizeGuard::Kind::{_RELATIONS[guard.relation]}, {left}, {right}}}'


def steps(size: sizes.Size, symbols: Sequence[str]) -> list[tuple[str, int]]:
    """A size in postfix order, as C++ evaluates it: kinds of steps, and their numbers or positions of symbols."""
    if size is None:
        return []
    if isinstance(size, int):
        return [("number", size)]
    if isinstance(size, str):
        return [("symbol", symbols.index(size))]
    kind = _STEPS[str(size[0])]
    found = steps(size[1], symbols)
    for operand in size[2:]:
        found += [*steps(operand, symbols), (kind, 0)]
    return found
