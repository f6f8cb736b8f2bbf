"""Signatures of compiled traces: the sizes that are free, and what the code takes for granted about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram

from torchcc import _torch, trace
from torchcc.recording import RefusedError, one_line
from torchcc.signature import Guard, Signature, Symbol, Value
from torchcc.trace import Trace


def of_program(
    recorded: Trace, given: Sequence[int], program: ExportedProgram, on_gpu: Sequence[int] = ()
) -> Signature:
    """The signature of an exported trace.

    Args:
        recorded: The trace.
        given: Positions of the inputs that the program takes.
        program: The program.
        on_gpu: Of these, the ones that its code takes on the GPU, wherever the program does.

    Raises:
        RefusedError: The operators do something else for other sizes, or on a condition that cannot be checked.
    """
    forms = dict(zip(given, _torch.placeholders(program), strict=True))
    names = _names(recorded, forms)
    inputs = [_input(recorded, names, position, forms[position]) for position in given]
    inputs = [
        replace(one, device="cuda") if position in on_gpu else one for position, one in zip(given, inputs, strict=True)
    ]
    results = _torch.outputs(program)
    single = len(results) == 1
    outputs = [_value(names, "out" if single else f"out{i}", one) for i, one in enumerate(results)]
    ranges = _torch.size_ranges(program)
    symbols = tuple(Symbol(name, *ranges.get(symbol, (2, None))) for symbol, name in names.items())
    return Signature(recorded.name, tuple(inputs), tuple(outputs), symbols, _guards(program.graph, names, symbols))


def of_halves(recorded: Trace, halves: _torch.Halves) -> tuple[Signature, Signature]:
    """The signatures of both functions of a trace that needs gradients.

    Raises:
        RefusedError: As :func:`of_program`.
    """
    forward, backward = (
        [node.meta["val"] for node in half.graph.nodes if node.op == "placeholder"]
        for half in (halves.forward, halves.backward)
    )
    results, gradients = (
        [node.meta["val"] for node in _torch.flatten(half.graph.output_node().args)]
        for half in (halves.forward, halves.backward)
    )
    names = _names(recorded, dict(enumerate(forward)))
    ranges = _torch.symbol_ranges(names, forward)
    symbols = tuple(Symbol(name, *ranges[symbol]) for symbol, name in names.items())
    guards = _guards(halves.forward.graph, names, symbols)
    taken = [
        *(f"saved{position}" for position in range(len(halves.saved))),
        *(f"grad_out{output}" for output, _ in halves.tangents),
    ]
    return (
        Signature(
            recorded.name,
            tuple(_input(recorded, names, position, form) for position, form in enumerate(forward)),
            tuple(_value(names, f"out{position}", one) for position, one in enumerate(results)),
            symbols,
            guards,
        ),
        Signature(
            f"{recorded.name}_backward",
            tuple(_value(names, name, form) for name, form in zip(taken, backward, strict=True)),
            tuple(
                _value(names, f"grad_in{position}", one)
                for position, one in zip(halves.gradients, gradients, strict=True)
            ),
            symbols,
        ),
    )


def _names(recorded: Trace, forms: Mapping[int, torch.Tensor]) -> dict[Any, str]:
    """Names of the symbols of the sizes that are free, by the fake tensors of the inputs."""
    names: dict[Any, str] = {}
    for one in recorded.free:
        size = forms[one.input].shape[one.dim]
        known = _torch.known_size(size)
        if known is not None:
            name = recorded.inputs[one.input].name
            raise RefusedError("sizes", f"the operators do something else unless size {one.dim} of {name} is {known}")
        symbol = _torch.plain_symbol(size)
        if symbol is not None:
            names.setdefault(symbol, recorded.symbols[one.symbol])
    return names


def _input(recorded: Trace, names: Mapping[Any, str], position: int, form: torch.Tensor) -> Value:
    return _value(names, recorded.inputs[position].name, form, position in recorded.mutated)


def _value(names: Mapping[Any, str], name: str, form: torch.Tensor, mutated: bool = False) -> Value:
    read = tuple(_torch.read_size(size, names) for size in form.shape)
    if None in read:
        raise RefusedError("sizes", f"sizes of {name} follow from no size that is there alone: {list(form.shape)}")
    return Value(name, trace.dtype_name(form.dtype), read, mutated=mutated, device=form.device.type)


def _guards(graph: Any, names: Mapping[Any, str], symbols: Sequence[Symbol]) -> tuple[Guard, ...]:
    """What a graph takes for granted beside the ranges of the symbols."""
    if not names:
        return ()
    try:
        found = [Guard(*condition) for condition in _torch.conditions(graph, names)]
    except ValueError as error:
        raise RefusedError("sizes", one_line(error)) from error
    ranges = {symbol.name: symbol for symbol in symbols}
    return tuple(guard for guard in found if not _is_range(guard, ranges))


def _is_range(guard: Guard, ranges: Mapping[str, Symbol]) -> bool:
    """Whether the range of a symbol says the same, or more."""
    below = int(guard.relation == "<")
    if guard.relation not in ("<", "<="):
        return False
    if isinstance(guard.left, str) and isinstance(guard.right, int):
        most = ranges[guard.left].maximum
        return most is not None and most + below <= guard.right
    if isinstance(guard.left, int) and isinstance(guard.right, str):
        return guard.left + below <= ranges[guard.right].minimum
    return False
