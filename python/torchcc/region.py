"""Regions: Python code that C++ will call as compiled, typed functions."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, overload

import torch
from typing_extensions import Unpack

from torchcc import annotation, sizes
from torchcc.errors import ArgumentError, CaptureError, message, no_such
from torchcc.signature import Symbol, Value

_FIX_ANNOTATION = (
    'annotate tensors with jaxtyping, e.g. x: Float32[Tensor, "n 768"], and numbers with float, int or bool'
)


#: What ``region(device=...)`` may be.
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Declaration:
    """What a region's annotations and options say, before anything is captured.

    Attributes:
        inputs: The inputs of the compiled function.
        symbols: Its symbols, in the order in which they first appear.
        constants: Arguments of the Python function that are fixed at build time, by name.
        order: Names of all arguments of the Python function, in its own order.
        returns: Annotated results: one entry per output, or ``None`` when the result is not annotated.
        output_names: One name per output, or ``None`` for default names.
    """

    inputs: tuple[Value, ...]
    symbols: tuple[Symbol, ...]
    constants: Mapping[str, Any]
    order: tuple[str, ...]
    returns: tuple[annotation.TensorType, ...] | None
    output_names: tuple[str, ...] | None


@dataclass(frozen=True)
class Region:
    """A function or module that ``torchcc build`` compiles. Calling it runs the Python code as it is.

    Made by :func:`region`, which explains the fields.
    """

    target: Callable[..., Any]
    name: str | None = None
    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    examples: Mapping[str, Any] = field(default_factory=dict)
    out: bool = True
    grad: bool = False
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the Python code itself; nothing is compiled."""
        return self.target(*args, **kwargs)

    @property
    def doc(self) -> str:
        """First paragraph of the docstring; empty without one."""
        text = (
            inspect.getdoc(self.target) if not isinstance(self.target, torch.nn.Module) else type(self.target).__doc__
        )
        return inspect.cleandoc(text or "").split("\n\n")[0]

    def location(self) -> str:
        """``"file.py:12"``, where the code is, for messages."""
        code = self._callable()
        try:
            _, line = inspect.getsourcelines(code)
            return f"{Path(inspect.getsourcefile(code) or '?').name}:{line}"
        except (OSError, TypeError):
            return "?"

    def _callable(self) -> Callable[..., Any]:
        return self.target.forward if isinstance(self.target, torch.nn.Module) else self.target

    def declare(self, name: str, params: Mapping[str, Any]) -> Declaration:
        """Reads the annotations.

        Args:
            name: The region's name in C++.
            params: Constants given at build time; they win over the region's own.

        Raises:
            CaptureError: An argument has no annotation, or one that a region cannot have.
        """
        code = self._callable()
        parameters = inspect.signature(code).parameters
        hints = {**_type_hints(code, name), **self.inputs}
        constants = {**self.params, **{key: value for key, value in params.items() if key in parameters}}
        values: list[Value] = []
        for parameter in parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise CaptureError(
                    message(
                        f"region {name} ({self.location()}): argument '{parameter.name}' cannot be compiled",
                        expected="plain arguments with names",
                        got=str(parameter),
                        fix="spell the arguments out",
                    )
                )
            if parameter.name in constants:
                continue
            if parameter.name not in self.inputs and parameter.default is not parameter.empty:
                constants[parameter.name] = parameter.default
                continue
            values.append(self._input(name, parameter.name, hints.get(parameter.name)))
        returns, output_names = self._returns(name, hints.get("return"))
        return Declaration(
            inputs=tuple(values),
            symbols=self._symbols(name, values),
            constants=constants,
            order=tuple(parameters),
            returns=returns,
            output_names=output_names,
        )

    def _input(self, name: str, argument: str, hint: Any) -> Value:
        try:
            kind = annotation.read(hint, argument)
        except ValueError as error:
            raise CaptureError(
                message(
                    f"region {name} ({self.location()}): argument '{argument}' cannot be typed",
                    expected="a tensor with one dtype and a fixed rank, or a number",
                    got=str(error),
                    fix=_FIX_ANNOTATION,
                )
            ) from error
        if isinstance(kind, annotation.TensorType):
            return Value(argument, kind.dtype, kind.sizes, device=self.device)
        minimum, maximum = self.ranges.get(argument, (None, None)) if kind.dtype == "int64" else (None, None)
        return Value(argument, kind.dtype, number=True, minimum=minimum, maximum=maximum)

    def _symbols(self, name: str, values: list[Value]) -> tuple[Symbol, ...]:
        plain = [size for value in values for size in value.sizes if isinstance(size, str)]
        used = {symbol for value in values for size in value.sizes for symbol in sizes.symbols(size)}
        numbers = {value.name for value in values if value.number and value.dtype == "int64"}
        for symbol in sorted(used - set(plain)):
            raise CaptureError(
                message(
                    f"region {name} ({self.location()}): symbol '{symbol}' has no argument to come from",
                    expected=f"an argument with a dimension that is just {symbol}",
                    got="only expressions of it",
                    fix="name the dimension itself, or pass the number as an argument",
                )
            )
        for key, bounds in self.ranges.items():
            if not _is_range(bounds, lowest=None if key in numbers else 0):
                raise CaptureError(
                    message(
                        f"region {name} ({self.location()}): the range of '{key}' is not a range",
                        expected="(minimum, maximum) with "
                        + ("minimum <= maximum" if key in numbers else "0 <= minimum <= maximum")
                        + "; maximum may be None, for no limit",
                        got=repr(bounds),
                        fix=f'write ranges={{"{key}": (1, 4096)}}',
                    )
                )
            if key not in used | numbers:
                raise CaptureError(
                    no_such(
                        f"region {name} ({self.location()}): there is a range for '{key}', which is not a size",
                        key,
                        sorted(used | numbers) or ["no ranges"],
                        fix="correct the name, or remove the range",
                    )
                )
        return tuple(Symbol(symbol, *self.ranges.get(symbol, (0, None))) for symbol in dict.fromkeys(plain))

    def _returns(self, name: str, hint: Any) -> tuple[tuple[annotation.TensorType, ...] | None, tuple[str, ...] | None]:
        output_names = None
        if hint is None or hint is torch.Tensor:
            return None, None
        if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
            output_names = tuple(hint._fields)
            hints = tuple(_type_hints(hint, name).values())
        elif typing.get_origin(hint) is tuple:
            hints = typing.get_args(hint)
        else:
            hints = (hint,)
        if all(one is torch.Tensor for one in hints):
            return None, output_names
        read = []
        for position, one in enumerate(hints):
            try:
                kind = annotation.read(one, f"out{position}")
            except ValueError as error:
                raise CaptureError(
                    message(
                        f"region {name} ({self.location()}): output {position} cannot be typed",
                        expected="a tensor with one dtype and a fixed rank, or no annotation",
                        got=str(error),
                        fix=_FIX_ANNOTATION,
                    )
                ) from error
            if not isinstance(kind, annotation.TensorType):
                raise CaptureError(
                    message(
                        f"region {name} ({self.location()}): output {position} is a number",
                        expected="tensors",
                        got=str(one),
                        fix="return a tensor of rank 0",
                    )
                )
            read.append(kind)
        return tuple(read), output_names


def _is_range(bounds: Any, lowest: int | None) -> bool:
    """Whether it is ``(minimum, maximum)``, in order and not below ``lowest``; the maximum may be ``None``."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        return False
    minimum, maximum = bounds
    if type(minimum) is not int or not (maximum is None or type(maximum) is int):
        return False
    return (lowest is None or minimum >= lowest) and (maximum is None or minimum <= maximum)


def _type_hints(code: Any, name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(code)
    except Exception as error:
        raise CaptureError(
            message(f"region {name}: its annotations cannot be evaluated", got=str(error), fix=_FIX_ANNOTATION)
        ) from error


class _Options(TypedDict, total=False):
    name: str | None
    ranges: Mapping[str, tuple[int, int | None]] | None
    params: Mapping[str, Any] | None
    inputs: Mapping[str, Any] | None
    examples: Mapping[str, Any] | None
    out: bool
    grad: bool
    device: str
    options: Mapping[str, Any] | None


@overload
def region(target: Callable[..., Any], /, **options: Unpack[_Options]) -> Region: ...


@overload
def region(target: None = None, /, **options: Unpack[_Options]) -> Callable[[Callable[..., Any]], Region]: ...


def region(
    target: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
    params: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    examples: Mapping[str, Any] | None = None,
    out: bool = True,
    grad: bool = False,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> Region | Callable[[Callable[..., Any]], Region]:
    """Marks a function or a ``torch.nn.Module`` for ``torchcc build``, as a decorator or as a call.

    Tensors are annotated with jaxtyping, ``x: Float32[Tensor, "n 768"]``. A name in the dimensions is a symbol: one
    value in all places, known when C++ calls. ``_`` is a symbol of its own. Expressions such as ``2*n`` are allowed
    where the name also stands alone. Arguments annotated ``float``, ``int`` or ``bool`` are numbers that C++ passes on
    each call; with a default value, or a value in ``params``, they are constants, and so is an argument of any other
    type that has one.

    Args:
        target: The function, or the module (its ``forward`` is annotated, or ``inputs`` is given; its weights go into
            the package). Evaluation mode is the caller's business: call ``module.eval()``.
        name: The C++ name; by default the function's, or the variable that holds the region.
        ranges: Allowed values (minimum, maximum) of symbols and of ``int`` arguments, both ends included; a maximum of
            ``None`` is no limit. Default: 0 and up.
        params: Constants for arguments.
        inputs: Annotations for arguments that have none, by name.
        examples: Example values for arguments, by name, where random ones will not do (indices, say). They are used to
            capture and to verify, and fix nothing.
        out: Also compile a variant that writes into given outputs (C++ ``name_out``); doubles the compile time. Not of
            a module with ``grad``, whose weights are inputs of the code.
        grad: Also compile forward and backward for calls whose results carry gradients: those of all arguments and
            parameters that are floating point. The region may not write into its arguments.
        device: Where its tensors are, ``"cpu"`` or ``"cuda"``: this machine's current GPU, which the code is compiled
            for. Numbers stay C++ numbers. A module has to be there already.
        options: Options of Inductor, e.g. ``{"max_autotune": True}``.

    Returns:
        A :class:`Region`, which still can be called from Python.
    """
    if target is None:
        return lambda function: region(
            function,
            name=name,
            ranges=ranges,
            params=params,
            inputs=inputs,
            examples=examples,
            out=out,
            grad=grad,
            device=device,
            options=options,
        )
    if device not in DEVICES:
        raise ArgumentError(no_such(f"torchcc.region: there is no device '{device}'", device, DEVICES))
    if not callable(target):
        raise ArgumentError(
            message(
                "torchcc.region: the first argument cannot be compiled",
                expected="a function or a torch.nn.Module",
                got=type(target).__name__,
                fix="decorate a function, or pass a module",
            )
        )
    if name is None and not isinstance(target, torch.nn.Module):
        name = getattr(target, "__name__", None)
    return Region(
        target=target,
        name=name,
        ranges=dict(ranges or {}),
        params=dict(params or {}),
        inputs=dict(inputs or {}),
        examples=dict(examples or {}),
        out=out,
        grad=grad,
        device=device,
        options=dict(options or {}),
    )
