"""Signatures of exported programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from torchcc import _torch, sizes
from torchcc.errors import CaptureError, message, reason
from torchcc.signature import Signature, Symbol, Value


def signature_of(program: ExportedProgram, name: str, names: Mapping[Any, str] | None = None) -> Signature:
    """The signature of an exported program.

    Args:
        program: From ``torch.export``, or loaded from a file.
        name: The function's name.
        names: Names of symbols; the others are named after the input in which they are first.

    Raises:
        CaptureError: C++ could not call it.
    """
    input_names, output_names = _torch.leaf_names(program)
    written = _written(program, name)
    known = dict(names or {})
    leaves = _torch.input_leaves(program)
    mutated = {input_names[position] for position in _torch.positions(program, written)}
    for input_name, leaf in zip(input_names, leaves, strict=True):
        for position, size in enumerate(leaf.shape if isinstance(leaf, torch.Tensor) else ()):
            symbol = _torch.plain_symbol(size)
            if symbol is not None:
                known.setdefault(symbol, f"{input_name.replace('.', '_')}_{position}")
    inputs = tuple(
        _value(name, input_name, leaf, known, input_name in mutated)
        for input_name, leaf in zip(input_names, leaves, strict=True)
        if isinstance(leaf, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)
    )
    results = _torch.outputs(program)
    outputs = tuple(
        _value(name, output_name, result, known)
        if isinstance(result, torch.Tensor)
        else Value(output_name, _torch.number_dtype(result))
        for output_name, result in zip(output_names, results, strict=True)
        if result is not None and not isinstance(result, str)
    )
    plain = {size for value in inputs for size in value.sizes if isinstance(size, str)}
    used = {symbol for value in (*inputs, *outputs) for size in value.sizes for symbol in sizes.symbols(size)}
    for value in inputs:
        for one in value.sizes:
            if one is None or sizes.symbols(one) - plain:
                raise CaptureError(
                    message(
                        f"{name}: the size of the argument '{value.name}' follows from no other",
                        expected="for each free size an argument that has just it",
                        got=value.type(),
                        fix="make the size itself dynamic, not a multiple of it",
                    )
                )
    ranges = {known[symbol]: bounds for symbol, bounds in _torch.size_ranges(program).items() if symbol in known}
    symbols = tuple(Symbol(symbol, *ranges.get(symbol, (0, None))) for symbol in dict.fromkeys(known.values()))
    return Signature(name, inputs, outputs, tuple(symbol for symbol in symbols if symbol.name in used | plain))


def _written(program: ExportedProgram, name: str) -> frozenset[str]:
    """Names of the inputs that the graph writes into."""
    try:
        written, _ = _torch.mutations(program)
    except Exception as error:
        raise CaptureError(
            message(
                f"{name}: PyTorch cannot bring its graph into a form without writes",
                expected="in-place operators only on tensors whose elements each have memory of their own",
                got=reason(error),
                fix="clone what overlaps itself, as unfold() and expand() give it, before writing into it",
            )
        ) from error
    return written


def _value(function: str, name: str, leaf: Any, names: Mapping[Any, str], mutated: bool = False) -> Value:
    if not isinstance(leaf, torch.Tensor):
        minimum, maximum = _torch.number_range(leaf)
        return Value(name, _torch.number_dtype(leaf), number=True, minimum=minimum, maximum=maximum)
    if leaf.device.type not in ("cpu", "cuda") or leaf.layout != torch.strided:
        raise CaptureError(
            message(
                f"{function}: '{name}' is not a dense tensor on the CPU or on a GPU",
                expected="dense tensors on the CPU, or on a GPU by CUDA",
                got=f"{leaf.layout} on {leaf.device}",
                fix="export the model with such tensors",
            )
        )
    dtype = str(leaf.dtype).removeprefix("torch.")
    shape = tuple(_torch.read_size(size, names) for size in leaf.shape)
    return Value(name, dtype, shape, mutated=mutated, device=leaf.device.type)
