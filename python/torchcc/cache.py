"""The cache of compiled functions: one package per entry, in a folder that only its owner can read.

Beside the packages are notes, ``KEY.slower``: what was measured, and why that code is not to be used.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchcc import package_reader, paths
from torchcc.errors import ArgumentError, PackageError, message

#: Bytes that the cache may take when ``TORCHCC_CACHE_LIMIT`` does not say otherwise.
DEFAULT_LIMIT = 8 << 30

_ABANDONED = 3600  # seconds after which a temporary folder belongs to a process that was killed

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}\.(pt2|slower)")
_NOTE_LIMIT = 4096  # bytes


@dataclass(frozen=True)
class Entry:
    """One entry: its key, file, size in bytes, and when it was last used, in seconds since 1970."""

    key: str
    file: Path
    size: int
    used: float


def folder() -> Path:
    """Where the entries are."""
    return paths.cache_dir() / "compiled"


def limit() -> int:
    """Bytes that the cache may take: ``TORCHCC_CACHE_LIMIT``, by default 8 GiB.

    Raises:
        ArgumentError: The variable is set to something else than a number.
    """
    text = os.environ.get("TORCHCC_CACHE_LIMIT")
    if not text:
        return DEFAULT_LIMIT
    if not text.isdecimal():
        raise ArgumentError(
            message(
                "TORCHCC_CACHE_LIMIT: not a number", expected="a count of bytes", got=text, fix="write 8589934592, say"
            )
        )
    return int(text)


def entries() -> list[Entry]:
    """All entries, the latest used first."""
    found = []
    for file in folder().glob("*.pt2"):
        with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
            status = file.stat()
            found.append(Entry(file.stem, file, status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def _notes() -> list[Path]:
    return sorted(folder().glob("*.slower"))


def make_folder(path: Path) -> None:
    """Makes a folder that only its owner can use, unless it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder for unfinished files, on the file system of the finished ones."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{paths.TEMPORARY}{os.getpid()}-") as path:
        yield Path(path)


def evict(keep: Path | None = None) -> None:
    """Removes the entries that have not been used for longest until the rest is within the limit; never ``keep``.

    Also removes what killed processes left.
    """
    left = limit()
    kept = keep.resolve() if keep else None
    for entry in sorted(entries(), key=lambda entry: entry.file.resolve() != kept):
        left -= entry.size
        if left < 0 and entry.file.resolve() != kept:
            entry.file.unlink(missing_ok=True)
    for path in folder().glob(f"{paths.TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def clear() -> int:
    """Removes all entries, and what was measured; returns the size of the entries in bytes."""
    found = entries()
    for file in (*(entry.file for entry in found), *_notes()):
        file.unlink(missing_ok=True)
    return sum(entry.size for entry in found)


def export_to(file: Path) -> int:
    """Writes all entries, and what was measured, into a tar archive, to be shipped with an application.

    Returns:
        The number of entries.

    Raises:
        ArgumentError: The file cannot be written.
    """
    found = sorted(entries(), key=lambda entry: entry.key)
    try:
        with temporary_folder(file.parent) as work:
            with tarfile.open(work / file.name, "w") as archive:
                for one in (*(entry.file for entry in found), *_notes()):
                    archive.add(one, one.name, filter=_anonymous)
            paths.publish(work / file.name, file, private=False)
    except OSError as error:
        raise ArgumentError(
            message(f"{file}: it cannot be written", got=str(error), fix="check the path and the space left")
        ) from error
    return len(found)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the names of this machine's users."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def import_from(file: Path) -> int:
    """Adds the entries of an archive that :func:`export_to` wrote; returns their number.

    Packages are programs: import only what you would run. Each is read whole before it is used, and none is added when
    one of them is wrong.

    Raises:
        ArgumentError: The file cannot be read, or the cache not be written.
        PackageError: The archive holds something else than packages, or a damaged one.
    """
    make_folder(folder())
    try:
        with temporary_folder(folder()) as work:
            with tarfile.open(file, "r:*") as archive:
                unpacked = [_unpack(file, archive, member, work) for member in archive]
            for path in unpacked:
                paths.publish(path, folder() / path.name, private=True)
    except (OSError, tarfile.TarError) as error:
        raise ArgumentError(
            message(
                f"{file}: it cannot be imported",
                expected="an archive written by `torchcc cache export`",
                got=f"{type(error).__name__}: {error}",
                fix=f"check the file, and the space left at {folder()}",
            )
        ) from error
    return sum(path.suffix == ".pt2" for path in unpacked)


def _unpack(file: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, work: Path) -> Path:
    most = _NOTE_LIMIT if member.name.endswith(".slower") else limit()
    if not member.isreg() or not _NAME.fullmatch(member.name) or member.size > most:
        raise PackageError(
            message(
                f"{file}: it holds something that is no entry of a cache",
                expected=f"files KEY.pt2 of at most {limit()} bytes, and KEY.slower of at most {_NOTE_LIMIT}",
                got=f"{member.name!r} of {member.size} bytes",
                fix="write it with `torchcc cache export`",
            )
        )
    path = work / member.name
    source = archive.extractfile(member)
    assert source is not None  # it is a regular file
    with path.open("xb") as target:
        shutil.copyfileobj(source, target)
    if path.suffix == ".pt2":
        package_reader.check(path)
    return path
