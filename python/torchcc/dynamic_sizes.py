"""``dynamic=`` of an export: which sizes may be others than in the example, as names and expressions of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from torchcc import _torch, sizes
from torchcc.errors import ArgumentError, message, no_such


def complete(dynamic: Any, tree: Any) -> Any:
    """``dynamic`` with ``None`` for everything that it leaves out."""
    if isinstance(tree, Mapping) and (dynamic is None or isinstance(dynamic, Mapping)):
        if dynamic is not None and (unknown := set(dynamic) - set(tree)):
            name = min(map(str, unknown))
            raise ArgumentError(
                no_such(f"torchcc.export: dynamic= has '{name}', which is no argument", name, map(str, tree))
            )
        return {key: complete((dynamic or {}).get(key), one) for key, one in tree.items()}
    if type(tree) in (tuple, list) and (dynamic is None or len(dynamic) == len(tree)):
        # torch.export wants a tuple where the argument is one.
        return type(tree)(complete(one, leaf) for one, leaf in zip(dynamic or [None] * len(tree), tree, strict=True))
    if isinstance(tree, tuple) and hasattr(tree, "_fields") and (dynamic is None or len(dynamic) == len(tree)):
        return type(tree)(*complete(list(dynamic) if dynamic else None, list(tree)))
    parts = _torch.parts(tree)
    if parts is not None and (dynamic is None or (type(dynamic) in (tuple, list) and len(dynamic) == len(parts))):
        return [complete(one, leaf) for one, leaf in zip(dynamic or [None] * len(parts), parts, strict=True)]
    return dynamic


def names_in(tree: Any) -> Iterator[str]:
    """The names of sizes in ``dynamic``."""
    if isinstance(tree, str):
        yield from sizes.symbols(_size(tree))
    elif isinstance(tree, Mapping | tuple | list):
        for one in tree.values() if isinstance(tree, Mapping) else tree:
            yield from names_in(one)


def _size(text: str) -> sizes.Size:
    """A size as ``dynamic`` has it: a name, or an expression of one."""
    try:
        return sizes.parse(text)
    except ValueError as error:
        raise ArgumentError(
            message(
                f"torchcc.export: dynamic= has '{text}', which is no size",
                expected='a name, or one of which another size follows, as "2*n" or "n+1"',
                got=str(error),
                fix="correct it",
            )
        ) from error


def with_dims(tree: Any, dims: Mapping[str, Any]) -> Any:
    """``dynamic`` with :class:`torch.export.Dim` in place of names."""
    if isinstance(tree, str):
        return sizes.substituted(_size(tree), dims)
    if isinstance(tree, Mapping):
        return {key: with_dims(one, dims) for key, one in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(with_dims(one, dims) for one in tree)
    if isinstance(tree, tuple):
        return type(tree)(*(with_dims(one, dims) for one in tree))
    return tree


def symbol_names(program: ExportedProgram, dynamic: Mapping[str, Any]) -> dict[Any, str]:
    """The names that ``dynamic`` gives to symbols, from what it says about each leaf."""
    names: dict[Any, str] = {}
    input_names, _ = _torch.leaf_names(program)
    for input_name, leaf in zip(input_names, _torch.input_leaves(program), strict=True):
        dimensions = dynamic.get(input_name)
        if not isinstance(leaf, torch.Tensor) or not dimensions:
            continue
        for position, dim in dimensions.items() if isinstance(dimensions, Mapping) else enumerate(dimensions):
            symbol = _torch.plain_symbol(leaf.shape[position])
            name = getattr(dim, "__name__", "")
            if symbol is not None and name.isidentifier():
                names.setdefault(symbol, name)
    return names
