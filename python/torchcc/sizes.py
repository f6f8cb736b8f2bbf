"""Sizes of dimensions: numbers, symbols, and expressions of symbols, in the form that the manifest stores.

A size is an ``int``, a symbol's name, or a list ``[operator, operand, operand, ...]`` with an operator of
:data:`OPERATORS`; ``None`` stands for a size that only the data decides.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Size: TypeAlias = int | str | list["Size"] | None

_PRECEDENCE = {"+": 1, "*": 2, "//": 2, "%": 2, "**": 3, "max": 4, "min": 4}

#: The operators that a size may use, and what they do with all their operands, in order.
OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "+": sum,
    "*": math.prod,
    "//": lambda operands: operands[0] // operands[1],
    "%": lambda operands: operands[0] % operands[1],
    "**": lambda operands: int(operands[0] ** operands[1]),
    "max": max,
    "min": min,
}


def text(size: Size) -> str:
    """The size as a person writes it: ``"768"``, ``"n"``, ``"2*n"``; ``"?"`` when only the data decides it."""
    return _text(size, 0)


def _text(size: Size, outer: int) -> str:
    if size is None:
        return "?"
    if not isinstance(size, list):
        return str(size)
    operator = str(size[0])
    own = _PRECEDENCE[operator]
    if operator in ("max", "min"):
        return f"{operator}({', '.join(_text(operand, 0) for operand in size[1:])})"
    first, *rest = size[1:]
    # Every operator here is written left-associative, so a right operand of the same strength needs parentheses.
    joined = operator.join([_text(first, own - 1), *(_text(operand, own) for operand in rest)])
    joined = joined.replace("+-", "-")
    return f"({joined})" if own <= outer else joined


def symbols(size: Size) -> set[str]:
    """Names of the symbols in a size."""
    if isinstance(size, str):
        return {size}
    if isinstance(size, list):
        return set().union(*(symbols(operand) for operand in size[1:]))
    return set()


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """The size, given a value for each of its symbols."""
    if size is None:
        raise ValueError("a size that only the data decides has no value")
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return values[size]
    return OPERATORS[str(size[0])]([evaluate(operand, values) for operand in size[1:]])


def substituted(size: Size, values: Mapping[str, Any]) -> Any:
    """A number, or a symbol plus or times numbers, with something in place of symbols that can be added and multiplied.

    For instance ``torch.export.Dim``. Other sizes are given back as they are.
    """
    if isinstance(size, str):
        return values[size]
    if isinstance(size, list) and size[0] in ("+", "*"):
        left, right = (substituted(operand, values) for operand in size[1:])
        if isinstance(left, int):
            left, right = right, left
        return left + right if size[0] == "+" else right * left
    return size


def parse(source: str) -> Size:
    """Reads a size as an annotation writes it: ``"768"``, ``"n"``, ``"2*n"``, ``"n+1"``.

    Raises:
        ValueError: ``source`` is none of these.
    """
    try:
        node = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{source!r} is not a number, a name, or an expression") from error
    return _from_ast(node, source)


_AST_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}


def _from_ast(node: ast.expr, source: str) -> Size:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.BinOp):
        left, right = _from_ast(node.left, source), _from_ast(node.right, source)
        if type(node.op) in _AST_OPERATORS:
            return [_AST_OPERATORS[type(node.op)], left, right]
        if isinstance(node.op, ast.Sub):
            return ["+", left, -right if isinstance(right, int) else ["*", -1, right]]
    raise ValueError(f"{source!r} uses more than names, whole numbers, +, -, *, // and %")
