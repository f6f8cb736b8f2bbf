"""``torchcc build``: from Python files with regions to a package, a header and its implementation."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchcc import (
    _torch,
    gradients,
    header,
    package,
    package_writer,
    standalone,
    standalone_check,
    toolchain,
    verify,
    workers,
)
from torchcc.capture import Captured, capture
from torchcc.errors import ArgumentError, CaptureError, message, no_such
from torchcc.region import Region


@dataclass(frozen=True)
class Built:
    """Files that a build wrote, and per function how its code was checked."""

    package: Path
    header: Path
    implementation: Path
    checks: Mapping[str, str]


def build(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    name: str | None = None,
    namespace: str = "kernels",
    params: Mapping[str, Any] | None = None,
    with_out: bool = True,
    depfile: Path | str | None = None,
    logs: Path | str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Built:
    """Compiles the regions of Python files.

    Args:
        sources: Python files; every :class:`~torchcc.Region` at their top level is compiled, in order of definition.
        out: Folder for ``NAME.pt2``, ``NAME.h`` and ``NAME.cpp``; made if missing.
        name: Name of the package; by default that of the first file.
        namespace: C++ namespace of the functions.
        params: Constants for arguments, by argument name.
        with_out: Whether regions may have the variant that writes into given outputs (see ``region(out=...)``).
        depfile: Where to write a Make-style list of the Python files that the sources import.
        logs: Folder for the compiler's logs, which then show the code that Inductor writes. By default only what goes
            wrong is logged, below the system's temporary folder, and kept if the build fails.
        progress: Called with a title, the steps done and the steps in all.

    Raises:
        ArgumentError: A source is missing or has no region; a name cannot be used in C++.
        CaptureError: A region cannot be captured.
        CompileError: The compiler failed, or its code gives other results than the Python code.
    """
    tell = progress or (lambda title, done, total: None)
    before = set(sys.modules)
    files, name = _check_names(sources, name, namespace)
    captured = _captured(files, params or {}, tell)
    for one in captured:
        if one.region.grad:
            gradients.require(f"region {one.signature.name}", one.program, one.signature)

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="torchcc-") as work:
        log_folder = Path(logs) if logs else Path(tempfile.mkdtemp(prefix="torchcc-log-"))
        log_folder.mkdir(parents=True, exist_ok=True)
        functions, checks = _compile(captured, files, Path(work), log_folder, with_out, tell, verbose=logs is not None)
        if not logs:
            for log in log_folder.iterdir():
                log.unlink()
            log_folder.rmdir()
    file = folder / f"{name}.pt2"
    package_writer.write(file, functions)
    written = header.write(
        folder,
        name,
        namespace,
        [source.name for source in files],
        [
            {
                "signature": f.signature,
                "doc": c.region.doc,
                "out": bool(f.variants[0].files_out),
                "gradients": gradients.receivers(f),
            }
            for f, c in zip(functions, captured, strict=True)
        ],
    )
    if depfile is not None:
        _write_depfile(Path(depfile), [file, *written], files, set(sys.modules) - before)
    return Built(file, *written, checks)


def build_sources(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    name: str | None = None,
    namespace: str = "kernels",
    params: Mapping[str, Any] | None = None,
    weights: str = "embedded",
    isa: str = "",
    libraries: Sequence[str] = (),
    march: str = "",
    depfile: Path | str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> standalone.Emitted:
    """Generates C++ sources of the regions of Python files, which need no libtorch.

    Args:
        sources: As :func:`build` takes them.
        out: Folder for ``NAME.h``, ``NAME.cpp``, ``NAME.weights`` and ``NAME.flags``; made if missing.
        name: As :func:`build` takes it, like ``namespace``, ``params``, ``depfile`` and ``progress``.
        namespace: C++ namespace of the functions.
        params: Constants for arguments, by argument name.
        weights: Where the program has the weights: ``"embedded"``, or in a ``"file"``, which it gives before the first
            call.
        isa: ``"avx2"`` or ``"avx512"``; ``"scalar"`` for any machine; by default what this machine has.
        libraries: What the program may link for operators that Inductor does not generate: ``"onednn"``.
        march: The compiler's ``-march`` for them; by default the least that they need.
        depfile: Where to write a Make-style list of the Python files that the sources import.
        progress: Called with a title, the steps done and the steps in all.

    Raises:
        ArgumentError: As :func:`build`, or ``weights`` is something else.
        CaptureError: A region cannot be captured, or was made for training.
        CompileError: The compiler failed, its code gives other results than the Python code, or a region needs
            operators that there are only in libtorch.
    """
    tell = progress or (lambda title, done, total: None)
    before = set(sys.modules)
    standalone.check_weights(weights)
    files, name = _check_names(sources, name, namespace)
    captured = _captured(files, params or {}, tell)
    for one in captured:
        if one.region.grad:
            raise CaptureError(
                message(
                    f"region {one.signature.name}: standalone code carries no gradients",
                    expected="a region without grad=True",
                    got="grad=True",
                    fix="build it with libtorch, or leave grad out",
                )
            )
    functions = [package.Function(one.signature, one.program, ()) for one in captured]

    def check(emitted: standalone.Emitted) -> Mapping[str, str]:
        with standalone_check.built(emitted, namespace) as program:
            return {
                one.signature.name: verify.verify(one, program.run(one.signature), None, standalone.states(function))
                for one, function in zip(captured, functions, strict=True)
            }

    with tempfile.TemporaryDirectory(prefix="torchcc-log-") as logs:
        emitted = standalone.emit(
            Path(out),
            name,
            namespace,
            [file.name for file in files],
            [
                standalone.Source(
                    function, one.region.doc, one.region.options, tuple(str(file.resolve()) for file in files)
                )
                for one, function in zip(captured, functions, strict=True)
            ],
            weights=weights,
            isa=isa,
            libraries=libraries,
            march=march,
            log_folder=Path(logs),
            progress=progress,
            check=check,
        )
    if depfile is not None:
        made = [emitted.header, emitted.source, emitted.weights, emitted.flags]
        _write_depfile(Path(depfile), made, files, set(sys.modules) - before)
    return emitted


def _check_names(sources: Sequence[Path | str], name: str | None, namespace: str) -> tuple[list[Path], str]:
    """The files, which exist, and the name of their package."""
    files = [Path(source) for source in sources]
    for file in files:
        if not file.is_file():
            raise ArgumentError(message(f"{file}: no such file", expected="a Python file", fix="check the path"))
    name = name or files[0].stem
    header.check_identifier(name, "package name")
    header.check_identifier(namespace, "namespace")
    toolchain.require_compiler()
    return files, name


def _captured(
    files: Sequence[Path], params: Mapping[str, Any], tell: Callable[[str, int, int], None]
) -> list[Captured]:
    regions = _collect(files)
    _check_params(regions, params)
    captured = []
    for position, (region_name, region) in enumerate(regions.items()):
        tell(f"capturing {region_name}", position, 3 * len(regions))
        captured.append(capture(region, region_name, params))
    return captured


def _collect(files: Sequence[Path]) -> dict[str, Region]:
    regions: dict[str, Region] = {}
    for file in files:
        try:
            module = workers.import_file(file)
        except Exception as error:
            raise CaptureError(
                message(
                    f"{file}: it cannot be imported",
                    got=f"{type(error).__name__}: {error}",
                    fix=f"make `python {file}` work first",
                )
            ) from error
        for variable, value in vars(module).items():
            if not isinstance(value, Region):
                continue
            name = value.name or variable
            header.check_identifier(name, "region")
            if name in regions and regions[name] is not value:
                raise ArgumentError(
                    message(
                        f"{file}: there are two regions named '{name}'",
                        expected="one name for each region",
                        got=name,
                        fix='give one of them another: torchcc.region(name="...")',
                    )
                )
            regions[name] = value
    if not regions:
        raise ArgumentError(
            message(
                f"{', '.join(map(str, files))}: no region found",
                expected="at least one function with @torchcc.region at the top level",
                got="none",
                fix="decorate the function, or assign torchcc.region(module) to a variable",
            )
        )
    return regions


def _check_params(regions: Mapping[str, Region], params: Mapping[str, Any]) -> None:
    known = {argument for name, region in regions.items() for argument in region.declare(name, params).order}
    for key in params:
        if key not in known:
            raise ArgumentError(no_such(f"--param {key}: no region has such an argument", key, sorted(known)))


def _compile(
    captured: Sequence[Captured],
    files: Sequence[Path],
    work: Path,
    logs: Path,
    with_out: bool,
    tell: Callable[[str, int, int], None],
    verbose: bool,
) -> tuple[list[package.Function], dict[str, str]]:
    jobs: list[workers.Job] = []
    owners: list[tuple[int, str]] = []
    for position, one in enumerate(captured):
        name = one.signature.name
        program = work / f"{name}.pt2"
        _torch.save(one.program, program)
        known = all(size is not None for value in one.signature.outputs for size in value.sizes)
        weights = tuple(_torch.weight_names(one.program)) if one.region.grad else ()
        forms = ["", *(["_out"] if with_out and one.region.out and known and not weights else [])]
        kinds = gradients.kinds(one.program) if one.region.grad else []
        for form in [*forms, *(f"_{kind}" for kind in kinds)]:
            owners.append((position, form))
            jobs.append(
                workers.Job(
                    title=f"region {name}{form}",
                    program=str(program),
                    into_outputs=form == "_out",
                    options=dict(one.region.options),
                    imports=tuple(str(file.resolve()) for file in files),
                    log=str(logs / f"{name}{form}.log"),
                    weights=weights,
                    train=form[1:] if form[1:] in kinds else "",
                )
            )
    done = [0]

    def finished(job: workers.Job, result: workers.Result) -> None:
        done[0] += 1
        tell(f"compiled {job.title} in {result.seconds:.0f} s", len(jobs) + done[0], 3 * len(jobs))

    tell("compiling", len(jobs), 3 * len(jobs))
    results = dict(zip(owners, workers.compile_all(jobs, finished, verbose), strict=True))
    functions = []
    checks = {}
    for position, one in enumerate(captured):
        tell(f"verifying {one.signature.name}", 2 * len(jobs) + position, 2 * len(jobs) + len(captured))
        own = {
            form: (job, results[owner, form])
            for job, (owner, form) in zip(jobs, owners, strict=True)
            if owner == position
        }
        function, checks[one.signature.name] = _verified(one, own)
        functions.append(function)
    return functions, checks


def _verified(one: Captured, made: Mapping[str, tuple[workers.Job, workers.Result]]) -> tuple[package.Function, str]:
    """A function of what was compiled for a region, and how it was checked."""
    job, call = made[""]
    into = made["_out"][1] if "_out" in made else None
    library = package.library(call.files)
    toolchain.require_shared_libstdcxx(library)
    checked = verify.verify(one, library, package.library(into.files) if into else None, job.weights)
    target, features = _torch.target(_torch.device_of(one.program), options=job.options)
    training = [
        dataclasses.replace(gradients.training(*made[f"_{kind}"]), target=target, cpu_features=features)
        for kind in gradients.KINDS
        if f"_{kind}" in made
    ]
    for trained in training:
        checked += "; " + verify.verify_gradients(one, gradients.code(trained), trained.weights)
    function = package.Function(
        signature=one.signature,
        program=one.program,
        variants=[
            package.Variant(
                files=call.files,
                files_out=into.files if into else (),
                exclusive=call.exclusive or bool(into and into.exclusive),
                weights=job.weights,
                target=target,
                cpu_features=features,
                uncapturable=_torch.uncapturable(one.program),
            )
        ],
        training=training,
    )
    return function, checked


def _write_depfile(depfile: Path, targets: Sequence[Path], sources: Sequence[Path], modules: set[str]) -> None:
    """Lists what the sources import from outside the interpreter's own and installed packages."""
    depends = {str(source.resolve()) for source in sources}
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and "site-packages" not in file and not file.startswith((sys.base_prefix, sys.prefix)):
            depends.add(str(Path(file).resolve()))
    escaped = [path.replace(" ", "\\ ") for path in sorted(depends)]
    depfile.parent.mkdir(parents=True, exist_ok=True)
    outputs = " ".join(str(target.resolve()).replace(" ", "\\ ") for target in targets)
    depfile.write_text(f"{outputs}: \\\n  " + " \\\n  ".join(escaped) + "\n")
