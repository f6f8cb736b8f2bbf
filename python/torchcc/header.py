"""Writes the C++ that belongs to a package: a header with one typed function per region, and its implementation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from torchcc import paths, sizes
from torchcc._version import __version__
from torchcc.errors import ArgumentError, message
from torchcc.signature import Signature, Value

_CPP_KEYWORDS_TEXT = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class
co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype default
delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long
mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register
reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template this
thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor
xor_eq
"""
_CPP_KEYWORDS = frozenset(_CPP_KEYWORDS_TEXT.split())
_NAMESPACES = frozenset({"at", "std", "torchcc"})


def check_identifier(name: str, what: str) -> None:
    """Raises ArgumentError unless C++ takes ``name`` as an identifier (or as nested namespaces joined by ``::``)."""
    parts = name.split("::") if what == "namespace" else [name]
    if all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part) and part not in _CPP_KEYWORDS for part in parts):
        return
    raise ArgumentError(
        message(
            f"the {what} '{name}' cannot be used in C++",
            expected="a C++ identifier that is not a keyword",
            got=name,
            fix="choose another name" + (', e.g. torchcc.region(name="...")' if what == "region" else ""),
        )
    )


def _parameter_name(value: Value, taken: Sequence[str]) -> str:
    """The argument's name, with an underscore where C++ or the generated code needs the name, or an output has it."""
    name = value.name
    while name in _CPP_KEYWORDS or name in _NAMESPACES or name in taken:
        name += "_"
    return name


def _parameters(signature: Signature, tensor: str, with_outputs: bool) -> str:
    outputs = [_parameter_name(value, ()) for value in signature.outputs] if with_outputs else []
    parts = [f"{tensor}& {name}" for name in outputs]
    for value in signature.inputs:
        kind = f"{value.type()} " if value.number else f"const {tensor}& "
        parts.append(kind + _parameter_name(value, outputs))
    return ", ".join(parts)


def _arguments(signature: Signature, with_outputs: bool) -> str:
    outputs = [_parameter_name(value, ()) for value in signature.outputs] if with_outputs else []
    return ", ".join(_parameter_name(value, outputs) for value in signature.inputs)


def _returns(signature: Signature, tensor: str) -> str:
    if len(signature.outputs) == 1:
        return tensor
    return f"std::tuple<{', '.join([tensor] * len(signature.outputs))}>"


def _table(values: Sequence[Value]) -> list[str]:
    """Lines "name  type  notes" with aligned columns."""
    rows = []
    for value in values:
        notes = [] if value.number or value.device != "cpu" else [value.device]  # of others, the type says it
        if value.minimum is not None or value.maximum is not None:
            low = "" if value.minimum is None else f"{value.minimum} <= "
            high = "" if value.maximum is None else f" <= {value.maximum}"
            notes.append(low + value.name + high)
        if value.mutated:
            notes.append("written to")
        rows.append((value.name, value.type(), ", ".join(notes)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)] if rows else [0, 0]
    return [f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {notes}".rstrip() for name, kind, notes in rows]


def _comment(line: str) -> str:
    """A line for a ``//`` comment, which a backslash at the end would extend to the next line."""
    return line.rstrip() + ("." if line.rstrip().endswith("\\") else "")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("torchcc"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(
        parameters=_parameters,
        arguments=_arguments,
        returns=_returns,
        table=_table,
        comment=_comment,
        escape=_escape,
    )
    return environment


def write(
    folder: Path,
    name: str,
    namespace: str,
    sources: Sequence[str],
    functions: Sequence[Mapping[str, Any]],
    standalone: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Writes ``name.h`` and ``name.cpp`` beside the package ``name.pt2``, or as all that there is of a package.

    Args:
        folder: Where the package is.
        name: The package's name, a C++ identifier.
        namespace: The C++ namespace of the functions.
        sources: Names of the Python files, for the header's first line.
        functions: For each function ``signature``, ``doc`` and ``out`` (whether it can write into given outputs).
        standalone: What the source of a program without libtorch has in it; see :mod:`torchcc.standalone`.

    Returns:
        Paths of the header and of the implementation.
    """
    environment = _environment()
    context = {
        "version": __version__,
        "name": name,
        "namespace": namespace,
        "identifier": re.sub(r"\W", "_", f"{namespace}_{name}"),
        "package": str((folder / f"{name}.pt2").resolve()),
        "sources": ", ".join(sources),
        "functions": functions,
        "ranges": {f["signature"].name: ", ".join(s.text() for s in f["signature"].symbols) for f in functions},
        "sizes": sizes,
        "tensor": "torchcc::Tensor" if standalone else "at::Tensor",
        "standalone": standalone,
    }
    written = []
    source = "standalone.cpp.jinja" if standalone else "functions.cpp.jinja"
    for template, suffix in (("header.h.jinja", ".h"), (source, ".cpp")):
        file = folder / f"{name}{suffix}"
        written.append(paths.write_whole(file, environment.get_template(template).render(context).encode()))
    return written[0], written[1]
