"""Exceptions, of the same names and with the same layout of messages as in C++ (torchcc/error.h)."""

from __future__ import annotations

from collections.abc import Iterable


def message(subject: str, **lines: str) -> str:
    """Writes an error message: a line that says what is wrong, then aligned ``key: value`` lines.

    Args:
        subject: The thing that is wrong and how.
        **lines: Usually ``expected``, ``got`` and ``fix``; continuation lines of a value are indented below it.
    """
    width = max((len(key) for key in lines), default=0)
    text = [subject]
    for key, value in lines.items():
        first, *rest = value.splitlines() or [""]
        text.append(f"  {key + ':':<{width + 2}}{first}".rstrip())
        text.extend(" " * (width + 4) + line for line in rest)
    return "\n".join(text)


def no_such(subject: str, name: str, known: Iterable[str], fix: str = "correct the name") -> str:
    """The message about a name that nothing has; ``known`` are those that there are."""
    return message(subject, expected=f"one of: {', '.join(known)}", got=name, fix=fix)


def reason(error: Exception) -> str:
    """Another library's exception as lines of a message: its type, and the first lines of its text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join([f"{type(error).__name__}:", *lines[:12]])


class Error(RuntimeError):
    """Base of every exception that torchcc raises."""


class ArgumentError(Error):
    """A call, an option or a command line is wrong."""


class CaptureError(Error):
    """The code cannot be captured: its annotations, or something that it does."""


class CompileError(Error):
    """The compiler failed, or made code whose results differ from the original's."""


class PackageError(Error):
    """A package file is missing, damaged, of another version, or made for another machine."""
