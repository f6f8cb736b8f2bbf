"""Where torchcc's files are: its C++ sources and its cache.

The sources are beside this file in an installed wheel, in the repository in an editable install.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_HERE = Path(__file__).resolve().parent

#: Prefix of temporary folders beside what is being written, before the number of the process.
TEMPORARY = ".torchcc-"


def _folder(name: str, witness: str) -> Path:
    for candidate in (_HERE / name, _HERE.parents[1] / name):
        if (candidate / witness).is_file():
            return candidate
    raise FileNotFoundError(f"torchcc's folder '{name}' is missing beside {_HERE}: install torchcc again")


def cmake_dir() -> Path:
    """The folder of ``torchcc-config.cmake``, for ``CMAKE_PREFIX_PATH`` or ``torchcc_DIR``."""
    return _folder("cmake", "torchcc-config.cmake")


def cpp_dir() -> Path:
    """The folder of the C++ sources."""
    return _folder("cpp", "CMakeLists.txt")


def cache_dir() -> Path:
    """The cache: ``TORCHCC_CACHE``, else ``torchcc`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("TORCHCC_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "torchcc"


def write_whole(file: Path, content: bytes) -> Path:
    """Writes a file under another name, and renames it: nobody sees a part of it. Returns the file."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(content)
    return temporary.replace(file)


def publish(temporary: Path, file: Path, private: bool) -> None:
    """Moves a finished file to its place, so that it survives a crash of the machine whole or not at all."""
    if private:
        temporary.chmod(0o600)
    with temporary.open("rb") as opened:
        os.fsync(opened.fileno())
    temporary.replace(file)


@contextlib.contextmanager
def locked(file: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Lets one process at a time work; the others wait.

    Args:
        file: The lock; made with its folder if missing, and left.
        waiting: Called if another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
