"""Compares compiled code with the Python code that it came from, before anything is shipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from torchcc import _torch, agreement, compare, gradients
from torchcc.capture import Captured, number_tensor
from torchcc.errors import CompileError, message
from torchcc.signature import Symbol


def verify(
    captured: Captured, library: str | agreement.Run, library_out: str | None, weights: Sequence[str] = ()
) -> str:
    """Runs both on fresh random inputs, at the smallest sizes that the ranges allow and at larger ones.

    Args:
        captured: The region.
        library: The compiled code: a library of AOTInductor, or what runs it.
        library_out: The form of it that writes into given outputs.
        weights: Names of the weights that the code takes as inputs, behind the arguments.

    Returns:
        What was compared, for people.

    Raises:
        CompileError: They differ.
    """
    held = _torch.weights(captured.program)
    taken = [held[name].detach() for name in weights]
    compared = 0
    skipped: list[str] = []
    for seed, values in enumerate(_size_sets(captured.signature.symbols)):
        generator = torch.Generator().manual_seed(1000 + seed)
        inputs = captured.examples(values, generator)
        try:
            expected_inputs = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
            expected = captured.run_original(expected_inputs)
        except Exception as error:
            # The Python code itself cannot do this size (a maximum over nothing, say).
            skipped.append(f"{values}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        for into in (False, True):
            if into and library_out is None:
                continue
            chosen = library_out if into and library_out else library
            got, got_inputs = _run(captured, chosen, inputs, taken, expected, into)
            if captured.random:
                continue
            for position, (one, other) in enumerate(zip(got, expected, strict=True)):
                _compare(captured, values, f"output {position}", one, other)
            for value, one, other in zip(captured.signature.inputs, got_inputs, expected_inputs, strict=True):
                if value.mutated:
                    _compare(captured, values, f"argument '{value.name}'", one, other)
        compared += 1
    if not compared:
        raise CompileError(
            message(
                f"region {captured.signature.name}: it could not be verified",
                expected="Python code that runs on random inputs",
                got="\n".join(skipped),
                fix="give values that it accepts: torchcc.region(examples={...})",
            )
        )
    text = f"{compared} sets of sizes" + (", shapes only: it draws random numbers" if captured.random else "")
    return text + (f"; Python refused {'; '.join(skipped)}" if skipped else "")


def verify_gradients(captured: Captured, code: gradients.Code, weights: Sequence[str]) -> str:
    """Compares gradients of compiled code with those of the Python code, at the same sizes.

    Returns:
        What was compared, for people.

    Raises:
        CompileError: They differ.
    """
    held = _torch.weights(captured.program)
    values = captured.declaration.inputs

    def run(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        inputs = [
            tensor.item() if value.number else tensor
            for value, tensor in zip(values, tensors[: len(values)], strict=True)
        ]
        named = dict(zip(weights, tensors[len(values) :], strict=True))
        return captured.run_with_weights(inputs, named)

    def cases() -> Iterator[tuple[str, Sequence[torch.Tensor]]]:
        for seed, sizes in enumerate(_size_sets(captured.signature.symbols)):
            inputs = captured.examples(sizes, torch.Generator().manual_seed(3000 + seed))
            tensors = [
                one if isinstance(one, torch.Tensor) else number_tensor(value, one)
                for value, one in zip(values, inputs, strict=True)
            ]
            yield agreement.sizes_text(sizes), [*tensors, *(held[name].detach() for name in weights)]

    return gradients.check(f"region {captured.signature.name}", code, run, cases())


def _size_sets(symbols: Sequence[Symbol]) -> list[Mapping[str, int]]:
    """All symbols at their smallest, at their smallest but 1, at sizes that fill vectors, and at sizes that do not."""
    sets: list[Mapping[str, int]] = []
    for wanted in (0, 1, 2, 17, 64):
        values = {
            symbol.name: symbol.clamp(wanted + position if wanted > 2 else wanted)
            for position, symbol in enumerate(symbols)
        }
        if values not in sets:
            sets.append(values)
    return sets


def _run(
    captured: Captured,
    library: str | agreement.Run,
    inputs: Sequence[object],
    weights: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    into: bool,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    tensors = [
        x.clone() if isinstance(x, torch.Tensor) else number_tensor(value, x)
        for value, x in zip(captured.signature.inputs, inputs, strict=True)
    ]
    if not isinstance(library, str):
        return list(library([*tensors, *weights])), tensors
    if not into:
        return _torch.run_library(library, [*tensors, *weights]), tensors
    outs = [torch.full(one.shape, 77, dtype=one.dtype, device=one.device) for one in expected]
    _torch.run_library(library, [*tensors, *outs])
    return outs, tensors


def _compare(
    captured: Captured, values: Mapping[str, int], what: str, got: torch.Tensor, expected: torch.Tensor
) -> None:
    relative, absolute = compare.tolerances(expected.dtype)
    if compare.same_form(got, expected) and compare.equal(got, expected):
        return
    at = ", ".join(f"{key} = {value}" for key, value in values.items())
    raise CompileError(
        message(
            f"region {captured.signature.name}: the compiled code differs from the Python code in {what}",
            expected=f"equal within {relative:g} relative, {absolute:g} absolute" + (f", with {at}" if at else ""),
            got=compare.difference(got, expected),
            fix=_fix(captured.signature.symbols, values),
        )
    )


def _fix(symbols: Sequence[Symbol], values: Mapping[str, int]) -> str:
    for symbol in symbols:
        value = values[symbol.name]
        if symbol.minimum <= value < 2:
            return f'leave small sizes out: ranges={{"{symbol.name}": ({value + 1}, {symbol.maximum})}}'
    return "compute in float64 to see whether it is rounding; else report it"
