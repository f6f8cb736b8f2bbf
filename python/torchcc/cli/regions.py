"""The command for regions: Python functions that C++ programs call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from torchcc.cli import console, options


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
    simdlen: options.Simdlen = None,
    march: options.March = "",
    weights: options.Weights = "embedded",
    library: options.Libraries = None,
) -> None:
    """Compiles the regions of Python files into a package and a typed C++ header."""
    from torchcc import builder, targets

    if standalone:
        (target,) = options.with_simdlen([f"standalone-{isa}" if isa else "standalone"], simdlen)
        targets.check_targets([target])
        with console.progress(verbose) as tell:
            emitted = builder.build_sources(
                sources,
                out,
                name=name,
                namespace=namespace,
                params=options.parse_params(param or []),
                weights=weights,
                isa=targets.STANDALONE_TARGETS[target],
                libraries=library or [],
                march=march,
                depfile=depfile,
                progress=tell,
            )
        console.print_sources(emitted, emitted.checks, "Python")
        return
    logs = out / "logs" if verbose else None
    with console.progress(verbose) as tell:
        built = builder.build(
            sources,
            out,
            name=name,
            namespace=namespace,
            params=options.parse_params(param or []),
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
