"""The command ``torchcc``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from torchcc import paths
from torchcc._version import __version__
from torchcc.cli import cache, console, machine, packages, regions
from torchcc.errors import Error

app = typer.Typer(
    help="torch.compile for C++.",
    add_completion=False,
    invoke_without_command=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
)

#: By name, in the order of the help.
_COMMANDS: dict[str, Callable[..., None]] = {
    "build": regions.build,
    "inspect": packages.inspect,
    "export": packages.export,
    "compile": packages.compile,
    "merge": packages.merge,
    "run": packages.run,
    "verify": packages.verify,
    "bench": packages.bench,
    "demo": machine.demo,
    "doctor": machine.doctor,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(cache.app, name="cache")


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

        with console.progress(verbose=False) as tell:

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


def main() -> None:
    """Runs the command; prints torchcc's own errors without a traceback."""
    try:
        app()
    except Error as error:
        console.print_error(error)
        sys.exit(1)
