"""Compiles exported programs in child processes (see :mod:`torchcc.compiler`), as many at once as there are cores."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torchcc import _torch
from torchcc.errors import CompileError, message

_LIBRARIES = (".so", ".dylib", ".dll")


@dataclass(frozen=True)
class Job:
    """One program to compile.

    Attributes:
        title: For people.
        program: File of the exported program.
        into_outputs: Compile the form that writes into given outputs.
        options: Inductor's options.
        imports: Python files and shared libraries to load first, for the custom operators that they define.
        log: File that receives what the compiler prints.
        weights, isa: As :func:`torchcc._torch.compile` takes them.
        train: Compile forward and backward, with gradients of this kind (see :data:`torchcc.gradients.KINDS`).
        sources: Folder for C++ sources that need no libtorch, in place of compiled code.
    """

    title: str
    program: str
    into_outputs: bool
    options: Mapping[str, Any]
    imports: tuple[str, ...]
    log: str
    weights: tuple[str, ...] = ()
    isa: str = ""
    train: str = ""
    sources: str = ""


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Attributes:
        files: What AOTInductor made.
        exclusive: Whether the code must run alone.
        seconds: How long it took.
        files_backward, description: Of a job with ``train``, the code for gradients, and what C++ has to know of it.
    """

    files: tuple[str, ...]
    exclusive: bool
    seconds: float
    files_backward: tuple[str, ...] = ()
    description: Mapping[str, Any] = field(default_factory=dict)


def compile_all(
    jobs: Sequence[Job],
    finished: Callable[[Job, Result], None],
    verbose: bool = False,
    environment: Mapping[str, str] | None = None,
) -> list[Result]:
    """Compiles jobs in child processes, as many at once as there are cores.

    Args:
        jobs: What to compile.
        finished: Called from worker threads after each job.
        verbose: Let Inductor write the code that it makes into the jobs' logs.
        environment: Variables that the processes get beside this one's.

    Raises:
        CompileError: A job failed; the message ends with the compiler's last lines and the log's place.
    """
    if not jobs:
        return []
    workers = threading.local()
    started: list[_Worker] = []

    def run(job: Job) -> Result:
        if not hasattr(workers, "own"):
            workers.own = _Worker(verbose, environment or {})
            started.append(workers.own)
        result: Result = workers.own.run(job)
        finished(job, result)
        return result

    pool = ThreadPoolExecutor(max_workers=min(len(jobs), os.cpu_count() or 1))
    try:
        return list(pool.map(run, jobs))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in started:
            worker.stop()


class _Worker:
    """One compiler process."""

    def __init__(self, verbose: bool, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torchcc.compiler"],
            env={**os.environ, **({"TORCH_LOGS": "output_code"} if verbose else {}), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def run(self, job: Job) -> Result:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"id": 1, **asdict(job)}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise _failure(job, f"the compiler process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise _failure(job, answer["error"])
        return Result(
            tuple(answer["files"]),
            answer["exclusive"],
            answer["seconds"],
            tuple(answer.get("files_backward", ())),
            answer.get("description", {}),
        )

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def _failure(job: Job, reason: str) -> CompileError:
    log = Path(job.log)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.is_file() else ""
    return CompileError(
        message(
            f"{job.title}: the compiler failed",
            got=reason,
            log=f"{log}\n{tail}".rstrip(),
            fix="run `torchcc doctor`; if the code is at fault, change it, else report the log",
        )
    )


def load_extension(path: Path) -> None:
    """Loads custom operators and dataclasses, once: from a shared library, a Python file or an installed module."""
    if path.suffix in _LIBRARIES:
        _torch.load_operators(path)
    elif is_module(path):
        importlib.import_module(str(path))
    elif path.suffix != ".py" or path.stem not in sys.modules:
        import_file(path)


def is_module(extension: Path) -> bool:
    """Whether this is the name of an installed module, ``transformers.modeling_outputs``, and not a file."""
    if extension.exists() or extension.suffix in (".py", *_LIBRARIES):
        return False
    return all(part.isidentifier() for part in str(extension).split("."))


def absolute(extensions: Sequence[Path | str]) -> tuple[str, ...]:
    """Extensions as a process in another folder finds them: names of modules, and absolute paths of files."""
    return tuple(str(one if is_module(Path(one)) else Path(one).resolve()) for one in extensions)


def import_file(path: Path) -> Any:
    """Imports a Python file as a module of its own, with its folder on ``sys.path``."""
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
