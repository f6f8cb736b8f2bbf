"""Exports what C++ code captured: a package of a whole model, as :func:`torchcc.export` writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from torchcc import _torch, package, replay
from torchcc.errors import ArgumentError
from torchcc.export_settings import ExportSettings
from torchcc.function_compiler import compile_functions
from torchcc.program_signature import signature_of
from torchcc.recording import Recording, RefusedError, check_replay, load, one_line
from torchcc.replay import Replay
from torchcc.targets import check_targets, refuse_sources


def export_trace(request: Mapping[str, Any], file: Path, tell: Callable[[str], None]) -> None:
    """Serves one request of ``torchcc::export_function``; see :mod:`torchcc.compiler`.

    Raises:
        RefusedError: The trace gives other results than recorded, or torch.export cannot take it, or the options make
            no sense.
        CompileError: The compiler failed, or its code gives other results than the graph.
        OSError: The file cannot be written.
    """
    wanted = request["export"]
    settings = ExportSettings(wanted["targets"], wanted["updatable"], options=request["options"])
    try:
        check_targets(settings.targets)
        refuse_sources(settings.targets)
        _torch.check_options(settings.options)
    except ArgumentError as error:
        raise RefusedError("argument", one_line(error)) from error
    tell("checking the recording")
    recording = load(Path(request["trace"]), Path(request["tensors"]))
    with recording.trace.environment.applied():
        check_replay(recording)
        tell("exporting")
        program = _export(recording, wanted["results"], set(wanted["parameters"]))
    name = recording.trace.name
    function = package.Function(signature_of(program, name), program, (), group=name)
    compile_functions(file, [function], settings, lambda title, done, total: tell(title))


def _export(recording: Recording, results: Sequence[int], parameters: set[str]) -> ExportedProgram:
    held = {position: one for position, one in enumerate(recording.trace.inputs) if one.kind != "argument"}
    names = {position: one.name for position, one in held.items()}
    fixed = {
        position: torch.nn.Parameter(tensor) if names[position] in parameters else tensor
        for position in held
        for tensor in [replay.copy_of(recording.inputs[position])]
    }
    given = [position for position in range(len(recording.inputs)) if position not in held]
    arguments = [recording.trace.inputs[position].name for position in given]
    module = _as_model(Replay(recording.trace, fixed, names), arguments, results)
    try:
        return _torch.export(
            module, tuple(replay.copy_of(recording.inputs[position]) for position in given), None, prefer_general=False
        )
    except Exception as error:
        raise RefusedError("export", one_line(error)) from error


def _as_model(module: Replay, arguments: Sequence[str], results: Sequence[int]) -> torch.nn.Module:
    """The replay with the arguments' names, and with results in the order of the function's."""
    original = type(module)

    def forward(self: torch.nn.Module, *inputs: torch.Tensor) -> Any:
        outputs = original.forward(self, *inputs)  # type: ignore[arg-type]
        chosen = tuple(outputs[position] for position in results)
        return chosen[0] if len(chosen) == 1 else chosen

    return _torch.with_forward(module, forward, arguments)
