"""Captures methods of modules with ``torch.export``: from example arguments to functions of a package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import Dim

from torchcc import _torch, agreement, dynamic_sizes, package
from torchcc.errors import ArgumentError, CaptureError, message, no_such, reason
from torchcc.program_signature import signature_of


@dataclass(frozen=True)
class Method:
    """How a method of a module is called: example arguments, and which of their sizes may be others.

    Attributes:
        args: Example positional arguments: tensors, numbers, and tuples, lists, dicts and dataclasses of them.
        kwargs: Example keyword arguments.
        dynamic: As :func:`torchcc.export` takes it.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Any = None


def capture_methods(
    module: torch.nn.Module, methods: Mapping[str, Method], ranges: Mapping[str, tuple[int, int | None]]
) -> list[package.Function]:
    """Exports methods of a module.

    Args:
        module: The module.
        methods: Calls of its methods, by their names.
        ranges: As :func:`torchcc.export` takes them.

    Raises:
        ArgumentError: A method or a range makes no sense.
        CaptureError: ``torch.export`` cannot capture a method, or C++ could not call it.
    """
    calls = [_call(module, name, method) for name, method in methods.items()]
    known = {size for call in calls for size in call.sizes}
    if unknown := set(ranges) - known:
        raise ArgumentError(
            no_such(
                f"torchcc.export: there is a range for '{min(unknown)}', which is no size",
                min(unknown),
                sorted(known) or ["no ranges, as no size is dynamic"],
                fix="correct the name, or name the size in dynamic=",
            )
        )
    return [_function(call, ranges) for call in calls]


@dataclass(frozen=True)
class _Call:
    """A method to export.

    Attributes:
        title: For messages: ``Net.forward``.
        name: Of the method, and of the function.
        module: With the method as ``forward``.
        method: The example.
        arguments: The example by the names of the parameters.
        dynamic: What the user said of each argument, and ``None`` for the others.
        sizes: The names in it.
    """

    title: str
    name: str
    module: torch.nn.Module
    method: Method
    arguments: Mapping[str, Any]
    dynamic: Any
    sizes: frozenset[str]


def _call(module: torch.nn.Module, name: str, method: Method) -> _Call:
    if not callable(getattr(module, name, None)):
        raise ArgumentError(
            message(
                f"torchcc.export: the module has no method '{name}'",
                expected="the name of a method",
                got=f"a {type(module).__name__}",
                fix="correct the name",
            )
        )
    called = _with_forward(module, name)
    arguments = _arguments(called, name, method)
    dynamic = dynamic_sizes.complete(method.dynamic, arguments)
    return _Call(
        f"{type(module).__name__}.{name}",
        name,
        called,
        method,
        arguments,
        dynamic,
        frozenset(dynamic_sizes.names_in(dynamic)),
    )


def _function(call: _Call, ranges: Mapping[str, tuple[int, int | None]]) -> package.Function:
    """Exports a method. A size without a range begins at 1, or at 2 if the code needs that."""
    free = call.sizes - ranges.keys()
    narrowed: Set[str] = frozenset()
    while True:
        smallest = {size: (2 if size in narrowed else 1, None) for size in free}
        try:
            return _exported(call, {**smallest, **ranges})
        except CaptureError as error:
            if narrowed == free:
                raise
            # Those that torch.export names, if there are new ones; then all.
            named = free & _violated(error.__cause__)
            narrowed = narrowed | named if named - narrowed else free


def _violated(error: BaseException | None) -> set[str]:
    """The sizes that torch.export found to decide what the code does."""
    found = re.search(r"Constraints violated \((.+?)\)", str(error))
    return set(found[1].split(", ")) if found else set()


def _exported(call: _Call, ranges: Mapping[str, tuple[int, int | None]]) -> package.Function:
    dims = {size: Dim(size, min=ranges[size][0], max=ranges[size][1]) for size in call.sizes}
    dynamic = dynamic_sizes.with_dims(call.dynamic, dims)
    try:
        program = _torch.export(
            call.module,
            _torch.contiguous(tuple(call.method.args)),  # as C++ gives them
            dynamic,
            prefer_general=any(ranges[size][0] < 2 for size in call.sizes),
            kwargs=_torch.contiguous(dict(call.method.kwargs)),
        )
    except Exception as error:
        violated = sorted(_violated(error))
        raise CaptureError(
            message(
                f"{call.title}: torch.export cannot capture it",
                expected="code whose operators do not depend on values, and on sizes only as dynamic= says",
                got=reason(error),
                fix=f'say for which sizes the code does the same: ranges={{"{violated[0]}": (2, 64)}}, for instance'
                if violated
                else "see the message; torch.cond and torch.where replace branches on values",
            )
        ) from error
    names = dynamic_sizes.symbol_names(
        program, _torch.dynamic_leaves(call.arguments, dynamic) if dynamic is not None else {}
    )
    function = package.Function(signature_of(program, call.name, names), program, (), group="model")
    _check_guards(function, call)
    return function


def _check_guards(function: package.Function, call: _Call) -> None:
    """Refuses a graph that is not right for all sizes that its signature allows."""
    assert function.program is not None
    for values in agreement.size_sets(function):
        leaves = agreement.inputs(function, values, torch.Generator().manual_seed(0))
        if guard := _torch.broken_guard(function.program, call.module, leaves):
            at = ", ".join(f"{name} = {value}" for name, value in values.items())
            raise CaptureError(
                message(
                    f"{call.title}: it does something else for some sizes",
                    expected=f"code that does the same with {at}",
                    got=f"a branch; the graph holds where {guard}",
                    fix="leave these sizes out with ranges=, for instance (2, None), or change the code",
                )
            )


def _arguments(module: torch.nn.Module, name: str, method: Method) -> dict[str, Any]:
    try:
        return _torch.named_arguments(module, tuple(method.args), method.kwargs)
    except TypeError as error:
        raise ArgumentError(
            message(
                f"{type(module).__name__}.{name}: it does not take these arguments",
                expected="arguments that a call in Python could have",
                got=str(error),
                fix="correct args= and kwargs=",
            )
        ) from error


def _with_forward(module: torch.nn.Module, name: str) -> torch.nn.Module:
    """The module with one of its methods as ``forward``."""
    return module if name == "forward" else _torch.with_forward(module, getattr(type(module), name))
