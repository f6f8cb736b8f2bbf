"""Symbolic sizes and numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from torchcc import sizes


def plain_symbol(size: Any) -> sympy.Symbol | None:
    """The symbol that a size is; ``None`` when it is a number or an expression."""
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    return expression if expression is not None and expression.is_Symbol else None


def known_size(size: int | torch.SymInt) -> int | None:
    """A size that is a number, be it only since the operators allow no other; else ``None``."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    return int(size.node.expr) if size.node.expr.is_Integer else None


def example_size(size: int | torch.SymInt) -> int:
    """The value that a size, or a stride, had in the example that a graph was made of."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def with_symbols(tensors: Sequence[torch.Tensor], free: Sequence[Collection[int]]) -> list[torch.Tensor]:
    """Fake tensors like ``tensors``, whose dimensions ``free``, given per tensor, have symbolic sizes of 2 and above.

    Leans on ``FakeTensorMode`` and ``torch.fx.experimental.symbolic_shapes``.
    """
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode = FakeTensorMode(shape_env=ShapeEnv())
    made: list[torch.Tensor] = []
    for position, (tensor, dims) in enumerate(zip(tensors, free, strict=True)):
        kinds = [DimDynamic.DYNAMIC if dim in dims else DimDynamic.STATIC for dim in range(tensor.dim())]
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        made.append(mode.from_tensor(tensor, source=ConstantSource(f"input{position}"), symbolic_context=context))
    return made


def number_range(number: Any) -> tuple[int | None, int | None]:
    """Allowed values of an input that is a number."""
    if not isinstance(number, torch.SymInt):
        return None, None
    bounds = number.node.shape_env.bound_sympy(number.node.expr)
    low, high = (int(bound) if bound.is_Integer else None for bound in (bounds.lower, bounds.upper))
    return low, high


def size_ranges(program: ExportedProgram) -> dict[sympy.Symbol, tuple[int, int | None]]:
    """Allowed values of the program's symbols."""

    def number(bound: Any) -> int | None:
        return int(bound) if bound.is_Integer else None

    return {
        symbol: (max(0, number(one.lower) or 0), number(one.upper)) for symbol, one in program.range_constraints.items()
    }


def symbol_ranges(
    symbols: Iterable[sympy.Symbol], forms: Sequence[torch.Tensor]
) -> dict[sympy.Symbol, tuple[int, int | None]]:
    """Allowed values of symbols that are sizes of some of the fake tensors ``forms``."""
    wanted = set(symbols)
    found: dict[sympy.Symbol, tuple[int, int | None]] = {}
    for form in forms:
        for size in form.shape:
            symbol = plain_symbol(size)
            if symbol in wanted:
                low, high = number_range(size)
                found[symbol] = (max(0, low or 0), high)
    return found


def symbol_names(value: torch.Tensor, declared: Sequence[sizes.Size]) -> dict[sympy.Symbol, str]:
    """The user's names of the symbols that stand alone in a fake tensor's sizes."""
    names: dict[sympy.Symbol, str] = {}
    for size, declared_size in zip(value.shape, declared, strict=True):
        if isinstance(size, torch.SymInt) and isinstance(declared_size, str) and size.node.expr.is_Symbol:
            names[size.node.expr] = declared_size
    return names


def read_size(size: int | torch.SymInt, names: Mapping[sympy.Symbol, str]) -> sizes.Size:
    """A size of a fake tensor in the manifest's form; ``None`` when only the data decides it."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    return _read_expression(size.node.expr, names)


def _read_expression(expression: sympy.Expr, names: Mapping[sympy.Symbol, str]) -> sizes.Size:
    from torch.utils._sympy import functions

    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        return names.get(expression)
    operators: dict[type, str] = {
        sympy.Add: "+",
        sympy.Mul: "*",
        sympy.Pow: "**",
        sympy.Max: "max",
        sympy.Min: "min",
        functions.FloorDiv: "//",
        functions.CleanDiv: "//",
        functions.PythonMod: "%",
        functions.Mod: "%",
        functions.Max: "max",
        functions.Min: "min",
        functions.PowByNatural: "**",
    }
    operator = operators.get(type(expression))
    operands = [_read_expression(operand, names) for operand in expression.args]
    if operator is None or any(operand is None for operand in operands):
        return None
    if operator == "**" and not (isinstance(operands[1], int) and operands[1] >= 0):
        return None
    # Numbers after symbols in sums ("n + 1"), before them in products ("2*n").
    if operator == "+":
        operands.sort(key=lambda operand: isinstance(operand, int))
    return [operator, *operands]


def conditions(graph: Any, names: Mapping[sympy.Symbol, str]) -> list[tuple[str, sizes.Size, sizes.Size]]:
    """What a graph takes for granted about its sizes beside their ranges: relation, left and right side.

    Leans on ``ShapeEnv.guards``, which holds for all that was run while the graph was made.

    Args:
        graph: The graph.
        names: Names of all symbols of its inputs.

    Raises:
        ValueError: Something that the manifest cannot state.
    """
    sized = [node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    environments = {
        id(size.node.shape_env): size.node.shape_env
        for one in sized
        for size in one.shape
        if isinstance(size, torch.SymInt)
    }
    found: dict[str, tuple[str, sizes.Size, sizes.Size]] = {}
    for environment in environments.values():
        for guard in environment.guards:
            expression = environment.simplify(guard.expr)
            if expression in (True, sympy.true):
                continue
            for condition in expression.args if isinstance(expression, sympy.And) else (expression,):
                found[str(condition)] = _read_condition(condition, names)
    return list(found.values())


def _read_condition(condition: Any, names: Mapping[sympy.Symbol, str]) -> tuple[str, sizes.Size, sizes.Size]:
    relations: dict[type, str] = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Lt: "<", sympy.Le: "<="}
    swapped: dict[type, str] = {sympy.Gt: "<", sympy.Ge: "<="}
    sides = [_read_expression(side, names) for side in condition.args]
    kind = type(condition)
    if None in sides or len(sides) != 2 or (kind not in relations and kind not in swapped):
        raise ValueError(f"the condition {condition} on sizes cannot be stated")
    return (relations[kind], sides[0], sides[1]) if kind in relations else (swapped[kind], sides[1], sides[0])


def number_dtype(number: Any) -> str:
    """The dtype that a number of Python, or a symbolic one, has as a tensor."""
    if isinstance(number, bool | torch.SymBool):
        return "bool"
    return "int64" if isinstance(number, int | torch.SymInt) else "float64"
