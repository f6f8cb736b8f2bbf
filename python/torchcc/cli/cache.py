"""Commands for the cache of functions that C++ programs compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchcc.cli import options

app = typer.Typer(help="The cache of functions that C++ programs compiled.", no_args_is_help=True)


@app.command("list")
def cache_list(as_json: options.Json = False) -> None:
    """Lists the entries, the latest used first."""
    from torchcc import cache, inspection

    print(inspection.cache_text(cache.entries(), as_json))


@app.command("clear")
def cache_clear() -> None:
    """Removes all entries."""
    from torchcc import cache

    print(f"{cache.clear()} bytes removed from {cache.folder()}")


@app.command("export")
def cache_export(file: Annotated[Path, typer.Argument(help="The .tar file to write.")]) -> None:
    """Writes all entries into an archive, to be shipped with an application."""
    from torchcc import cache

    print(f"{cache.export_to(file)} entries written to {file}")


@app.command("import")
def cache_import(file: Annotated[Path, typer.Argument(help="A .tar file written by `torchcc cache export`.")]) -> None:
    """Adds the entries of an archive. They are programs: import only what you would run."""
    from torchcc import cache

    print(f"{cache.import_from(file)} entries added to {cache.folder()}")
