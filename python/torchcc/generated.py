"""Reads the C++ that Inductor writes for a program without libtorch, and takes out what such a program compiles."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchcc import paths
from torchcc.errors import CompileError, message


@dataclass(frozen=True)
class Constant:
    """A weight of the generated code.

    Attributes:
        name: As the code calls it.
        dtype: PyTorch's name of its dtype.
        start: Where its memory begins among the code's weights, in bytes.
        size: Bytes of that memory.
        offset: Where it begins in that memory, in elements.
        sizes, strides: In elements.
    """

    name: str
    dtype: str
    start: int
    size: int
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Code:
    """What a program without libtorch compiles of one function.

    Attributes:
        body: The C++: kernels and ``run()``, to be put into a namespace.
        constants: Its weights.
        weights: Their bytes.
        libraries: Libraries of :data:`LIBRARIES` that it calls.
        includes: PyTorch's headers that its kernels need, as lines.
    """

    body: str
    constants: tuple[Constant, ...]
    weights: bytes
    libraries: frozenset[str]
    includes: tuple[str, ...]


#: Libraries that stand in for libtorch's operators, and the header in torchcc/standalone that says which.
LIBRARIES = {"onednn": "onednn.h"}


def read(title: str, files: Sequence[str], libraries: Collection[str] = ()) -> Code:
    """Reads what :func:`torchcc._torch.generate` left.

    Args:
        title: For messages: ``function forward``.
        files: Its files.
        libraries: Those of :data:`LIBRARIES` that the program may link.

    Raises:
        CompileError: The code needs operators that there are only in libtorch.
    """
    (source,) = [Path(file) for file in files if file.endswith(".cpp")]
    text = re.sub(r"^// (?:Compile|Link) cmd\n//.*\n?", "", source.read_text(), flags=re.MULTILINE)
    before, run, kernels = _parts(text)
    function, constants = _without_unused(_run(run), _constants(before))
    body = "\n".join([*_declarations(before), function, _kernels(kernels)])
    used = frozenset(one for one in libraries if _called(body) & _declared(LIBRARIES[one]) - _declared("generated.h"))
    missing = _missing(body, files, libraries)
    if missing:
        could = [one for one in LIBRARIES if not _missing(body, files, [*libraries, one])]
        raise CompileError(
            message(
                f"{title}: standalone code cannot have all of its operators",
                expected="operators that Inductor generates code for",
                got=", ".join(missing),
                fix="ship it with libtorch (targets native or portable), or write these operators otherwise"
                + "".join(f", or take them from a library: {one}" for one in could),
            )
        )
    blobs = [Path(file) for file in files if file.endswith(".blob")]
    includes = tuple(dict.fromkeys(re.findall(r"^#include .*$", kernels, re.MULTILINE)))
    return Code(body, constants, blobs[0].read_bytes() if blobs else b"", used, includes)


def _parts(text: str) -> tuple[str, str, str]:
    """What is before the function that runs, its body, and the kernels."""
    found = re.search(r"^void \w+::run_impl\([^{]*\{\n(.*?)^\} // \w+::run_impl$", text, re.MULTILINE | re.DOTALL)
    kernels = re.search(r"^#include <torch/csrc/inductor/cpp_prefix\.h>$", text, re.MULTILINE)
    if found is None:
        raise CompileError(
            message(
                "the code that Inductor wrote is not understood",
                expected="a function run_impl",
                got="none",
                fix="report it, with the version of torch",
            )
        )
    return text[: found.start()], found[1], text[kernels.start() :] if kernels else ""


def _declarations(before: str) -> list[str]:
    """Constants and kernels that the function names."""
    cached = re.findall(r"^CACHE_TORCH_\w+\(\w+\);$", before, re.MULTILINE)
    kernels = re.findall(r'^extern "C"\s+(void\s+\w+\([^;{]*\);)', before, re.MULTILINE)
    return [*cached, *(f"static {one}" for one in kernels)]


def _run(body: str) -> str:
    """The function that runs, without the class that it was a member of."""
    lines = [
        line
        for line in body.splitlines()
        if "__check_inputs_outputs(" not in line
        and "this->kernels_" not in line
        and "assert_size_stride(arg" not in line
    ]
    text = "\n".join(lines).replace("this->device_idx_", "0")
    # What another library gives has to have the layout that the code goes on with.
    text = re.sub(r"if \(_check_aoti_runtime_check_inputs_env\(\)\) \{ (assert_size_stride\(.*?\);) \}", r"\1", text)
    text = re.sub(r"auto& (\w+) = constants_->at\((\d+)\);", r"const auto \1 = torchcc_constants.at(\2);", text)
    return (
        "static void run(\n"
        "    AtenTensorHandle* input_handles, AtenTensorHandle* output_handles, const Tensor* torchcc_weights) {\n"
        f"    [[maybe_unused]] const Constants torchcc_constants(torchcc_weights);\n{text}\n}}"
    )


def _without_unused(run: str, constants: Sequence[Constant]) -> tuple[str, tuple[Constant, ...]]:
    """Leaves out weights that the code names but does not use: it has them in another form, packed for its products."""
    kept: list[Constant] = []
    lines = []
    for line in run.splitlines():
        found = re.search(r"const auto (\w+) = torchcc_constants\.at\((\d+)\);", line)
        if found is None:
            lines.append(line)
        elif len(re.findall(rf"\b{found[1]}\b", run)) > 1:
            lines.append(line.replace(f".at({found[2]})", f".at({len(kept)})"))
            kept.append(constants[int(found[2])])
    return "\n".join(lines), tuple(kept)


def _kernels(text: str) -> str:
    """The kernels, of which no other source of the program shall see anything."""
    text = re.sub(r"^#include .*$\n?", "", text, flags=re.MULTILINE)
    # Buffers of a kernel's own come from the thread's store too.
    text = re.sub(r"std::make_unique<([\w:]+) ?\[\]>\(", r"make_scratch<\1>(", text)
    text = re.sub(r"std::unique_ptr<([\w:]+) ?\[\]>", r"Scratch<\1>", text)
    return re.sub(r'extern "C"\s+', "static ", text).strip()


def _declared(header: str) -> set[str]:
    """The functions that a header of the runtime has."""
    text = (paths.cpp_dir() / "include/torchcc/standalone" / header).read_text()
    return set(re.findall(r"\baoti_torch_\w+", text)) | {
        f"aoti_torch_{kind}_{name}"
        for name in re.findall(r"TORCHCC_(?:ITEM|DTYPE)\((\w+),", text)
        for kind in ("item", "scalar_to_tensor", "dtype")
    }


def _called(body: str) -> set[str]:
    return set(re.findall(r"\baoti_torch_\w+(?=\()", body))


def _missing(body: str, files: Sequence[str], libraries: Collection[str]) -> list[str]:
    """Names of the operators that neither the runtime has nor these libraries."""
    known = set().union(*map(_declared, ["generated.h", *(LIBRARIES[one] for one in libraries)]))
    missing = []
    for name in dict.fromkeys(re.findall(r"\baoti_torch_\w+(?=\()", body)):
        if name == "aoti_torch_proxy_executor_call_function":
            missing += _without_entry_point(files)
        elif name not in known:
            missing.append("aten." + re.sub(r"^aoti_torch_(?:cpu_)?|_out$", "", name))
    return list(dict.fromkeys(missing))


def _without_entry_point(files: Sequence[str]) -> list[str]:
    """Operators that libtorch calls through its dispatcher."""
    (file,) = [Path(file) for file in files if file.endswith(".json")]
    nodes = json.loads(file.read_text())["nodes"]
    return [str(node["node"]["target"]).removeprefix("torch.ops.") for node in nodes]


def _constants(before: str) -> tuple[Constant, ...]:
    """The table of weights, which Inductor writes as assignments."""
    found: dict[int, dict[str, str]] = {}
    for position, field, value in re.findall(r"constants_info_\[(\d+)\]\.(\w+) = (.*);$", before, re.MULTILINE):
        found.setdefault(int(position), {})[field] = value
    start = 0
    constants = []
    for _, fields in sorted(found.items()):
        constants.append(_constant(fields, start))
        start += int(fields["data_size"])
    return tuple(constants)


def _constant(fields: Mapping[str, str], start: int) -> Constant:
    def numbers(field: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", fields[field])))

    return Constant(
        name=fields["name"].strip('"'),
        dtype=re.sub(r"^cached_torch_dtype_|^aoti_torch_dtype_|\(\)$", "", fields["dtype"]),
        start=start,
        size=int(fields["data_size"]),
        offset=int(fields["offset"]),
        sizes=numbers("shape"),
        strides=numbers("stride"),
    )
