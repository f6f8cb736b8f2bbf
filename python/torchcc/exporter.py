"""``torchcc.export``: whole models to packages that C++ loads, with compiled code for some machines or with none."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from torchcc import _torch, agreement, mobile, package, standalone, standalone_check, workers
from torchcc.errors import ArgumentError, message
from torchcc.export_settings import ExportSettings
from torchcc.function_compiler import compile_functions
from torchcc.method import Method, capture_methods
from torchcc.signature import Signature
from torchcc.targets import check_targets, standalone_isa, writes_package


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the file, how the code of each function and target was checked, and the signatures.

    With a standalone target there are ``sources``, with ``mobile`` a file for ExecuTorch; with no other target, there
    is no package.
    """

    package: Path
    checks: Mapping[str, str]
    signatures: tuple[Signature, ...]
    sources: standalone.Emitted | None = None
    mobile: Path | None = None


def export(
    file: Path | str,
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Any = None,
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
    targets: Sequence[str] = ("native",),
    methods: Mapping[str, Method] | None = None,
    updatable: bool = False,
    train: bool = False,
    options: Mapping[str, Any] | None = None,
    imports: Sequence[Path | str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    weights: str = "embedded",
    libraries: Sequence[str] = (),
    march: str = "",
) -> Exported:
    """Exports a module with ``torch.export`` and writes a package.

    The package always holds the portable graph. Call ``module.eval()`` first: the module is taken as it is. What is no
    tensor among the example arguments (numbers, strings, ``None``) is burnt in; the C++ function takes tensors only.

    Args:
        file: Where to write, e.g. ``model.pt2``.
        module: The model, on the CPU or on one GPU; see docs/cuda.md.
        args: Example positional arguments of ``forward``.
        kwargs: Example keyword arguments of ``forward``.
        dynamic: Which sizes may be others than in the example: what ``torch.export.export`` takes as
            ``dynamic_shapes``, where a dimension may also be a name, ``{"ids": {0: "batch", 1: "length"}}``, or follow
            from one that another dimension is: ``"2*length"``.
        ranges: Allowed values (minimum, maximum) of names, both ends included; a maximum of ``None`` is no limit.
            Default: 1 and up, or 2 and up where the code does something else for 1.
        targets: What to compile for: ``"native"`` (this machine), ``"avx2"``, ``"avx512"``; ``"portable"`` compiles
            nothing. At run time the first that fits is used, else the portable graph. ``"standalone"``, or
            ``"standalone-avx2"``, ``"standalone-avx512"`` and, for any machine, ``"standalone-scalar"``, writes C++
            sources that need no libtorch into the folder ``model.standalone`` beside the package; ``"mobile"`` writes
            ``model.pte`` for ExecuTorch there. The package is left out if there is no other target.
        methods: Methods to export in place of ``forward``, each under its name; they share their weights.
        updatable: Compile code that takes the weights as inputs, so that they can be replaced at run time. By default
            they are folded and packed into it, which is faster, and a weight that is replaced leaves the portable graph
            to run.
        train: Also compile forward and backward for training, and take the weights as inputs everywhere. Where an
            argument or a weight requires grad, C++ then runs that code in place of the graph. Its gradients are those
            of all arguments and parameters. Set the module's mode first: ``module.train()`` trains its dropout and the
            statistics of its batch norm, which are buffers of the function.
        options: Options of Inductor.
        imports: Python files, names of modules, and shared libraries that define custom operators of the model, already
            loaded here; the processes that compile load them too.
        progress: Called with a title, the steps done and the steps in all.
        weights: Where a standalone program has its weights: ``"embedded"``, or in a ``"file"``.
        libraries: What a standalone program may link for operators that Inductor does not generate: ``"onednn"``.
        march: The compiler's ``-march`` for standalone sources; by default the least that they need.

    Raises:
        ArgumentError: A target, a method or a range makes no sense.
        CaptureError: ``torch.export`` cannot capture the module, C++ could not call it, or ``train`` is set and its
            backward cannot be compiled.
        CompileError: The compiler failed, or its code gives other results or gradients than the graph.
        OSError: The file cannot be written.
    """
    settings = ExportSettings(
        targets=targets,
        updatable=updatable,
        train=train,
        options=dict(options or {}),
        imports=imports,
        weights=weights,
        libraries=libraries,
        march=march,
    )
    check_targets(targets)
    standalone_isa(targets)
    standalone.check_weights(weights)
    standalone.check_libraries(libraries)
    given = dict(methods or {"forward": Method(args, dict(kwargs or {}), dynamic)})
    if methods and (args or kwargs or dynamic):
        raise ArgumentError(
            message(
                "torchcc.export: there are arguments for forward, and methods",
                expected="one of both",
                got="both",
                fix='put them into methods={"forward": torchcc.Method(...)}',
            )
        )
    return write(Path(file), capture_methods(module, given, ranges or {}), settings, progress)


def write(
    file: Path,
    functions: Sequence[package.Function],
    settings: ExportSettings,
    progress: Callable[[str, int, int], None] | None = None,
) -> Exported:
    """Writes functions for all targets: a package, and sources.

    Args:
        file: Where to write; files of other targets go beside it.
        functions: With their graphs.
        settings: What to make of them.
        progress: Called with a title, the steps done and the steps in all.

    Raises:
        ArgumentError: A target makes no sense.
        CaptureError: PyTorch cannot store a graph.
        CompileError: As :func:`export`.
        OSError: A file cannot be written.
    """
    check_targets(settings.targets)
    isa = standalone_isa(settings.targets)
    checks = compile_functions(file, functions, settings, progress) if writes_package(settings.targets) else {}
    exported = Exported(file, checks, tuple(one.signature for one in functions))
    if isa is not None:
        exported = _with_sources(exported, functions, isa, settings, progress)
    if mobile.TARGET in settings.targets:
        written = mobile.write(file.with_suffix(".pte"), functions, progress)
        exported = replace(exported, checks={**exported.checks, **written.checks}, mobile=written.file)
    return exported


def _with_sources(
    exported: Exported,
    functions: Sequence[package.Function],
    isa: str,
    settings: ExportSettings,
    progress: Callable[[str, int, int], None] | None,
) -> Exported:
    """Writes the sources of functions beside their package."""
    files = workers.absolute(settings.imports)
    own = [
        standalone.Source(
            one,
            options=settings.options,
            imports=files if one.program and _torch.uses_custom_operators(one.program) else (),
        )
        for one in functions
    ]
    name = re.sub(r"\W", "_", exported.package.stem)

    def check(emitted: standalone.Emitted) -> Mapping[str, str]:
        with standalone_check.built(emitted, name) as program:
            return {
                f"{one.signature.name}, standalone": agreement.compare(
                    one, program.run(one.signature), standalone.states(one)
                )
                for one in functions
            }

    with tempfile.TemporaryDirectory(prefix="torchcc-log-") as logs:
        emitted = standalone.emit(
            exported.package.with_name(f"{name}.standalone"),
            name,
            name,
            [exported.package.name],
            own,
            weights=settings.weights,
            isa=isa,
            libraries=settings.libraries,
            march=settings.march,
            log_folder=Path(logs),
            progress=progress,
            check=check,
        )
    return replace(exported, checks={**exported.checks, **emitted.checks}, sources=emitted)
