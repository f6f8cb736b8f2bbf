"""Compares compiled code with the exported graph that it came from, on random inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from torchcc import _torch, sizes
from torchcc import compare as numbers
from torchcc.errors import CompileError, message
from torchcc.package import Function
from torchcc.signature import Value

# How much further than the tolerance of its dtype a result may be off, relative to its largest value: a model rounds
# more often than one operator.
_DEPTH = 10.0

#: Runs compiled code: takes tensors, writes into those of the weights that it changes, and gives its results.
Run: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


def compare(function: Function, library: str | Run, weights: Sequence[str]) -> str:
    """Runs both at the sizes of the example, at small ones and at others that the ranges allow.

    Args:
        function: With its graph.
        library: The compiled code: a library of AOTInductor, or what runs it.
        weights: Names of the weights that it takes as inputs.

    Returns:
        What was compared, for people.

    Raises:
        CompileError: They differ.
    """
    program = function.program
    assert program is not None
    run = _torch.load_library(library) if isinstance(library, str) else library
    graph = _torch.as_pure_function(program)
    held = _torch.weights(program)
    random = _torch.draws_random_numbers(program)
    compared = 0
    skipped: list[str] = []
    for seed, values in enumerate(size_sets(function)):
        leaves = inputs(function, values, torch.Generator().manual_seed(1000 + seed))
        try:
            expected, buffers = graph([_copy(one) for one in leaves])
        except Exception as error:
            # The graph itself cannot do this size.
            skipped.append(f"{sizes_text(values)}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        given = [_copy(one) for one in tensors(function, leaves)]
        state = [held[name].detach().clone() for name in weights]
        got = run([*given, *state])
        wanted = as_tensors(expected)
        named = [value.name for value in function.signature.outputs]
        if not random:
            for name, one, other in zip(named, got, wanted, strict=True):
                _check(function, f"output '{name}'", values, one, other)
            for name, one in zip(weights, state, strict=True):
                if name in buffers:
                    _check(function, f"buffer '{name}'", values, one, buffers[name])
        compared += 1
    if not compared:
        raise CompileError(
            message(
                f"function {function.signature.name}: it could not be checked",
                expected="a graph that runs on inputs like the example",
                got="\n".join(skipped),
                fix="correct the example arguments",
            )
        )
    text = f"{compared} sets of sizes" + (", shapes only: it draws random numbers" if random else "")
    return text + (f"; the graph refused {'; '.join(skipped)}" if skipped else "")


def size_sets(function: Function) -> Iterator[Mapping[str, int]]:
    """Values for the symbols that the guards allow: those of the example, the smallest, and others."""
    symbols = function.signature.symbols
    own = _own_sizes(function)
    seen: list[Mapping[str, int]] = []
    for wanted in (None, 0, 1, 2, 7, 33):
        values = {
            symbol.name: own.get(symbol.name, symbol.minimum)
            if wanted is None
            else symbol.clamp(wanted + position if wanted > 2 else wanted)
            for position, symbol in enumerate(symbols)
        }
        if values not in seen and all(guard.holds(values) for guard in function.signature.guards):
            seen.append(values)
            yield values


def _own_sizes(function: Function) -> dict[str, int]:
    found: dict[str, int] = {}
    for value, example in _pairs(function):
        if isinstance(example, torch.Tensor):
            found.update((s, n) for s, n in zip(value.sizes, example.shape, strict=True) if isinstance(s, str))
    return found


def _pairs(function: Function) -> list[tuple[Value, Any]]:
    """The signature's inputs and their examples; ``None`` where there is none."""
    assert function.program is not None
    names, _ = _torch.leaf_names(function.program)
    examples = dict(zip(names, _torch.examples(function.program) or [None] * len(names), strict=True))
    return [(value, examples.get(value.name)) for value in function.signature.inputs]


def inputs(function: Function, values: Mapping[str, int], generator: torch.Generator) -> list[Any]:
    """Fresh leaves of the graph's inputs for some sizes; what is burnt in stays as it is.

    Numbers of a tensor are distributed as in the example; whole numbers are the example's, or some
    of them at other sizes.
    """
    program = function.program
    assert program is not None
    made = {value.name: _input(value, example, values, generator) for value, example in _pairs(function)}
    names, _ = _torch.leaf_names(program)
    return [made.get(name, leaf) for name, leaf in zip(names, _torch.input_leaves(program), strict=True)]


def tensors(function: Function, leaves: Sequence[Any]) -> list[torch.Tensor]:
    """The leaves that compiled code takes, numbers as tensors of rank 0."""
    program = function.program
    assert program is not None
    by_name = dict(zip(_torch.leaf_names(program)[0], leaves, strict=True))
    found = []
    for value in function.signature.inputs:
        leaf = by_name[value.name]
        found.append(leaf if isinstance(leaf, torch.Tensor) else torch.tensor(leaf, dtype=getattr(torch, value.dtype)))
    return found


def as_tensors(results: Sequence[Any]) -> list[torch.Tensor]:
    """Results of the graph as C++ gives them: numbers as tensors, and nothing for ``None`` and strings."""
    return [
        one if isinstance(one, torch.Tensor) else torch.tensor(one, dtype=getattr(torch, _torch.number_dtype(one)))
        for one in results
        if one is not None and not isinstance(one, str)
    ]


def _copy(one: Any) -> Any:
    return one.clone() if isinstance(one, torch.Tensor) else one


def _input(value: Value, example: Any, values: Mapping[str, int], generator: torch.Generator) -> Any:
    if value.number:
        return 1 if example is None else example
    made = _random(value, None if example is None else example.cpu(), values, generator)
    return made.to(value.device)


def _random(
    value: Value, example: torch.Tensor | None, values: Mapping[str, int], generator: torch.Generator
) -> torch.Tensor:
    """A tensor on the CPU like the example."""
    shape = [sizes.evaluate(size, values) for size in value.sizes]
    dtype = getattr(torch, value.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex128 if dtype.is_complex else torch.float64
        noise = torch.randn(shape, generator=generator, dtype=wide)
        if example is None or example.numel() < 2:
            return noise.to(dtype)
        spread, middle = example.to(wide).std(), example.to(wide).mean()
        return (noise * spread + middle).to(dtype)
    if example is None or not example.numel():
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    if list(example.shape) == shape:
        return example  # in its order, which may matter: offsets of bags grow
    chosen = torch.randint(0, example.numel(), shape, generator=generator)
    return example.flatten()[chosen]


def sizes_text(values: Mapping[str, int]) -> str:
    """Values of symbols, for people."""
    return ", ".join(f"{key} = {value}" for key, value in values.items()) or "the example's sizes"


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results of one model count as equal."""
    if not numbers.same_form(got, expected):
        return False
    if numbers.equal(got, expected):
        return True
    relative, _ = numbers.tolerances(expected.dtype)
    finite = torch.isfinite(expected)
    if not relative or not bool((finite == torch.isfinite(got)).all()) or not bool(finite.any()):
        return False
    largest = float(expected[finite].abs().max())
    return numbers.largest_difference(got[finite], expected[finite]) <= _DEPTH * relative * largest


def _check(function: Function, what: str, values: Mapping[str, int], got: torch.Tensor, expected: torch.Tensor) -> None:
    if close(got, expected):
        return
    raise CompileError(
        message(
            f"function {function.signature.name}: the compiled code differs from the graph in {what}",
            expected=f"equal within rounding, with {sizes_text(values)}",
            got=numbers.difference(got, expected),
            fix="export it without this target (portable), or compute in float64 to see whether it is rounding",
        )
    )
