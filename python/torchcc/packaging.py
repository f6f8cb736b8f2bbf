"""Makes packages from files: ``torchcc export``, ``torchcc compile`` and ``torchcc merge``."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from torchcc import _torch, exporter, package, package_reader, package_writer, workers
from torchcc.errors import ArgumentError, message, no_such
from torchcc.export_settings import ExportSettings
from torchcc.exporter import Exported
from torchcc.targets import check_targets

#: What ``build`` of ``torchcc export model.py:build`` may put into a dict.
KEYWORDS = ("module", "args", "kwargs", "dynamic", "ranges", "methods")

_SHAPE = '(module, args), (module, args, kwargs), or {"module": ..., "args": ..., "kwargs": ..., "dynamic": ...}'


def export_file(
    source: str,
    out: Path,
    settings: ExportSettings,
    progress: Callable[[str, int, int], None] | None = None,
) -> Exported:
    """Exports what a function of a Python file gives: ``model.py:build``.

    Args:
        source: The file and the name of the function, which takes no arguments and gives what is in :data:`KEYWORDS` as
            a dict, or a tuple of a module, its positional and its keyword arguments.
        out: Where to write.
        settings: What to make of it; the file itself is one of the ``imports``.
        progress: Called with a title, the steps done and the steps in all.

    Raises:
        ArgumentError: The file, the function or its result is not as described, or as :func:`torchcc.export`.
        CaptureError: ``torch.export`` cannot capture the module.
        CompileError: The compiler failed, or its code gives other results than the graph.
        OSError: The package cannot be written.
    """
    _prepare(out, settings)
    given = _call(source)
    module = Path(source.rpartition(":")[0])
    keywords = {**vars(settings), "imports": [*settings.imports, module]}
    return exporter.export(out, **given, **keywords, progress=progress)


def _prepare(out: Path, settings: ExportSettings) -> tuple[str, ...]:
    """Refuses what makes no sense before anything is read, and loads what the graphs need; what to compile for."""
    package_writer.check_name(out)
    _torch.check_options(settings.options)
    isas = check_targets(settings.targets)
    load_extensions(settings.imports)
    return isas


def _call(source: str) -> dict[str, Any]:
    """The arguments for ``torchcc.export`` that the function gives."""
    path, colon, name = source.rpartition(":")
    if not colon or not name.isidentifier():
        raise ArgumentError(
            message(
                f"{source}: no function is named",
                expected="a Python file and a function of it",
                got=source,
                fix="write model.py:build",
            )
        )
    module = import_file(Path(path))
    build = getattr(module, name, None)
    if not callable(build):
        own = (
            key
            for key, one in vars(module).items()
            if isinstance(one, FunctionType) and one.__module__ == module.__name__
        )
        known = [key for key in own if not key.startswith("_")]
        raise ArgumentError(
            message(
                f"{path}: it has no function '{name}'",
                expected=f"one of: {', '.join(known)}" if known else "a function that gives the model",
                got="nothing of this name" if build is None else f"a {type(build).__name__}",
                fix="correct the name",
            )
        )
    try:
        result = build()
    except Exception as error:
        raise ArgumentError(
            message(
                f"{source}: the function fails",
                expected="a function that takes no arguments",
                got=f"{type(error).__name__}: {error}",
                fix=f"make `python -c 'import {Path(path).stem}; {Path(path).stem}.{name}()'` work first",
            )
        ) from error
    return _check_result(source, result)


def load_extensions(files: Sequence[Path | str]) -> None:
    """Loads custom operators and dataclasses from Python files, installed modules and shared libraries.

    Raises:
        ArgumentError: One is missing, or fails.
    """
    for file in map(Path, files):
        if file.suffix == ".py":
            import_file(file)
            continue
        try:
            workers.load_extension(file)
        except Exception as error:
            raise ArgumentError(
                message(
                    f"{file}: it cannot be loaded",
                    expected="a Python file, an installed module, or a shared library that registers operators",
                    got=(str(error) or type(error).__name__).splitlines()[0],
                    fix="check the path; a library must be built with this torch",
                )
            ) from error


def import_file(path: Path) -> Any:
    """Imports a Python file.

    Raises:
        ArgumentError: It is missing, or fails.
    """
    if not path.is_file():
        raise ArgumentError(message(f"{path}: no such file", expected="a Python file", fix="check the path"))
    try:
        return workers.import_file(path)
    except Exception as error:
        raise ArgumentError(
            message(
                f"{path}: it cannot be imported",
                got=f"{type(error).__name__}: {error}",
                fix=f"make `python {path}` work first",
            )
        ) from error


def _check_result(source: str, result: Any) -> dict[str, Any]:
    if isinstance(result, tuple) and len(result) in (2, 3):
        result = dict(zip(KEYWORDS, result, strict=False))
    if isinstance(result, Mapping) and (unknown := [key for key in result if key not in KEYWORDS]):
        raise ArgumentError(
            no_such(
                f"{source}: it gives a dict with '{unknown[0]}'",
                str(unknown[0]),
                KEYWORDS,
                "correct the name; targets and options belong on the command line",
            )
        )
    kinds = {"module": torch.nn.Module, "args": tuple, "kwargs": Mapping, "ranges": Mapping, "methods": Mapping}
    if not isinstance(result, Mapping) or "module" not in result:
        got = f"a {type(result).__name__}"
        if isinstance(result, tuple):
            got += f" of {len(result)}"
        raise ArgumentError(
            message(f"{source}: it gives no model", expected=_SHAPE, got=got, fix="return one of these")
        )
    for key, kind in kinds.items():
        if result.get(key) is not None and not isinstance(result[key], kind):
            wanted = "a torch.nn.Module" if key == "module" else "a tuple" if key == "args" else "a dict"
            fix = f"write ({key},) with a comma for one argument" if key == "args" else "see docs/export.md"
            raise ArgumentError(
                message(
                    f"{source}: its '{key}' is something else",
                    expected=wanted,
                    got=f"a {type(result[key]).__name__}",
                    fix=fix.replace("(args,)", "(x,)"),
                )
            )
    return {key: value for key, value in result.items() if value is not None}


def compile_file(
    file: Path,
    out: Path,
    settings: ExportSettings,
    progress: Callable[[str, int, int], None] | None = None,
) -> Exported:
    """Adds compiled code to a package, or to a file by ``torch.export.save``.

    Args:
        file: What to read.
        out: Where to write; may be the same file.
        settings: What to make of it. With the target ``portable`` alone, a file by ``torch.export.save`` becomes a
            package that C++ loads.
        progress: Called with a title, the steps done and the steps in all.

    Raises:
        ArgumentError: A function has no graph, or code that this would not replace in full; or a target makes no sense.
        PackageError: The file cannot be read.
        CompileError: The compiler failed, or its code gives other results than the graph.
        OSError: The package cannot be written.
    """
    isas = _prepare(out, settings)
    with tempfile.TemporaryDirectory(prefix="torchcc-") as folder:
        functions = package_reader.read(file, Path(folder))
        for function in functions:
            _check_compilable(file, function, isas, settings)
        return exporter.write(out, functions, settings, progress)


def _check_compilable(file: Path, function: package.Function, isas: Sequence[str], settings: ExportSettings) -> None:
    name = function.signature.name
    if function.program is None:
        raise ArgumentError(
            message(
                f"{file}: function '{name}' has no graph to compile",
                expected="a package by torchcc.export, `torchcc build` or torch.export.save",
                got="compiled code alone, with the weights in it",
                fix="export or build it again on this machine",
            )
        )
    device = _torch.device_of(function.program)
    targets = {_torch.target(device, isa, settings.options)[0] for isa in isas}
    for variant in function.variants:
        if variant.files_out and variant.target in targets and variant.torch == _torch.tree_version():
            raise ArgumentError(
                message(
                    f"{file}: function '{name}' has code for {variant.target}, also in the form for given outputs",
                    expected="a target that it has no code for, since `torchcc compile` does not make that form",
                    got=variant.target,
                    fix="make the package again with `torchcc build`",
                )
            )


def merge_files(sources: Sequence[str], out: Path, imports: Sequence[Path] = ()) -> list[package.Function]:
    """Writes the functions of several packages into one.

    Args:
        sources: Files, each perhaps with new names of functions: ``a.pt2:forward=encode,step=encode_step``.
        out: Where to write.
        imports: Python files, names of modules, and shared libraries that define custom operators of the graphs.

    Returns:
        The functions.

    Raises:
        ArgumentError: Two functions have the same name, or a renaming makes no sense.
        PackageError: A file cannot be read.
        OSError: The package cannot be written.
    """
    package_writer.check_name(out)
    load_extensions(imports)
    with tempfile.TemporaryDirectory(prefix="torchcc-") as folder:
        packages = []
        for position, source in enumerate(sources):
            file, names = _parse_source(source)
            functions = package_reader.read(file, Path(folder) / str(position))
            packages.append(_renamed(file, functions, names))
        merged = package.merge(packages)
        package_writer.write(out, merged)
    return merged


def _parse_source(source: str) -> tuple[Path, dict[str, str]]:
    file, colon, text = source.partition(".pt2:")
    if Path(source).exists() or not colon:
        return Path(source), {}
    names = {}
    for part in text.split(","):
        old, equals, new = part.partition("=")
        if not equals or not old or not new.isidentifier():
            raise ArgumentError(
                message(
                    f"{source}: not understood",
                    expected="a file, and perhaps old=new names of its functions",
                    got=part,
                    fix="write model.pt2:forward=encode",
                )
            )
        names[old] = new
    return Path(f"{file}.pt2"), names


def _renamed(file: Path, functions: Sequence[package.Function], names: Mapping[str, str]) -> list[package.Function]:
    known = [function.signature.name for function in functions]
    if unknown := names.keys() - set(known):
        raise ArgumentError(no_such(f"{file}: there is no function '{min(unknown)}' to rename", min(unknown), known))
    return [
        dataclasses.replace(
            one, signature=dataclasses.replace(one.signature, name=names.get(one.signature.name, one.signature.name))
        )
        for one in functions
    ]
