"""The command ``torchcc``."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from torchcc import paths
from torchcc._version import __version__
from torchcc.errors import ArgumentError, Error, message
from torchcc.export_settings import ExportSettings

if TYPE_CHECKING:
    from torchcc.exporter import Exported  # imports torch, which takes seconds
    from torchcc.standalone import Emitted

    _Make: TypeAlias = Callable[[Any, Path, ExportSettings, "_Tell"], Exported]

_Tell: TypeAlias = Callable[[str, int, int], None]

app = typer.Typer(
    help="torch.compile for C++.",
    add_completion=False,
    invoke_without_command=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
)
_console = Console(stderr=True)


@app.callback()
def _flags(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print torchcc's version.")] = False,
    cmake_dir: Annotated[bool, typer.Option("--cmake-dir", help="Print the folder for CMAKE_PREFIX_PATH.")] = False,
    cxxflags: Annotated[
        bool, typer.Option("--cxxflags", help="Print compiler flags, for builds without CMake.")
    ] = False,
    ldflags: Annotated[bool, typer.Option("--ldflags", help="Print linker flags; builds the libraries once.")] = False,
    library_dir: Annotated[
        bool, typer.Option("--library-dir", help="Print the folder for TORCHCC_LIBRARIES; builds the libraries once.")
    ] = False,
) -> None:
    answers: list[str] = []
    if version:
        answers.append(__version__)
    if cmake_dir:
        answers.append(str(paths.cmake_dir()))
    if cxxflags:
        from torchcc import native

        answers.extend(native.cxx_flags())
    if ldflags or library_dir:
        from torchcc import native

        with _progress(verbose=False) as tell:

            def step(line: str) -> None:
                tell(f"building torchcc's libraries {line[:60]}", 0, 0)

            if ldflags:
                answers.extend(native.ld_flags(step))
            if library_dir:
                answers.append(str(native.library_dir(step)))
    if answers:
        print(" ".join(answers))
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _parse_params(params: list[str], flag: str = "--param") -> dict[str, Any]:
    parsed = {}
    for param in params:
        key, equals, text = param.partition("=")
        if not equals or not key.replace(".", "_").isidentifier():
            raise ArgumentError(
                message(f"{flag} {param}: not understood", expected="name=value", got=param, fix=f"write {flag} k=3")
            )
        literals = {"true": True, "false": False}
        try:
            parsed[key] = literals[text.lower()] if text.lower() in literals else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[key] = text
    return parsed


@contextlib.contextmanager
def _progress(verbose: bool) -> Iterator[_Tell]:
    """A progress bar on a terminal; one line per step where there is none and ``verbose`` is set."""
    if not _console.is_terminal:
        yield lambda title, done, total: _console.print(title, highlight=False) if verbose else None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda title, done, total: bar.update(task, description=title, completed=done, total=total or None)


_Weights = Annotated[str, typer.Option(help="Where a standalone program has its weights: embedded, or file.")]
_Libraries = Annotated[list[str] | None, typer.Option("--library", help="A library that it may link: onednn.")]
_March = Annotated[str, typer.Option(help="The compiler's -march for standalone sources. Default: the least.")]
_Simdlen = Annotated[
    int | None, typer.Option(help="Bits of vectors in standalone sources: 512, 256, or 0 for any machine.")
]


@app.command()
def build(
    sources: Annotated[list[Path], typer.Argument(help="Python files with regions.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the package, the header and its .cpp.")],
    namespace: Annotated[str, typer.Option(help="C++ namespace of the functions.")] = "kernels",
    name: Annotated[str | None, typer.Option(help="Name of the package; by default the first file's.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="A constant for an argument: name=value.")] = None,
    no_out: Annotated[bool, typer.Option("--no-out", help="Leave out the variants that write into outputs.")] = False,
    depfile: Annotated[Path | None, typer.Option(help="Write a Make-style list of imported files here.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print each step and the compiler's log.")] = False,
    standalone: Annotated[bool, typer.Option("--standalone", help="Write C++ sources that need no libtorch.")] = False,
    isa: Annotated[
        str, typer.Option(help="Of standalone sources: avx2, avx512, or scalar. Default: this machine's.")
    ] = "",
    simdlen: _Simdlen = None,
    march: _March = "",
    weights: _Weights = "embedded",
    library: _Libraries = None,
) -> None:
    """Compiles the regions of Python files into a package and a typed C++ header."""
    from torchcc import builder, targets

    if standalone:
        (target,) = _with_simdlen([f"standalone-{isa}" if isa else "standalone"], simdlen)
        targets.check_targets([target])
        with _progress(verbose) as tell:
            emitted = builder.build_sources(
                sources,
                out,
                name=name,
                namespace=namespace,
                params=_parse_params(param or []),
                weights=weights,
                isa=targets.STANDALONE_TARGETS[target],
                libraries=library or [],
                march=march,
                depfile=depfile,
                progress=tell,
            )
        _print_sources(emitted, emitted.checks, "Python")
        return
    logs = out / "logs" if verbose else None
    with _progress(verbose) as tell:
        built = builder.build(
            sources,
            out,
            name=name,
            namespace=namespace,
            params=_parse_params(param or []),
            with_out=not no_out,
            depfile=depfile,
            logs=logs,
            progress=tell,
        )
    if logs:
        for log in sorted(logs.glob("*.log")):
            print(f"--- {log}\n{log.read_text(errors='replace')}", file=sys.stderr)
    for function, checked in built.checks.items():
        print(f"{function}: equal to Python on {checked}")
    print(f"{built.package}\n{built.header}\n{built.implementation}")


def _with_simdlen(targets: list[str], simdlen: int | None) -> list[str]:
    """The targets, with the vectors that ``--simdlen`` names in the standalone one."""
    from torchcc import standalone

    if simdlen is None:
        return targets
    if "standalone" not in targets:
        raise ArgumentError(
            message(
                f"--simdlen {simdlen}: there are no sources that it could be for",
                expected="the target standalone, without another instruction set",
                got=", ".join(targets),
                fix="write --target standalone, or leave --simdlen out",
            )
        )
    isa = standalone.isa_of(simdlen)
    return [f"standalone-{isa}" if one == "standalone" else one for one in targets]


def _print_sources(emitted: Emitted, checks: Mapping[str, str], reference: str) -> None:
    for function, checked in checks.items():
        print(f"{function}: equal to {reference} on {checked}")
    print(f"{emitted.header}\n{emitted.source}\n{emitted.weights}\n{emitted.flags}")


def _write_json(file: Path, content: object) -> None:
    try:
        file.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ArgumentError(
            message(f"--json {file}: cannot be written", got=str(error), fix="check the path")
        ) from error


_cache_app = typer.Typer(help="The cache of functions that C++ programs compiled.", no_args_is_help=True)
app.add_typer(_cache_app, name="cache")


@_cache_app.command("list")
def cache_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Lists the entries, the latest used first."""
    from torchcc import cache, inspection

    print(inspection.cache_text(cache.entries(), as_json))


@_cache_app.command("clear")
def cache_clear() -> None:
    """Removes all entries."""
    from torchcc import cache

    print(f"{cache.clear()} bytes removed from {cache.folder()}")


@_cache_app.command("export")
def cache_export(file: Annotated[Path, typer.Argument(help="The .tar file to write.")]) -> None:
    """Writes all entries into an archive, to be shipped with an application."""
    from torchcc import cache

    print(f"{cache.export_to(file)} entries written to {file}")


@_cache_app.command("import")
def cache_import(file: Annotated[Path, typer.Argument(help="A .tar file written by `torchcc cache export`.")]) -> None:
    """Adds the entries of an archive. They are programs: import only what you would run."""
    from torchcc import cache

    print(f"{cache.import_from(file)} entries added to {cache.folder()}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A trace (.json), or a package (.pt2).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prints what C++ code captured, or what a package holds."""
    from torchcc import inspection

    described = inspection.describe(file)
    print(json.dumps(described, indent=1) if as_json else inspection.text(described))


_Out = Annotated[Path, typer.Option("--out", "-o", help="The package to write (.pt2).")]
_Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", help="portable, native, avx2, avx512, standalone ..., mobile; may be repeated. Default: native."
    ),
]
_Train = Annotated[bool, typer.Option("--train", help="Also compile forward and backward for training.")]
_Updatable = Annotated[bool, typer.Option("--updatable", help="Compile code whose weights can be replaced.")]
_Options = Annotated[list[str] | None, typer.Option("--option", help="An option of Inductor: name=value.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Function = Annotated[str | None, typer.Option("--function", "-f", help="Name of the function.")]
_Imports = Annotated[
    list[Path] | None,
    typer.Option("--import", help="A Python file or a module with dataclasses or operators of the graph."),
]
_Operators = Annotated[
    list[Path] | None, typer.Option("--operators", help="A shared library with operators of the graph.")
]


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Says what is wrong where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            message(f"{file}: it cannot be written", got=f"{type(error).__name__}: {error}", fix="check the path")
        ) from error


def _package_command(name: str, argument: Any) -> Callable[[_Make], _Make]:
    """Makes a command of a function that writes a package, and perhaps sources and a .pte file.

    Args:
        name: Of the command; its help is the function's documentation.
        argument: The annotation of its first argument.
    """

    def decorate(make: _Make) -> _Make:
        def command(
            source: Any,
            out: _Out,
            target: _Targets = None,
            updatable: _Updatable = False,
            train: _Train = False,
            option: _Options = None,
            operators: _Operators = None,
            imports: _Imports = None,
            weights: _Weights = "embedded",
            library: _Libraries = None,
            march: _March = "",
            simdlen: _Simdlen = None,
        ) -> None:
            options = _parse_params(option or [], "--option")
            with _progress(verbose=False) as tell, _writing(out):
                settings = ExportSettings(
                    targets=_with_simdlen(target or ["native"], simdlen),
                    updatable=updatable,
                    train=train,
                    options=options,
                    imports=[*(imports or []), *(operators or [])],
                    weights=weights,
                    libraries=library or [],
                    march=march,
                )
                exported = make(source, out, settings, tell)
            _print_exported(exported)

        command.__annotations__["source"] = argument
        app.command(name, help=make.__doc__)(command)
        return make

    return decorate


@_package_command(
    "export",
    Annotated[str, typer.Argument(help="model.py:build, where build() gives the module and its arguments.")],
)
def _export(source: str, out: Path, settings: ExportSettings, tell: _Tell) -> Exported:
    """Exports a model: its graph and code for the targets, C++ sources (standalone), or a .pte file (mobile)."""
    from torchcc import packaging

    return packaging.export_file(source, out, settings, tell)


@_package_command(
    "compile", Annotated[Path, typer.Argument(metavar="file", help="A package, or a file by torch.export.save.")]
)
def _compile(file: Path, out: Path, settings: ExportSettings, tell: _Tell) -> Exported:
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
        _print_sources(exported.sources, {}, "")
    if exported.mobile:
        print(exported.mobile)


@app.command()
def merge(
    files: Annotated[list[str], typer.Argument(help="Packages; a.pt2:forward=encode gives a function another name.")],
    out: _Out,
    operators: _Operators = None,
    imports: _Imports = None,
) -> None:
    """Writes the functions of several packages into one."""
    from torchcc import packaging

    with _writing(out):
        functions = packaging.merge_files(files, out, [*(imports or []), *(operators or [])])
    for function in functions:
        print(function.signature)
    print(out)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A package, or a .pte file of the target mobile.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", "-i", help="x.npy or x.pt in order, or name=x.npy.")
    ] = None,
    function: _Function = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results, as NAME.npy.")] = None,
    portable: Annotated[bool, typer.Option("--portable", help="Run the graph, not compiled code.")] = False,
    operators: _Operators = None,
    as_json: _Json = False,
) -> None:
    """Calls a function in C++ on inputs from files."""
    from torchcc import calling, inspection

    ran = calling.run(file, function, inputs or [], portable=portable, operators=operators or [])
    saved = None
    if output is not None:
        with _writing(output):
            saved = calling.save_outputs(ran.outputs, output)
    described = inspection.describe_run(ran, saved or [])
    print(json.dumps(described, indent=1) if as_json else inspection.run_text(described))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A package.")],
    operators: _Operators = None,
    imports: _Imports = None,
    as_json: _Json = False,
) -> None:
    """Compares all that can run here with the graphs in Python, on random inputs; fails when something differs."""
    from torchcc import deployment, packaging

    packaging.load_extensions(imports or [])
    with _progress(verbose=False) as tell:
        checks = deployment.verify(file, operators or [], tell)
    good = all(check.outcome != "differs" for check in checks)
    if as_json:
        print(json.dumps({"file": str(file), "good": good, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        rows = [(check.function, check.subject, check.outcome, check.detail) for check in checks]
        _print_table(("function", "compared with the graph", "outcome", "detail"), rows)
    if not good:
        raise typer.Exit(1)


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(help="A package.")],
    function: _Function = None,
    seconds: Annotated[float, typer.Option(help="How long to measure each.")] = 1.0,
    threads: Annotated[int | None, typer.Option(help="Threads of an operator. Default: one per core.")] = None,
    operators: _Operators = None,
    imports: _Imports = None,
    as_json: _Json = False,
) -> None:
    """Measures compiled code and the portable graph in C++, on the example inputs."""
    from torchcc import deployment, packaging

    packaging.load_extensions(imports or [])
    with _progress(verbose=False) as tell:
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
    _print_table(("function", "what runs", "median us", "load ms", "threads", "passed over"), rows)


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in head:
        table.add_column(title, overflow="fold", justify="right" if title.endswith(("us", "ms", "threads")) else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 200).print(table, highlight=False)


@app.command()
def demo(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the measurements to this file.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the losses of training into this PNG file.")
    ] = None,
) -> None:
    """Builds and runs C++ programs that call, compile and train small networks."""
    from torchcc import demo, demo_report, loss_plot

    if plot_file:
        loss_plot.require(plot_file)
    with _progress(verbose=False) as tell:
        report = demo.run(tell)
    demo_report.show(report)
    if plot_file:
        loss_plot.draw(plot_file, report.losses)
    if json_file:
        _write_json(json_file, {"cases": [asdict(case) for case in report.cases]})
    if not report.holds:
        raise typer.Exit(1)


@app.command()
def doctor(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the findings to this file.")] = None,
) -> None:
    """Checks what torchcc needs on this machine, and says how to get what is missing."""
    from torchcc import doctor

    found = doctor.run()
    if json_file:
        _write_json(json_file, {"findings": [asdict(finding) for finding in found]})
    if doctor.missing_names(found):
        raise typer.Exit(1)


def main() -> None:
    """Runs the command; prints torchcc's own errors without a traceback."""
    try:
        app()
    except Error as error:
        _console.print(
            f"{type(error).__name__}: {error}", style="red", markup=False, emoji=False, highlight=False, soft_wrap=True
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
