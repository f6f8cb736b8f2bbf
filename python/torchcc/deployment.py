"""What packages do on this machine: ``torchcc verify`` and ``torchcc bench``."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from torchcc import _torch, agreement, calling, compare, gradients, package, package_reader, packaging
from torchcc.errors import ArgumentError, CompileError, PackageError, message

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        function: The function's name.
        subject: What was compared with the graph in Python.
        outcome: ``"equal"``, ``"differs"`` or ``"skipped"``.
        detail: What was compared, what differs, or why nothing was compared.
    """

    function: str
    subject: str
    outcome: str
    detail: str


@dataclass(frozen=True)
class Timing:
    """Times of a function in C++.

    Attributes:
        function: The function's name.
        backend: ``"compiled"`` or ``"portable"``.
        target: What the code was compiled for; empty for portable.
        nanoseconds: Median time per call.
        load_seconds: How long the package took to load.
        threads: Threads of an operator.
        reasons: Why compiled code was passed over.
    """

    function: str
    backend: str
    target: str
    nanoseconds: float
    load_seconds: float
    threads: int
    reasons: list[str] = field(default_factory=list)


def verify(file: Path, operators: Sequence[Path] = (), progress: Progress | None = None) -> list[Check]:
    """Compares all that a package can run here with its graphs, run by Python, on random inputs within the ranges.

    Raises:
        PackageError: The package cannot be read.
        CompileError: The program that calls it cannot be built.
    """
    tell = progress or (lambda title, done, total: None)
    package_reader.read_manifest(file)
    packaging.load_extensions(operators)
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="torchcc-") as folder:
        functions = package_reader.read(file, Path(folder))
        for position, function in enumerate(functions):
            for check in _checks(file, function, operators):
                checks.append(check)
                tell(f"{check.function}, {check.subject}: {check.outcome}", position, len(functions))
    return checks


def _checks(file: Path, function: package.Function, operators: Sequence[Path]) -> Iterator[Check]:
    name = function.signature.name
    if function.program is None:
        yield Check(name, "everything", "skipped", "the package has no graph of it to compare with")
        return
    fits = False
    for variant in function.variants:
        kind = f"{variant.target}, torch {variant.torch}" + (", weights as inputs" if variant.weights else "")
        if reason := package.misfit(variant):
            yield Check(name, kind, "skipped", reason)
            continue
        fits = True
        try:
            compared = agreement.compare(function, package.library(variant.files), variant.weights)
            yield Check(name, kind, "equal", compared)
        except CompileError as error:
            yield Check(name, kind, "differs", str(error))
    for training in function.training:
        kind = f"{training.target}, torch {training.torch}, for training"
        if reason := package.misfit(training):
            yield Check(name, kind, "skipped", reason)
            continue
        try:
            compared = gradients.check_function(function, gradients.code(training), training.weights)
            yield Check(name, kind, "equal", compared)
        except CompileError as error:
            yield Check(name, kind, "differs", str(error))
    yield _check_cpp(file, function, True, operators)
    if fits:
        yield _check_cpp(file, function, False, operators)


def _check_cpp(file: Path, function: package.Function, portable: bool, operators: Sequence[Path]) -> Check:
    """The C++ runtime against the graph in Python."""
    assert function.program is not None
    name = function.signature.name
    subject = "C++, portable" if portable else "C++, compiled"
    calls, wanted, skipped = [], [], 0
    graph = _torch.as_pure_function(function.program)
    for seed, values in enumerate(agreement.size_sets(function)):
        leaves = agreement.inputs(function, values, torch.Generator().manual_seed(2000 + seed))
        given = agreement.tensors(function, leaves)
        try:
            results, _ = graph(copy.deepcopy(leaves))
        except Exception:
            skipped += 1  # the graph itself cannot do this size
            continue
        calls.append(given)
        wanted.append([one.cpu() for one in agreement.as_tensors(results)])
    if not calls:
        return Check(name, subject, "skipped", "the graph refuses all sizes that were tried")
    # Buffers that a call writes into are there for the next: each call gets a process of its own.
    _, written = _torch.mutations(function.program)
    batches = [[call] for call in calls] if written else [calls]
    got: list[list[torch.Tensor]] = []
    try:
        for batch in batches:
            results, report = calling.call_cpp(file, name, batch, portable=portable, operators=operators)
            got.extend(results)
            if not portable and (report["backend"] != "compiled" or report["portable_calls"]):
                reasons = [*report["reasons"], report["portable_reason"]]
                return Check(name, subject, "skipped", "the graph ran: " + "; ".join(filter(None, reasons)))
    except (ArgumentError, PackageError, CompileError) as error:
        return Check(name, subject, "differs", str(error))
    random = _torch.draws_random_numbers(function.program)
    for call, results, expected in zip(calls, got, wanted, strict=True):
        for value, one, other in zip(function.signature.outputs, results, expected, strict=True):
            if compare.same_form(one, other) and (random or agreement.close(one, other)):
                continue
            sizes = ", ".join(str(list(tensor.shape)) for tensor in call)
            detail = compare.difference(one, other)
            return Check(name, subject, "differs", f"output '{value.name}' for inputs of sizes {sizes}: {detail}")
    text = f"{len(calls)} sets of sizes" + (", shapes only: it draws random numbers" if random else "")
    return Check(name, subject, "equal", text + (f"; the graph refused {skipped}" if skipped else ""))


def bench(
    file: Path,
    function: str | None,
    seconds: float = 1.0,
    threads: int | None = None,
    operators: Sequence[Path] = (),
    progress: Progress | None = None,
) -> list[Timing]:
    """Measures compiled code and the portable graph in C++, on the example inputs.

    Args:
        file: The package.
        function: Name of the function; all by default.
        seconds: How long to measure each.
        threads: Threads of an operator; by default as many as there are cores.
        operators: Shared libraries with operators that the graphs use.
        progress: Called with a title, the steps done and the steps in all.

    Raises:
        ArgumentError: There is no such function, or a number makes no sense.
        PackageError: The package cannot be read.
        CompileError: The program that calls it cannot be built.
    """
    if seconds <= 0 or (threads is not None and threads < 1):
        raise ArgumentError(
            message(
                "torchcc bench: there is nothing to measure",
                expected="--seconds above 0, and --threads of at least 1",
                got=f"--seconds {seconds:g}" + ("" if threads is None else f" --threads {threads}"),
                fix="correct the numbers",
            )
        )
    tell = progress or (lambda title, done, total: None)
    package_reader.read_manifest(file)
    packaging.load_extensions(operators)
    flags = ["--seconds", str(seconds), *(["--threads", str(threads)] if threads else [])]
    timings: list[Timing] = []
    with tempfile.TemporaryDirectory(prefix="torchcc-") as folder:
        functions = {one.signature.name: one for one in package_reader.read(file, Path(folder))}
        wanted = [calling.choose(file, list(functions), function)] if function else list(functions)
        for position, name in enumerate(wanted):
            tell(f"measuring {name}", position, len(wanted))
            call = _example(file, functions[name])
            for portable in (False, True):
                if portable and timings and timings[-1].backend == "portable" and timings[-1].function == name:
                    continue  # there was no compiled code that fits
                if portable and functions[name].program is None:
                    continue
                _, report = calling.call_cpp(file, name, [call], *flags, portable=portable, operators=operators)
                keys = ("backend", "target", "nanoseconds", "load_seconds", "threads")
                reasons = [] if portable else report["reasons"]
                timings.append(Timing(name, **{key: report[key] for key in keys}, reasons=reasons))
    return timings


def _example(file: Path, function: package.Function) -> list[torch.Tensor]:
    if function.program is None:
        raise ArgumentError(
            message(
                f"{file}: function '{function.signature.name}' has no example inputs",
                expected="a package with its graph",
                got="compiled code alone",
                fix="name another function, or export it again",
            )
        )
    leaves = _torch.examples(function.program)
    if not leaves:
        values = next(iter(agreement.size_sets(function)))
        leaves = agreement.inputs(function, values, torch.Generator().manual_seed(0))
    return agreement.tensors(function, leaves)
