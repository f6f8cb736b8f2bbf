"""Commands that write packages, and that look at, run and measure what they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from torchcc.cli import console, options
from torchcc.export_settings import ExportSettings

if TYPE_CHECKING:
    from torchcc.exporter import Exported  # imports torch, which takes seconds

    _Make: TypeAlias = Callable[[Any, Path, ExportSettings, console.Tell], Exported]


def inspect(
    file: Annotated[Path, typer.Argument(help="A trace (.json), or a package (.pt2).")],
    as_json: options.Json = False,
) -> None:
    """Prints what C++ code captured, or what a package holds."""
    from torchcc import inspection

    described = inspection.describe(file)
    print(json.dumps(described, indent=1) if as_json else inspection.text(described))


def _writes_package(argument: Any) -> Callable[[_Make], Callable[..., None]]:
    """Makes a command of a function that writes a package, and perhaps sources and a .pte file.

    Args:
        argument: The annotation of its first argument.
    """

    def decorate(make: _Make) -> Callable[..., None]:
        def command(
            source: Any,
            out: options.Out,
            target: options.Targets = None,
            updatable: options.Updatable = False,
            train: options.Train = False,
            option: options.InductorOptions = None,
            operators: options.Operators = None,
            imports: options.Imports = None,
            weights: options.Weights = "embedded",
            library: options.Libraries = None,
            march: options.March = "",
            simdlen: options.Simdlen = None,
        ) -> None:
            inductor = options.parse_params(option or [], "--option")
            with console.progress(verbose=False) as tell, console.writing(out):
                settings = ExportSettings(
                    targets=options.with_simdlen(target or ["native"], simdlen),
                    updatable=updatable,
                    train=train,
                    options=inductor,
                    imports=[*(imports or []), *(operators or [])],
                    weights=weights,
                    libraries=library or [],
                    march=march,
                )
                exported = make(source, out, settings, tell)
            _print_exported(exported)

        command.__annotations__["source"] = argument
        command.__doc__ = make.__doc__
        return command

    return decorate


@_writes_package(
    Annotated[str, typer.Argument(help="model.py:build, where build() gives the module and its arguments.")]
)
def export(source: str, out: Path, settings: ExportSettings, tell: console.Tell) -> Exported:
    """Exports a model: its graph and code for the targets, C++ sources (standalone), or a .pte file (mobile)."""
    from torchcc import packaging

    return packaging.export_file(source, out, settings, tell)


@_writes_package(Annotated[Path, typer.Argument(metavar="file", help="A package, or a file by torch.export.save.")])
def compile(file: Path, out: Path, settings: ExportSettings, tell: console.Tell) -> Exported:
    """Adds compiled code for this machine, or other targets, to a package."""
    from torchcc import packaging

    return packaging.compile_file(file, out, settings, tell)


def _print_exported(exported: Exported) -> None:
    for signature in exported.signatures:
        print(signature)
    for name, checked in exported.checks.items():
        print(f"{name}: equal to the graph on {checked}")
    if exported.package.is_file():
        print(exported.package)
    if exported.sources:
        console.print_sources(exported.sources, {}, "")
    if exported.mobile:
        print(exported.mobile)


def merge(
    files: Annotated[list[str], typer.Argument(help="Packages; a.pt2:forward=encode gives a function another name.")],
    out: options.Out,
    operators: options.Operators = None,
    imports: options.Imports = None,
) -> None:
    """Writes the functions of several packages into one."""
    from torchcc import packaging

    with console.writing(out):
        functions = packaging.merge_files(files, out, [*(imports or []), *(operators or [])])
    for function in functions:
        print(function.signature)
    print(out)


def run(
    file: Annotated[Path, typer.Argument(help="A package, or a .pte file of the target mobile.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", "-i", help="x.npy or x.pt in order, or name=x.npy.")
    ] = None,
    function: options.Function = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results, as NAME.npy.")] = None,
    portable: Annotated[bool, typer.Option("--portable", help="Run the graph, not compiled code.")] = False,
    operators: options.Operators = None,
    as_json: options.Json = False,
) -> None:
    """Calls a function in C++ on inputs from files."""
    from torchcc import calling, inspection

    ran = calling.run(file, function, inputs or [], portable=portable, operators=operators or [])
    saved = None
    if output is not None:
        with console.writing(output):
            saved = calling.save_outputs(ran.outputs, output)
    described = inspection.describe_run(ran, saved or [])
    print(json.dumps(described, indent=1) if as_json else inspection.run_text(described))


def verify(
    file: Annotated[Path, typer.Argument(help="A package.")],
    operators: options.Operators = None,
    imports: options.Imports = None,
    as_json: options.Json = False,
) -> None:
    """Compares all that can run here with the graphs in Python, on random inputs; fails when something differs."""
    from torchcc import deployment, packaging

    packaging.load_extensions(imports or [])
    with console.progress(verbose=False) as tell:
        checks = deployment.verify(file, operators or [], tell)
    good = all(check.outcome != "differs" for check in checks)
    if as_json:
        print(json.dumps({"file": str(file), "good": good, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        rows = [(check.function, check.subject, check.outcome, check.detail) for check in checks]
        console.print_table(("function", "compared with the graph", "outcome", "detail"), rows)
    if not good:
        raise typer.Exit(1)


def bench(
    file: Annotated[Path, typer.Argument(help="A package.")],
    function: options.Function = None,
    seconds: Annotated[float, typer.Option(help="How long to measure each.")] = 1.0,
    threads: Annotated[int | None, typer.Option(help="Threads of an operator. Default: one per core.")] = None,
    operators: options.Operators = None,
    imports: options.Imports = None,
    as_json: options.Json = False,
) -> None:
    """Measures compiled code and the portable graph in C++, on the example inputs."""
    from torchcc import deployment, packaging

    packaging.load_extensions(imports or [])
    with console.progress(verbose=False) as tell:
        timings = deployment.bench(file, function, seconds, threads, operators or [], tell)
    if as_json:
        print(json.dumps({"file": str(file), "timings": [asdict(one) for one in timings]}, indent=1))
        return
    rows = [
        (
            one.function,
            " ".join(filter(None, (one.backend, one.target))),
            f"{one.nanoseconds / 1000:.2f}",
            f"{one.load_seconds * 1000:.0f}",
            str(one.threads),
            "; ".join(one.reasons),
        )
        for one in timings
    ]
    console.print_table(("function", "what runs", "median us", "load ms", "threads", "passed over"), rows)
