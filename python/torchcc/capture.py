"""Captures a region: Python code in, an exported program with a signature out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from torchcc import _torch, annotation, sizes
from torchcc.errors import CaptureError, message, reason
from torchcc.region import Declaration, Region
from torchcc.signature import Signature, Symbol, Value

# Sizes for captures: distinct, larger than 1 (which would be special), and rarely a size that code mentions.
_HINTS = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37)

_NUMBER_EXAMPLES: dict[str, Any] = {"float64": 0.7, "int64": 3, "bool": True}


@dataclass(frozen=True)
class Captured:
    """A captured region.

    Attributes:
        region: Where it came from.
        declaration: What its annotations say.
        signature: What C++ will see.
        program: The exported program; numbers are tensors of rank 0 in it.
        random: Whether two runs on the same inputs may differ.
    """

    region: Region
    declaration: Declaration
    signature: Signature
    program: ExportedProgram
    random: bool

    def examples(self, values: Mapping[str, int], generator: torch.Generator) -> list[Any]:
        """Fresh random inputs for the given symbol values: tensors, and Python numbers for numbers."""
        return [_example(self.region, value, values, generator) for value in self.declaration.inputs]

    def run_original(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """The region's own Python code, eagerly, without gradients."""
        given = dict(zip((value.name for value in self.declaration.inputs), inputs, strict=True))
        with torch.no_grad():
            return _torch.flatten(self.region.target(**self.declaration.constants, **given))

    def run_with_weights(self, inputs: Sequence[Any], weights: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The region's own Python code, eagerly, with gradients, and with other weights where it is a module."""
        given = dict(zip((value.name for value in self.declaration.inputs), inputs, strict=True))
        arguments = {**self.declaration.constants, **given}
        target = self.region.target
        if not isinstance(target, torch.nn.Module):
            return _torch.flatten(target(**arguments))
        named = {name: one for name, one in weights.items() if name in target.state_dict(keep_vars=True)}
        return _torch.flatten(torch.func.functional_call(target, named, (), arguments))


class _FunctionModule(torch.nn.Module):
    """A function as torch.export wants it."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def forward(self, **arguments: Any) -> Any:
        return self._function(**arguments)


def _flat(target: Any, declaration: Declaration) -> torch.nn.Module:
    """The code with constants put in, and numbers taken from tensors of rank 0."""
    module = target if isinstance(target, torch.nn.Module) else _FunctionModule(target)
    original = type(module)

    def forward(self: torch.nn.Module, *inputs: torch.Tensor) -> Any:
        given: dict[str, Any] = dict(declaration.constants)
        for value, tensor in zip(declaration.inputs, inputs, strict=True):
            given[value.name] = _number(value, tensor) if value.number else tensor
        return _plain(original.forward(self, **given))

    return _torch.with_forward(module, forward, [value.name for value in declaration.inputs])


def _plain(result: Any) -> Any:
    """Named tuples as plain ones: torch.export cannot store them, nor those that operators like ``sort`` return."""
    return tuple(result) if isinstance(result, tuple) else result


def _number(value: Value, tensor: torch.Tensor) -> Any:
    number = tensor.item()
    if value.minimum is not None:
        _torch.check(number >= value.minimum)
    if value.maximum is not None:
        _torch.check(number <= value.maximum)
    return number


def number_tensor(value: Value, number: Any) -> torch.Tensor:
    """A number as the compiled code takes it: a tensor of rank 0."""
    return torch.tensor(number, dtype=getattr(torch, value.dtype))


def capture(region: Region, name: str, params: Mapping[str, Any]) -> Captured:
    """Captures a region with ``torch.export``.

    Args:
        region: The region.
        name: Its name in C++.
        params: Constants given at build time.

    Raises:
        CaptureError: The annotations are incomplete, PyTorch cannot capture the code, or the code does not do what its
            annotations say.
    """
    declaration = region.declare(name, params)
    hints = _hints(region, declaration)
    generator = torch.Generator().manual_seed(0)
    arguments = tuple(
        number_tensor(value, example) if value.number else example
        for value in declaration.inputs
        for example in [_example(region, value, hints, generator)]
    )
    program = _export(region, name, declaration, arguments, hints)
    written, buffers = _torch.mutations(program)
    _refuse_state(region, name, buffers)
    return Captured(
        region=region,
        declaration=declaration,
        signature=_signature(region, name, declaration, program, written),
        program=program,
        random=_torch.draws_random_numbers(program),
    )


def _hints(region: Region, declaration: Declaration) -> dict[str, int]:
    """One size per symbol to capture with: from the examples where given, else from the range."""
    hints: dict[str, int] = {}
    for value in declaration.inputs:
        example = region.examples.get(value.name)
        if isinstance(example, torch.Tensor) and example.dim() == len(value.sizes):
            hints.update((s, n) for s, n in zip(value.sizes, example.shape, strict=True) if isinstance(s, str))
    for symbol in declaration.symbols:
        if symbol.name not in hints:
            hints[symbol.name] = _hint(symbol, set(hints.values()))
    return hints


def _hint(symbol: Symbol, taken: set[int]) -> int:
    top = symbol.minimum + 1000 if symbol.maximum is None else symbol.maximum
    for candidate in (*_HINTS, *(symbol.minimum + hint for hint in _HINTS)):
        if max(symbol.minimum, 2) <= candidate <= top and candidate not in taken:
            return candidate
    return top


def _example(region: Region, value: Value, symbols: Mapping[str, int], generator: torch.Generator) -> Any:
    made = _made(region, value, symbols, generator)
    return made.to(value.device) if isinstance(made, torch.Tensor) else made


def _made(region: Region, value: Value, symbols: Mapping[str, int], generator: torch.Generator) -> Any:
    """The same, where it was made: on the CPU, or where a given example is."""
    given = region.examples.get(value.name)
    if value.number:
        if given is not None:
            return given
        if value.dtype != "int64":
            return _NUMBER_EXAMPLES[value.dtype]
        low = 0 if value.minimum is None else value.minimum
        return max(low, min(_NUMBER_EXAMPLES["int64"], low if value.maximum is None else value.maximum))
    shape = [sizes.evaluate(size, symbols) for size in value.sizes]
    if isinstance(given, torch.Tensor):
        if list(given.shape) == shape:
            return given
        return _resized(given, shape)
    dtype = getattr(torch, value.dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _resized(given: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """An example for another size: the given values, repeated or cut."""
    if given.numel() == 0:
        return given.new_zeros(shape)
    for dimension, size in enumerate(shape):
        index = torch.arange(size, device=given.device) % given.shape[dimension]
        given = given.index_select(dimension, index)
    return given


def _export(
    region: Region, name: str, declaration: Declaration, arguments: tuple[Any, ...], hints: Mapping[str, int]
) -> ExportedProgram:
    dims = {
        symbol.name: Dim(symbol.name, min=symbol.minimum, max=symbol.maximum)
        for symbol in declaration.symbols
        if symbol.minimum != symbol.maximum
    }
    dynamic = tuple(
        {
            position: sizes.substituted(size, dims)
            for position, size in enumerate(value.sizes)
            if sizes.symbols(size) and sizes.symbols(size) <= dims.keys()
        }
        or None
        for value in declaration.inputs
    )
    module = _flat(region.target, declaration)
    small = any(symbol.minimum < 2 for symbol in declaration.symbols)
    try:
        return _torch.export(module, arguments, dynamic, prefer_general=small)
    except Exception as error:
        raise CaptureError(
            message(
                f"region {name} ({region.location()}): torch.export cannot capture it",
                expected="code whose operators do not depend on values, and on sizes only as annotated",
                got=reason(error),
                fix=_fix(error, hints),
            )
        ) from error


def _fix(error: Exception, hints: Mapping[str, int]) -> str:
    text = str(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return "use torch.where or torch.cond, or make the argument a constant (params= or --param)"
    if refused := re.search(r"Not all values of (\w+) = .* satisfy the generated guard", text):
        return f'leave the values out that do not fit: ranges={{"{refused[1]}": (2, None)}}; or change the code'
    if "Constraints violated" in text or "specialized" in text.lower():
        return "write the fixed number into the annotation, or change the code so that any size works"
    at = ", ".join(f"{symbol} = {size}" for symbol, size in hints.items())
    where = f" at any size ({at} was tried); sizes that must be equal need one name" if at else ""
    return f"make the Python code itself work{where}"


def _refuse_state(region: Region, name: str, buffers: Set[str]) -> None:
    if buffers:
        raise CaptureError(
            message(
                f"region {name} ({region.location()}): the module changes its own buffers",
                expected="a module without state between calls",
                got=", ".join(sorted(buffers)),
                fix="call module.eval() first, or pass the state as an argument and return it",
            )
        )


def _signature(
    region: Region, name: str, declaration: Declaration, program: ExportedProgram, written: Set[str]
) -> Signature:
    names = {}
    fakes = _torch.placeholders(program)
    for value, fake in zip(declaration.inputs, fakes, strict=True):
        if not value.number:
            names.update(_torch.symbol_names(fake, value.sizes))
    results = _torch.outputs(program)
    if foreign := _torch.output_containers(program) - {tuple, list}:
        raise CaptureError(
            message(
                f"region {name} ({region.location()}): it returns something that C++ has no type for",
                expected="a tensor, or a tuple of tensors",
                got="a " + ", ".join(sorted(kind.__name__ for kind in foreign)),
                fix="return a tuple; a NamedTuple also gives the outputs names",
            )
        )
    if not results or results == [None]:
        raise CaptureError(
            message(
                f"region {name} ({region.location()}): it returns nothing",
                expected="a tensor, or a tuple of tensors",
                got="None",
                fix="return the result",
            )
        )
    for position, result in enumerate(results):
        if not isinstance(result, torch.Tensor):
            raise CaptureError(
                message(
                    f"region {name} ({region.location()}): output {position} is not a tensor",
                    expected="a tensor, or a tuple of tensors",
                    got=type(result).__name__,
                    fix="return tensors only; torch.as_tensor makes one of a number",
                )
            )
    output_names = declaration.output_names or (
        ("out",) if len(results) == 1 else tuple(f"out{i}" for i in range(len(results)))
    )
    _check_returns(region, name, declaration, results, names)
    return Signature(
        name=name,
        inputs=tuple(replace(value, mutated=value.name in written) for value in declaration.inputs),
        outputs=tuple(
            Value(
                output_name,
                str(result.dtype).removeprefix("torch."),
                tuple(_torch.read_size(size, names) for size in result.shape),
                device=result.device.type,
            )
            for output_name, result in zip(output_names, results, strict=True)
        ),
        symbols=declaration.symbols,
    )


def _check_returns(
    region: Region,
    name: str,
    declaration: Declaration,
    results: Sequence[torch.Tensor],
    names: Mapping[Any, str],
) -> None:
    if declaration.returns is None:
        return
    declared = [Value("", kind.dtype, kind.sizes).type() for kind in declaration.returns]
    actual = [
        Value("", str(r.dtype).removeprefix("torch."), tuple(_torch.read_size(s, names) for s in r.shape)).type()
        for r in results
    ]
    fits = len(declared) == len(actual) and all(
        _fits(kind, result, names) for kind, result in zip(declaration.returns, results, strict=True)
    )
    if not fits:
        raise CaptureError(
            message(
                f"region {name} ({region.location()}): it does not return what its annotation says",
                expected=", ".join(declared),
                got=", ".join(actual),
                fix="correct the annotation or the code",
            )
        )


def _fits(kind: annotation.TensorType, result: torch.Tensor, names: Mapping[Any, str]) -> bool:
    """Whether a result has the annotated dtype, rank and sizes; compares expressions by value at a few points."""
    if kind.dtype != str(result.dtype).removeprefix("torch.") or len(kind.sizes) != result.dim():
        return False
    for declared, actual in zip(kind.sizes, (_torch.read_size(size, names) for size in result.shape), strict=True):
        if actual is None or not sizes.symbols(declared) <= set(names.values()):
            continue  # a name of its own, for a size that only the result has
        for base in (6, 30, 210):
            values = {symbol: base + i for i, symbol in enumerate(sorted(set(names.values())))}
            if sizes.evaluate(declared, values) != sizes.evaluate(actual, values):
                return False
    return True
