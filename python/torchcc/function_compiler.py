"""Compiles functions for targets, compares the code with their graphs, and writes packages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch.export import ExportedProgram

from torchcc import _torch, agreement, gradients, package, package_writer, toolchain, workers
from torchcc.errors import ArgumentError, CaptureError, message
from torchcc.export_settings import ExportSettings
from torchcc.targets import check_targets


@dataclass(frozen=True)
class _Task:
    """What to compile: the position of a function, what it is for, the CPU features needed, and the worker's job."""

    position: int
    target: str
    features: tuple[str, ...]
    job: workers.Job


def compile_functions(
    file: Path,
    functions: Sequence[package.Function],
    settings: ExportSettings,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, str]:
    """Compiles functions for targets, compares the code with the graphs, and writes a package.

    Variants that the functions have stay; one for the same target and of the same kind goes. Targets that are files
    beside the package are left to others.

    Returns:
        How the code of each function and target was checked.

    Raises:
        ArgumentError: A target makes no sense.
        CaptureError: PyTorch cannot store a graph.
        CompileError: The compiler failed, or its code gives other results than the graph.
        OSError: The file cannot be written.
    """
    tell = progress or (lambda title, done, total: None)
    isas = check_targets(settings.targets)
    if isas:
        toolchain.require_compiler()
    with tempfile.TemporaryDirectory(prefix="torchcc-") as folder:
        tasks = [
            task
            for position, function in enumerate(functions)
            for task in _tasks(position, function, Path(folder), isas, settings)
        ]
        results = _compile([task.job for task in tasks], tell)
        variants: list[list[package.Variant]] = [[] for _ in functions]
        training: list[list[package.Training]] = [[] for _ in functions]
        checks: dict[str, str] = {}
        for number, (task, result) in enumerate(zip(tasks, results, strict=True)):
            tell(f"verifying {task.job.title}", len(tasks) + number, 2 * len(tasks))
            function = functions[task.position]
            assert function.program is not None
            title = f"{function.signature.name}, {task.target}"
            if task.job.train:
                trained, checked = _verified_training(function, task.job, result)
                training[task.position].append(replace(trained, target=task.target, cpu_features=task.features))
                checks[title] = f"{checks[title]}; {checked} ({task.job.train})"
            else:
                variant, checks[title] = _verified(function, task.job, result)
                variants[task.position].append(replace(variant, target=task.target, cpu_features=task.features))
        whole = [
            replace(
                one,
                variants=package.joined(one.variants, own_variants),
                training=package.joined(one.training, own_training),
            )
            for one, own_variants, own_training in zip(functions, variants, training, strict=True)
        ]
        package_writer.write(file, whole)
    return checks


def _tasks(
    position: int, function: package.Function, work: Path, isas: Sequence[str], settings: ExportSettings
) -> list[_Task]:
    """What to compile of a function, whose graph is stored for the workers."""
    name, program = function.signature.name, function.program
    assert program is not None
    _check_devices(name, program, isas)
    if not isas:
        return []
    if settings.train:
        gradients.require(f"function {name}", program, function.signature)
    saved = work / f"{position}.pt2"
    with package_writer.storing([name]):
        _torch.save(_torch.without_own_containers(program), saved)
    kinds = ["", *(gradients.kinds(program) if settings.train else [])]
    tasks = []
    for isa in isas:
        target, features = _torch.target(_torch.device_of(program), isa, settings.options)
        for kind in kinds:
            job = _job(function, saved, isa, target, kind, settings)
            tasks.append(_Task(position, target, features, job))
    return tasks


def _compile(jobs: Sequence[workers.Job], tell: Callable[[str, int, int], None]) -> list[workers.Result]:
    """Compiles; that is the first half of what is told, and verifying the second."""
    done = [0]

    def finished(job: workers.Job, result: workers.Result) -> None:
        done[0] += 1
        tell(f"compiled {job.title} in {result.seconds:.0f} s", done[0], 2 * len(jobs))

    tell("compiling", 0, 2 * len(jobs))
    return workers.compile_all(jobs, finished)


def _verified(function: package.Function, job: workers.Job, result: workers.Result) -> tuple[package.Variant, str]:
    """The code for calls without gradients, and how it was compared with the graph."""
    program = function.program
    assert program is not None
    library = package.library(result.files)
    toolchain.require_shared_libstdcxx(library)
    checked = agreement.compare(function, library, job.weights)
    variant = package.Variant(
        files=result.files,
        exclusive=result.exclusive,
        weights=job.weights,
        uncapturable=_torch.uncapturable(program),
    )
    return variant, checked


def _verified_training(
    function: package.Function, job: workers.Job, result: workers.Result
) -> tuple[package.Training, str]:
    """The code for gradients of some kind, and how it was compared with the graph's."""
    one = gradients.training(job, result)
    return one, gradients.check_function(function, gradients.code(one), one.weights)


def _check_devices(name: str, program: ExportedProgram, targets: Sequence[str]) -> None:
    """Refuses what there is no code for: several GPUs in one model, and a choice of CPU code for one on a GPU."""
    gpus = sorted(_torch.gpus(program))
    if len(gpus) > 1:
        raise CaptureError(
            message(
                f"function {name}: its tensors are on several GPUs",
                expected="a model on one GPU",
                got=", ".join(gpus),
                fix="move the module and the example arguments to one device before they are exported",
            )
        )
    if gpus and any(targets):
        raise ArgumentError(
            message(
                f"function {name}: the target '{next(filter(None, targets))}' is for models on the CPU",
                expected="native, or portable, for a model on a GPU",
                got=", ".join(filter(None, targets)),
                fix="leave the target out",
            )
        )


def _job(
    function: package.Function, saved: Path, isa: str, target: str, kind: str, settings: ExportSettings
) -> workers.Job:
    """What to compile for a target: the code for calls without gradients, or the code that gives some ``kind``."""
    program = function.program
    assert program is not None
    _, written = _torch.mutations(program)
    updatable = settings.updatable or settings.train
    weights = _torch.weight_names(program) if updatable else sorted(written)
    suffix = f", gradients of {kind}" if kind else ""
    return workers.Job(
        title=f"function {function.signature.name} for {target}{suffix}",
        program=str(saved),
        into_outputs=False,
        # On GPUs, Inductor would keep 16-bit weights as float32 where its kernels compute with that.
        options={
            **({} if updatable or _torch.device_of(program) == "cuda" else {"freezing": True}),
            **settings.options,
        },
        imports=workers.absolute(settings.imports) if _torch.uses_custom_operators(program) else (),
        log=f"{saved.with_suffix('')}-{isa}{kind and f'-{kind}'}.log",
        weights=tuple(weights),
        isa=isa,
        train=kind,
    )
