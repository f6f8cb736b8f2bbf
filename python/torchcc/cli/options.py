"""Options that several commands have, and how they are read."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from torchcc.errors import ArgumentError, message

Weights = Annotated[str, typer.Option(help="Where a standalone program has its weights: embedded, or file.")]
Libraries = Annotated[list[str] | None, typer.Option("--library", help="A library that it may link: onednn.")]
March = Annotated[str, typer.Option(help="The compiler's -march for standalone sources. Default: the least.")]
Simdlen = Annotated[
    int | None, typer.Option(help="Bits of vectors in standalone sources: 512, 256, or 0 for any machine.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The package to write (.pt2).")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", help="portable, native, avx2, avx512, standalone ..., mobile; may be repeated. Default: native."
    ),
]
Train = Annotated[bool, typer.Option("--train", help="Also compile forward and backward for training.")]
Updatable = Annotated[bool, typer.Option("--updatable", help="Compile code whose weights can be replaced.")]
InductorOptions = Annotated[list[str] | None, typer.Option("--option", help="An option of Inductor: name=value.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Function = Annotated[str | None, typer.Option("--function", "-f", help="Name of the function.")]
Imports = Annotated[
    list[Path] | None,
    typer.Option("--import", help="A Python file or a module with dataclasses or operators of the graph."),
]
Operators = Annotated[
    list[Path] | None, typer.Option("--operators", help="A shared library with operators of the graph.")
]


def parse_params(params: list[str], flag: str = "--param") -> dict[str, Any]:
    """The values of options such as ``--param k=3``: Python's literals, else text.

    Raises:
        ArgumentError: One has another form.
    """
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


def with_simdlen(targets: list[str], simdlen: int | None) -> list[str]:
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
