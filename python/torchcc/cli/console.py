"""What commands write on the terminal and into files."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from torchcc.errors import ArgumentError, Error, message

if TYPE_CHECKING:
    from torchcc.standalone import Emitted  # imports torch, which takes seconds

#: Takes the title of a step, and how many of how many are done; 0 where there is no number.
Tell: TypeAlias = Callable[[str, int, int], None]

_stderr = Console(stderr=True)


@contextlib.contextmanager
def progress(verbose: bool) -> Iterator[Tell]:
    """A progress bar on a terminal; one line per step where there is none and ``verbose`` is set."""
    if not _stderr.is_terminal:
        yield lambda title, done, total: _stderr.print(title, highlight=False) if verbose else None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_stderr, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda title, done, total: bar.update(task, description=title, completed=done, total=total or None)


def print_error(error: Error) -> None:
    """Prints one of torchcc's own errors, without a traceback."""
    _stderr.print(
        f"{type(error).__name__}: {error}", style="red", markup=False, emoji=False, highlight=False, soft_wrap=True
    )


def print_sources(emitted: Emitted, checks: Mapping[str, str], reference: str) -> None:
    """Prints what was compared with what, and the files of standalone sources."""
    for function, checked in checks.items():
        print(f"{function}: equal to {reference} on {checked}")
    print(f"{emitted.header}\n{emitted.source}\n{emitted.weights}\n{emitted.flags}")


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Prints a table; columns of numbers, known by their titles, to the right."""
    table = Table(box=None, pad_edge=False)
    for title in head:
        table.add_column(title, overflow="fold", justify="right" if title.endswith(("us", "ms", "threads")) else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 200).print(table, highlight=False)


def write_json(file: Path, content: object) -> None:
    """Writes a file that the option ``--json`` names.

    Raises:
        ArgumentError: It cannot be written.
    """
    try:
        file.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ArgumentError(
            message(f"--json {file}: cannot be written", got=str(error), fix="check the path")
        ) from error


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """Makes ArgumentError of an error while ``file`` is written."""
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            message(f"{file}: it cannot be written", got=f"{type(error).__name__}: {error}", fix="check the path")
        ) from error
