"""The compiler process: ``python -m torchcc.compiler`` turns exported programs and traces into compiled code.

It reads one JSON object per line from standard input and answers each on standard output, with one line or more::

    {"id": 1, "program": "x.pt2", "into_outputs": false, "options": {}, "imports": [], "log": "x.log",
     "weights": [], "isa": "", "train": "", "sources": ""}
    {"id": 1, "files": ["...so"], "exclusive": false, "seconds": 8.5}
    {"id": 1, "error": "first line of the exception"}

With ``"sources": "folder"``, the files are C++ sources; see :func:`torchcc._torch.generate`. With
``"train": "weights"``, or ``"all"``, the answer has ``files_backward`` and ``description`` too; see
:func:`torchcc.gradients.compile`. A trace is compiled into a package of the cache (``gpu``: which one of them it is
for, if its tensors are on a GPU)::

    {"id": 2, "trace": "trace.json", "tensors": "tensors.pt", "package": "ab12.pt2", "key": "", "freeze": false,
     "against": "", "options": {}, "log": "x.log", "gpu": 0}
    {"id": 2, "progress": "exporting"}
    {"id": 2, "package": "ab12.pt2", "seconds": 8.5}
    {"id": 2, "error": "one line", "kind": "mismatch", "details": "last lines of the log"}

With ``"export": {"results": [0], "parameters": ["fc.weight"], "targets": ["native"], "updatable": false}`` a trace
becomes a package of a whole model, as ``torchcc.export`` writes them.

``kind`` is ``mismatch`` (the trace or the compiled code gives other results than recorded), ``export``, ``compile``,
``slower`` (than the package ``against``, or than the operators themselves), ``argument`` or ``write``. The answer has
``speedup`` when there is ``against``, and ``slower``, a text, when the operators themselves should run in place of the
package.

It ends with its standard input or its parent, at once, with all processes that it started. Everything that Inductor and
the C++ compiler print goes to the log file.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch.export import ExportedProgram

from torchcc import _torch, cache, gradients, paths, trace_compiler, trace_exporter, workers
from torchcc.errors import ArgumentError, CompileError, Error
from torchcc.recording import RefusedError


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Sends everything that this process and its children print to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    start = time.monotonic()
    log = Path(request["log"])
    try:
        with _output_to(log):
            for file in request["imports"]:
                workers.load_extension(Path(file))
            program = _torch.load(request["program"])
            if request["train"]:
                return {"id": request["id"], **_training(program, request), "seconds": time.monotonic() - start}
            if request["sources"]:
                compiled = _torch.generate(
                    program, request["options"], Path(request["sources"]), request["weights"], request["isa"]
                )
            else:
                compiled = _torch.compile(
                    program,
                    request["options"],
                    request["into_outputs"],
                    weights=request["weights"],
                    isa=request["isa"],
                )
        return {
            "id": request["id"],
            "files": compiled.files,
            "exclusive": compiled.exclusive,
            "seconds": time.monotonic() - start,
        }
    except Exception as error:
        with log.open("a") as file:
            traceback.print_exc(file=file)
        first = str(error).splitlines()[0] if str(error) else ""
        return {"id": request["id"], "error": f"{type(error).__name__}: {first}"}


def _training(program: ExportedProgram, request: Mapping[str, Any]) -> dict[str, Any]:
    compiled = gradients.compile(program, request["weights"], request["options"], request["isa"], kind=request["train"])
    return {
        "files": compiled.forward.files,
        "files_backward": compiled.backward.files,
        "exclusive": compiled.forward.exclusive or compiled.backward.exclusive,
        "description": compiled.description,
    }


def _answer_trace(request: Mapping[str, Any], send: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    start = time.monotonic()

    def tell(title: str) -> None:
        send({"id": request["id"], "progress": title})

    package, log = Path(request["package"]), Path(request["log"])
    gpu = request.get("gpu")
    tell("starting")
    try:
        with _output_to(log), contextlib.nullcontext() if gpu is None else torch.cuda.device(gpu):
            try:
                if "export" in request:
                    trace_exporter.export_trace(request, package, tell)
                    measured = trace_compiler.Measured()
                else:
                    measured = _compile_trace(request, package, tell)
            except RefusedError as error:
                print(error)
                if error.__cause__:
                    traceback.print_exception(error.__cause__)
                raise
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        kind, reason = _classify(error)
        return {"id": request["id"], "error": reason, "kind": kind, "details": _tail(log)}
    finally:
        if gpu is not None:
            gc.collect()
            torch.cuda.empty_cache()  # the program may need it
    answer = {"id": request["id"], "package": str(package), "seconds": time.monotonic() - start}
    if measured.speedup is not None:
        answer["speedup"] = measured.speedup
    if measured.slower:
        answer["slower"] = measured.slower
    return answer


def _compile_trace(request: Mapping[str, Any], package: Path, tell: Callable[[str], None]) -> trace_compiler.Measured:
    cache.limit()  # refused now rather than after the work
    cache.make_folder(package.parent)
    job = trace_compiler.Request(
        trace=Path(request["trace"]),
        tensors=Path(request["tensors"]),
        package=package,
        key=request["key"],
        freeze=request["freeze"],
        against=request.get("against", ""),
        options=request.get("options", {}),
        threads=request.get("threads", 1),
    )
    with cache.temporary_folder(package.parent) as work, _temporary_files_in(work):
        measured = trace_compiler.compile_trace(job, work, tell)
    cache.evict(keep=package)
    return measured


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Lets the C++ compiler put its temporary files into a folder that goes away with this process.

    Not where there is a GPU: the processes that compile kernels for it take the folder over, and outlive the request.
    """
    if torch.cuda.is_available():
        yield
        return
    tempfile.gettempdir()  # which stays what it is: Inductor keeps precompiled headers there
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    _folders.add(folder.parent)
    try:
        yield
    finally:
        _folders.discard(folder.parent)
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _classify(error: BaseException) -> tuple[str, str]:
    """The kind of an error and one line about it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = "; ".join(lines[:2])[:500]
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        for phrase in ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed"):
            if phrase in str(cause):
                return "write", phrase
    if isinstance(error, OSError):
        return "write", f"{type(error).__name__}: {line}"
    if isinstance(error, CompileError) and not hasattr(error, "kind"):
        return "compile", line
    if isinstance(error, Error):
        return getattr(error, "kind", "write" if isinstance(error, ArgumentError) else "export"), line
    return "compile", f"{type(error).__name__}: {line}"


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    except OSError:
        return ""


# Folders that have temporary folders of this process in them, to be removed when it is ended.
_folders: set[Path] = set()


def _end() -> None:
    """Ends this process and all that it started, in the middle of whatever they do, and removes what they leave."""
    group = os.getpgid(0)
    unfinished = [str(path) for folder in tuple(_folders) for path in folder.glob(f"{paths.TEMPORARY}{os.getpid()}-*")]
    with contextlib.suppress(OSError):
        # By a process of its own, since this one could write again before it is gone.
        subprocess.Popen(
            ["/bin/sh", "-c", 'kill -9 "-$1"; shift; rm -rf -- "$@"', "sh", str(group), *unfinished],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(2)
    os.killpg(group, signal.SIGKILL)


def _read(requests: IO[str], lines: queue.SimpleQueue[str]) -> None:
    for line in requests:
        lines.put(line)
    _end()


def _watch_parent(parent: int) -> None:
    """The pipe alone does not show that the parent is gone: other children of it may hold it open."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _end()


def main(requests: IO[str], answers: IO[str]) -> None:
    """Serves requests; does not return."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # so that the processes to end are ours
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()

    def send(answer: Mapping[str, Any]) -> None:
        try:
            print(json.dumps(answer), file=answers, flush=True)
        except OSError:
            _end()

    while True:
        request = json.loads(lines.get())
        send(_answer_trace(request, send) if "trace" in request else _answer(request))


if __name__ == "__main__":
    # Nothing but answers may reach the pipe, whatever a library prints.
    pipe = os.dup(1)
    os.dup2(2, 1)
    main(sys.stdin, io.TextIOWrapper(os.fdopen(pipe, "wb"), write_through=True))
