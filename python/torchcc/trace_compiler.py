"""From a trace to a package: run it again, export, compile, compare with what was recorded, write."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from torchcc import _torch, package, package_reader, package_writer, replay, toolchain, trace_signature, training
from torchcc.errors import Error
from torchcc.recording import Recording, RefusedError, Run, check_artifact, check_replay, load, one_line
from torchcc.replay import Replay
from torchcc.trace import Trace

# A frozen package must be this much faster than the plain one: it costs memory, and a change of weights ends it.
_WORTH = 1.03

# Compiled code counts as slower than the operators themselves when it takes this many times as long; nearer ones may be
# chance. Calls shorter than so many seconds, or so many for each operator, are not judged: running the operators from
# Python costs too much of it.
_LOSS = 1.05
_JUDGED = 2e-4
_JUDGED_PER_OPERATOR = 2e-5

# Seconds of calls of one kind in a row.
_TURN = 0.01


@dataclass(frozen=True)
class Request:
    """What to compile.

    Attributes:
        trace: File of the trace.
        tensors: File of the recorded tensors.
        package: File to write.
        key: Text that the package keeps, for its readers.
        freeze: Make constants of the captured inputs that the operators do not write into.
        against: A package that this one must beat, or nothing.
        options: Inductor's options.
        threads: How many the program computes with, for measuring.
    """

    trace: Path
    tensors: Path
    package: Path
    key: str
    freeze: bool
    against: str
    options: Mapping[str, Any]
    threads: int = 1


@dataclass(frozen=True)
class Measured:
    """How fast a package is.

    Attributes:
        speedup: How many times faster than the package ``against`` it is, where one is given.
        slower: Why the operators themselves should run in its place; empty when it is faster.
    """

    speedup: float | None = None
    slower: str = ""


def compile_trace(request: Request, work: Path, tell: Callable[[str], None]) -> Measured:
    """Compiles a trace into a package.

    Args:
        request: What to compile.
        work: Folder for temporary files, on the file system of the package.
        tell: Called with what happens next.

    Raises:
        RefusedError: It cannot be compiled, gives other results than recorded, or is not worth it.
        OSError: A file cannot be written.
    """
    tell("checking the recording")
    recording = load(request.trace, request.tensors)
    try:
        _torch.check_options(request.options)
    except Error as error:
        raise RefusedError("compile", one_line(error)) from error
    if recording.trace.trains:
        return _compile_training(recording, request, work, tell)
    with recording.trace.environment.applied():
        shared = check_replay(recording)
        fixed = _fixed(recording.trace) if request.freeze else []
        if request.freeze and not fixed:
            raise RefusedError("slower", "it has no weights that could be packed")
        given = [position for position in range(len(recording.inputs)) if position not in fixed]
        if request.freeze and not given:
            raise RefusedError("slower", "it has no inputs but weights")  # Inductor fails without any
        built = _build(recording, request, work, fixed, shared, tell)
        tell("measuring")
        with _threads(request.threads):
            factor = speedup(recording, given, built.run, request.against, work) if request.against else None
            slower = why_eager(recording, given, built.run)
        if slower and request.freeze:
            raise RefusedError("slower", slower)
    tell("writing")
    _write(request, recording, given, built)
    return Measured(factor, slower)


def _compile_training(recording: Recording, request: Request, work: Path, tell: Callable[[str], None]) -> Measured:
    """The same for a trace that needs gradients.

    Random numbers are PyTorch's own unless the options say otherwise: with Inductor's, nothing could tell whether a
    backward that belongs to other numbers is right.
    """
    options = {**({"fallback_random": True} if recording.trace.random else {}), **request.options}
    with recording.trace.environment.applied():
        shared = check_replay(recording)
        tell("differentiating")
        try:
            halves = training.differentiate(recording, options)
        except Exception as error:
            raise RefusedError("export", one_line(error)) from error
        if recording.trace.free:
            trace_signature.of_halves(recording.trace, halves)  # before the time is spent on compiling
        given = range(len(recording.inputs))
        copied: Mapping[int, Sequence[int]] = {}
        while True:
            tell("compiling")
            forward, backward = (
                _compile_graph(half, count, options, Path(tempfile.mkdtemp(dir=work)), copies)
                for half, count, copies in (
                    (halves.forward, len(recording.trace.outputs) + halves.extras, copied),
                    (halves.backward, len(halves.gradients), halves.copied),
                )
            )
            tell("verifying")
            code = training.Code(
                halves,
                _torch.load_library(package.library(forward.files)),
                _torch.load_library(package.library(backward.files)),
                recording.tangents,
            )
            try:
                misplaced = {
                    **check_artifact(recording, given, code.run, shared, _same_numbers(recording.trace, options)),
                    **training.misplaced_extras(recording, code),
                }
            except RefusedError:
                if "max_fusion_size" in options:
                    raise
                # Fused, several scatter_adds of one backward may give wrong sums (torch 2.13).
                options["max_fusion_size"] = 1
                continue
            if not misplaced:
                break
            number, how = min(misplaced.items())
            # The strides that an output has for one size say nothing about others.
            if copied or (recording.trace.free and number < len(recording.trace.outputs)):
                raise RefusedError("mismatch", f"output {number} of the compiled code {how}")
            copied = {number: code.strides(recording, number) for number in misplaced}
        tell("measuring")
        with _threads(request.threads):
            slower = why_eager(recording, given, code.run)
    tell("writing")
    signatures = trace_signature.of_halves(recording.trace, halves)
    uncapturable = _torch.uncapturable(halves.forward, halves.backward)
    functions = [
        package.Function(
            signature,
            None,
            [package.Variant(one.files, exclusive=one.exclusive, uncapturable=uncapturable, **_target(recording))],
        )
        for signature, one in zip(signatures, (forward, backward), strict=True)
    ]
    extras = {
        package.TRACE: request.trace.read_text(),
        package.KEY: request.key,
        package.BACKWARD: training.description(halves),
    }
    package_writer.write(request.package, functions, extras, private=True)
    return Measured(None, slower)


def _target(recording: Recording) -> dict[str, Any]:
    """What the code is for, as a package states it; nothing for this machine's CPU, which is its default."""
    if not recording.trace.on_gpu:
        return {}
    target, features = _torch.target("cuda")
    return {"target": target, "cpu_features": features}


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Built:
    """Code of a program.

    Attributes:
        numbers: Positions of the inputs that are numbers, and that the code takes on the GPU.
        uncapturable: Why no CUDA graph can be made of it; else empty.
    """

    program: ExportedProgram
    compiled: _torch.Compiled
    run: Run
    numbers: Sequence[int]
    uncapturable: str


def _build(
    recording: Recording,
    request: Request,
    work: Path,
    fixed: Sequence[int],
    shared: Set[tuple[int, str]],
    tell: Callable[[str], None],
) -> _Built:
    """Exports, compiles and verifies.

    Numbers that are wanted on the GPU stay with the host where an operator needs one there, or where no CUDA graph can
    be made of the code anyway.

    Inductor may return the same memory twice where eager PyTorch does not (an addition of zeros that it leaves out),
    which shows when a caller writes into it, or choose other strides (for what was written through a permuted view);
    then a second round copies these outputs.
    """
    given = [position for position in range(len(recording.inputs)) if position not in fixed]
    tell("exporting")
    program = _export(recording, fixed)
    if recording.trace.free:
        trace_signature.of_program(recording.trace, given, program)  # before the time is spent on compiling
    numbers = () if fixed else recording.trace.device_numbers
    uncapturable = _torch.uncapturable(program, numbers=numbers)
    if uncapturable:
        numbers = ()
    copied: Mapping[int, Sequence[int]] = {}
    while True:
        tell("compiling")
        try:
            compiled = _compile(program, request, Path(tempfile.mkdtemp(dir=work)), copied, numbers)
        except _torch.NeededOnHostError as error:
            uncapturable = f"{error} takes a number that changes from call to call, which the host reads"
            numbers = ()
            continue
        tell("verifying")
        run = _with_numbers(_torch.load_library(package.library(compiled.files)), numbers)
        misplaced = check_artifact(recording, given, run, shared, _same_numbers(recording.trace, request.options))
        if not misplaced:
            return _Built(program, compiled, run, numbers, uncapturable)
        if copied or recording.trace.free:
            number, how = min(misplaced.items())
            raise RefusedError("mismatch", f"output {number} of the compiled code {how}")
        copied = {number: recording.form(number).strides for number in misplaced}


def _with_numbers(run: Run, numbers: Sequence[int]) -> Run:
    """``run``, which gets some of its inputs on the GPU."""
    if not numbers:
        return run

    def moved(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return run(
            [one.to("cuda", non_blocking=True) if position in numbers else one for position, one in enumerate(inputs)]
        )

    return moved


def _fixed(recorded: Trace) -> list[int]:
    return [
        position
        for position, one in enumerate(recorded.inputs)
        if one.kind != "argument" and position not in recorded.mutated
    ]


def _export(recording: Recording, fixed: Sequence[int]) -> ExportedProgram:
    module = Replay(recording.trace, {position: replay.copy_of(recording.inputs[position]) for position in fixed})
    given = [position for position in range(len(recording.inputs)) if position not in fixed]
    args = tuple(replay.copy_of(recording.inputs[position]) for position in given)
    try:
        program = _torch.export(module, args, _dynamic(recording.trace, fixed, given), prefer_general=False)
    except Exception as error:
        raise RefusedError("export", one_line(error)) from error
    program.example_inputs = None  # they would be written into the package, weights included
    for position, result in enumerate(_torch.outputs(program)):
        is_sized = isinstance(result, torch.Tensor) and (
            recording.trace.free or all(isinstance(size, int) for size in result.shape)
        )
        if not is_sized:
            raise RefusedError("export", f"output {position} has sizes that depend on data")
    return program


def _dynamic(recorded: Trace, fixed: Sequence[int], given: Sequence[int]) -> Any:
    """The free sizes as torch.export takes them: the arguments are a tuple, ``*inputs``."""
    if not recorded.free:
        return None
    if any(one.input in fixed for one in recorded.free):
        raise RefusedError("slower", "weights whose sizes vary cannot be packed")
    dims: dict[int, dict[int, Any]] = {position: {} for position in given}
    for one in recorded.free:
        dims[one.input][one.dim] = Dim.AUTO
    return (tuple(dims[position] for position in given),)


def _same_numbers(recorded: Trace, options: Mapping[str, Any]) -> bool:
    """Whether compiled code gives the recorded values, and not other random ones."""
    return not recorded.random or bool(options.get("fallback_random"))


def _compile(
    program: ExportedProgram,
    request: Request,
    work: Path,
    copied: Mapping[int, Sequence[int]],
    numbers: Sequence[int],
) -> _torch.Compiled:
    options = {**({"freezing": True} if request.freeze else {}), **request.options}
    return _refusing(
        lambda: _torch.compile(program, options, into_outputs=False, folder=work, copied=copied, numbers=numbers)
    )


def _compile_graph(
    module: Any, count: int, options: Mapping[str, Any], work: Path, copied: Mapping[int, Sequence[int]]
) -> _torch.Compiled:
    return _refusing(lambda: _torch.compile_graph(copy.deepcopy(module), options, count, folder=work, copied=copied))


def _refusing(compile: Callable[[], _torch.Compiled]) -> _torch.Compiled:
    try:
        toolchain.require_compiler()
        compiled = compile()
        toolchain.require_shared_libstdcxx(package.library(compiled.files))
    except (OSError, _torch.NeededOnHostError):
        raise
    except Exception as error:
        raise RefusedError("compile", one_line(error)) from error
    return compiled


def speedup(recording: Recording, given: Sequence[int], run: Run, against: str, work: Path) -> float:
    """How many times faster ``run`` is than a package, on the recorded inputs.

    Raises:
        RefusedError: Not enough.
    """
    with tempfile.TemporaryDirectory(dir=work) as folder:
        other = _torch.load_library(package_reader.extract_library(Path(against), Path(folder)))
        everything = range(len(recording.inputs))
        seconds, other_seconds = _fastest(recording, (run, given), (other, everything))
    speedup = other_seconds / seconds
    if speedup < _WORTH:
        raise RefusedError("slower", f"frozen code is {speedup:.2f} times as fast as the plain code")
    return speedup


def why_eager(recording: Recording, given: Sequence[int], run: Run) -> str:
    """Says that the recorded operators are faster than ``run``, if they are, on the recorded inputs; else nothing."""
    cases = (run, given), (recording.eager(), range(len(recording.inputs)))
    least = min(_JUDGED, _JUDGED_PER_OPERATOR * len(recording.trace.ops))
    with torch.no_grad():
        for seconds in (0.0, 1.0):  # a few calls show which functions are short, and no more
            compiled, operators = _fastest(recording, *cases, seconds=seconds)
            if compiled < least:
                return ""
    if compiled < _LOSS * operators:
        return ""
    return f"eager is faster: PyTorch's operators take {operators * 1e6:.0f} us, compiled code {compiled * 1e6:.0f} us"


def _fastest(recording: Recording, *cases: tuple[Run, Sequence[int]], seconds: float = 1.0) -> list[float]:
    """Seconds of the fastest call of each, in turns, within ``seconds``: other programs only ever add time.

    Few calls compare nothing: for stretches of many milliseconds a machine may leave one core to two threads. A turn is
    several calls, since the first ones find the caches filled by the others.
    """
    inputs = [[replay.copy_of(recording.inputs[position]) for position in given] for _, given in cases]
    times: list[list[float]] = [[] for _ in cases]
    end = time.perf_counter() + seconds
    while len(times[0]) < 7 or (time.perf_counter() < end and len(times[0]) < 2000):
        for (run, _), tensors, spent in zip(cases, inputs, times, strict=True):
            begin = start = time.perf_counter()
            while start - begin < (_TURN if seconds else 0.0) or start == begin:
                run(tensors)
                if recording.trace.on_gpu:
                    torch.cuda.synchronize()
                now = time.perf_counter()
                spent.append(now - start)
                start = now
    return [min(spent) for spent in times]


def _write(
    request: Request,
    recording: Recording,
    given: Sequence[int],
    built: _Built,
) -> None:
    function = package.Function(
        signature=trace_signature.of_program(recording.trace, given, built.program, built.numbers),
        program=None if request.freeze else _torch.storable(built.program),
        variants=[
            package.Variant(
                built.compiled.files,
                exclusive=built.compiled.exclusive,
                uncapturable=built.uncapturable,
                **_target(recording),
            )
        ],
    )
    extras = {package.TRACE: request.trace.read_text(), package.KEY: request.key}
    package_writer.write(request.package, [function], extras, private=True)
