"""Arguments of recorded operators: what traces write, and what PyTorch takes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch

#: An argument as JSON holds it: ``None``, a bool, an int, or a dict with one key that says what it is.
Argument: TypeAlias = Any

#: What an operator returned, per return of its schema: ``None``, a value id, a list of them, or ``{"constant": ...}``.
Output: TypeAlias = Any


def number(text: str) -> float:
    """A float as traces write it: hexadecimal, or ``inf``, ``-inf``, ``nan``."""
    return float.fromhex(text)


def decode(argument: Argument, values: Mapping[int, torch.Tensor]) -> Any:
    """An argument as PyTorch takes it.

    Raises:
        KeyError: It names a value that there is not yet.
        ValueError: It is of no known kind.
    """
    if argument is None or isinstance(argument, (bool, int)):
        return argument
    ((kind, content),) = argument.items()
    match kind:
        case "tensor":
            return values[content]
        case "list":
            return [decode(one, values) for one in content]
        case "float":
            return number(content)
        case "number":
            return values[content].item()
        case "size":
            return _computed(content, values)
        case "complex":
            return complex(*map(number, content))
        case "str":
            return content
        case "dtype" | "layout" | "memory_format":
            return getattr(torch, content)
        case "device":
            return torch.device(content)
    raise ValueError(f"an argument of kind '{kind}'")


def _computed(content: Mapping[str, Any], values: Mapping[int, torch.Tensor]) -> Any:
    """A number that follows from sizes: see ``SizeExpression`` in cpp/src/capture/sizes.h. Symbolic where these are."""
    total: Any
    if "steps" in content:
        total = _stepped(content["steps"], values)
    else:
        total = content["plus"]
        for term in content["terms"]:
            total = total + term["times"] * math.prod(values[value].shape[dim] for value, dim in term["product"])
        if content["over"] != 1:
            total = total // content["over"]
    if content["form"] == "whole":
        return total
    as_float: Any = torch.sym_float(total)  # type: ignore[no-untyped-call]
    match content["form"]:
        case "inverse":
            return 1.0 / as_float
        case "root":
            return torch.sym_sqrt(as_float)
        case "inverse_root":
            return 1.0 / torch.sym_sqrt(as_float)
    return as_float


_STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "max": torch.sym_max,
    "min": torch.sym_min,
}


def _stepped(steps: Iterable[Any], values: Mapping[int, torch.Tensor]) -> Any:
    """An expression in postfix order: numbers, sizes as ``[value id, dimension]``, and operators."""
    stack: list[Any] = []
    for step in steps:
        if isinstance(step, str):
            right = stack.pop()
            stack.append(_STEPS[step](stack.pop(), right))
        elif isinstance(step, list):
            value, dim = step
            stack.append(values[value].shape[dim])
        else:
            stack.append(step)
    return stack.pop()


def encode(value: Any) -> Argument:
    """A constant as traces write it; the inverse of :func:`decode`, but for tensors.

    Raises:
        ValueError: Traces cannot hold it.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, str):
        return {"str": value}
    if isinstance(value, (list, tuple)):
        return {"list": [encode(one) for one in value]}
    for kind in (torch.dtype, torch.layout, torch.memory_format, torch.device):
        if isinstance(value, kind):
            return {kind.__name__: str(value).removeprefix("torch.")}
    raise ValueError(f"a constant of type {type(value).__name__}")


def tensor_ids(argument: Argument) -> Iterator[int]:
    """Value ids in an argument."""
    if isinstance(argument, Mapping):
        for kind in ("tensor", "number"):
            if kind in argument:
                yield argument[kind]
        for one in argument.get("list", ()):
            yield from tensor_ids(one)


def number_ids(arguments: Iterable[Argument]) -> Iterator[int]:
    """Value ids of numbers in arguments."""
    for argument in arguments:
        if isinstance(argument, Mapping):
            if "number" in argument:
                yield argument["number"]
            yield from number_ids(argument.get("list", ()))


def output_ids(outputs: Iterable[Output]) -> Iterator[int]:
    """Value ids among what an operator returned."""
    for output in outputs:
        if isinstance(output, list):
            yield from output_ids(output)
        elif isinstance(output, int) and not isinstance(output, bool):
            yield output
