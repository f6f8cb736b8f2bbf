"""Traces: the operator calls that C++ recorded, read from JSON.

A trace is a list of dispatcher calls. Tensors are named by value ids; one id stands for one view of one storage, so an
operator that works in place gives back the id that it was given.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from torchcc.errors import CaptureError, message

FORMAT = "torchcc-trace"
#: Of what lazy mode recorded: several traces, and what became of them.
SEGMENTS = "torchcc-segments"
VERSION = 1

#: An argument as JSON holds it: ``None``, a bool, an int, or a dict with one key that says what it is.
Argument: TypeAlias = Any

#: What an operator returned, per return of its schema: ``None``, a value id, a list of them, or ``{"constant": ...}``.
Output: TypeAlias = Any

Values: TypeAlias = dict[int, torch.Tensor]


@dataclass(frozen=True)
class Metadata:
    """Form of a value.

    ``offset`` is in elements from the start of its storage, as the recorded tensor had it; ``requires_grad`` is what it
    was when the value was made, in traces that need gradients; ``device`` is ``"cpu"``, or ``"cuda"`` for the one GPU
    of the trace.
    """

    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    requires_grad: bool = False
    device: str = "cpu"

    def fits(self, other: Metadata) -> bool:
        """Whether dtype, sizes, strides and device are the same; a stride that nothing steps over does not count."""
        return (self.dtype, self.sizes, self._steps(), self.device) == (
            other.dtype,
            other.sizes,
            other._steps(),
            other.device,
        )

    def _steps(self) -> tuple[int, ...]:
        if 0 in self.sizes:
            return ()
        return tuple(0 if size == 1 else stride for size, stride in zip(self.sizes, self.strides, strict=True))

    def contiguous(self) -> bool:
        """Whether elements follow each other in memory, the last dimension fastest."""
        step = 1
        for size, stride in zip(reversed(self.sizes), reversed(self._steps() or self.sizes), strict=True):
            if size > 1 and stride != step:
                return False
            step *= size
        return True

    def __str__(self) -> str:
        return f"{self.text()} with strides {list(self.strides)}"

    def text(self) -> str:
        """``"float32[8, 128]"``."""
        place = "" if self.device == "cpu" else f" on {self.device}"
        return f"{dtype_name(self.dtype)}[{', '.join(map(str, self.sizes))}]{place}"

    def floating(self) -> bool:
        """Whether its values are rounded."""
        return self.dtype.is_floating_point or self.dtype.is_complex


@dataclass(frozen=True)
class Input:
    """An input: its value id; ``"argument"``, ``"captured"`` (a weight, say) or ``"constant"``; and its name.

    In traces that need gradients, ``requires_grad`` says whether gradients flow into it, and ``held`` whether eager
    PyTorch keeps it for them, so that a program that writes into it before backward gets an error.
    """

    value: int
    kind: str
    name: str
    requires_grad: bool = False
    held: bool = False


@dataclass(frozen=True)
class Free:
    """A size of an input that other calls have otherwise: which input, which dimension, and a number for the symbol.

    Dimensions of the same symbol have the same size in all calls.
    """

    input: int
    dim: int
    symbol: int


@dataclass(frozen=True)
class Condition:
    """What the program has found to be so of sizes, and acted upon: ``left relation right``.

    ``step`` is the number of operators that came before; the sides are arguments; ``relation`` is one of
    :class:`torchcc.signature.Guard`.
    """

    step: int
    relation: str
    left: Argument
    right: Argument


@dataclass(frozen=True)
class Op:
    """One operator call.

    Attributes:
        name: ``"aten::add.Tensor"``.
        args: All arguments in the schema's order.
        outputs: One per return of the schema.
        autocast: The dtype that autocast had on the CPU, if it was enabled.
        autocast_cuda: The same on GPUs.
        cache: Whether autocast kept the weights that it cast.
        grad: Whether grad mode was on, in traces that need gradients.
    """

    name: str
    args: tuple[Argument, ...]
    outputs: tuple[Output, ...]
    autocast: torch.dtype | None = None
    cache: bool = True
    grad: bool = True
    autocast_cuda: torch.dtype | None = None

    def only_reads_metadata(self) -> bool:
        """Whether all it returned are numbers that cannot differ (sizes, ``equal`` of a tensor and itself)."""
        return bool(self.outputs) and all(isinstance(output, Mapping) for output in self.outputs)


@dataclass(frozen=True)
class Environment:
    """Settings of the recording thread that operators read."""

    default_dtype: torch.dtype = torch.float32
    deterministic: bool = False
    inference_mode: bool = False
    matmul_precision: str = "highest"

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """These settings, without gradients, for the body."""
        dtype = torch.get_default_dtype()
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.set_default_dtype(self.default_dtype)
        torch.use_deterministic_algorithms(self.deterministic)
        try:
            with torch.no_grad():
                yield
        finally:
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.set_float32_matmul_precision(precision)


@dataclass(frozen=True)
class Trace:
    """What capture records of a C++ function.

    Attributes:
        name: The function's name.
        values: By value id.
        inputs: Inputs, in the order in which compiled code takes them.
        outputs: Value ids that compiled code returns.
        mutated: Positions of the inputs that the operators write into.
        random: Whether operators draw random numbers.
        output_grads: Which outputs require grad; empty where none does.
        held_outputs: Which outputs eager PyTorch keeps for gradients; likewise.
        free: The sizes that the code is to take as they come. Numbers in arguments that follow from them are
            ``{"size": ...}``.
        symbols: Names of the symbols of these sizes.
        conditions: On which the program branches, by ``step``.
    """

    name: str
    environment: Environment
    values: tuple[Metadata, ...]
    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    outputs: tuple[int, ...]
    mutated: tuple[int, ...]
    random: bool
    output_grads: tuple[bool, ...] = ()
    held_outputs: tuple[bool, ...] = ()
    free: tuple[Free, ...] = ()
    symbols: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether compiled code needs a backward."""
        return bool(self.output_grads)

    @property
    def on_gpu(self) -> bool:
        """Whether some value is on a GPU."""
        return any(one.device != "cpu" for one in self.values)

    @functools.cached_property
    def device_numbers(self) -> tuple[int, ...]:
        """Positions of the inputs that are numbers, and that the code is to take on the GPU if it can.

        They are recorded on the CPU, like others.
        """
        numbers = {value for op in self.ops for value in _number_ids(op.args)}
        return tuple(
            position
            for position, one in enumerate(self.inputs)
            if one.value in numbers and self.values[one.value].device != "cpu"
        )

    @functools.cached_property
    def unwritten(self) -> frozenset[int]:
        """Values that nobody has written: what fused attention without dropout gives beside its result.

        Only its own backward takes them, and knows what of them counts.
        """
        found: set[int] = set()
        for op in self.ops:
            if op.name.endswith(_ATTENTION) and 0.0 in (_plain(one) for one in op.args):
                found.update(output_ids(op.outputs[1:]))
        return frozenset(found)

    def widened(self) -> Trace:
        """The same operators in float64 and complex128, for results without much rounding."""
        return replace(
            self,
            environment=replace(self.environment, default_dtype=torch.float64),
            ops=tuple(
                replace(op, args=tuple(map(_widened_argument, op.args)), autocast=None, autocast_cuda=None)
                for op in self.ops
            ),
        )


def metadata(tensor: torch.Tensor) -> Metadata:
    """Form of a tensor."""
    return Metadata(
        tensor.dtype,
        tuple(tensor.shape),
        tuple(tensor.stride()),
        int(tensor.storage_offset()),
        device=tensor.device.type,
    )


_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64 or complex128; whole numbers as they are."""
    return tensor.to(_WIDER.get(tensor.dtype, tensor.dtype))


_ATTENTION = ("_dot_product_flash_attention", "_dot_product_efficient_attention", "_dot_product_cudnn_attention")


def _plain(argument: Argument) -> Any:
    return number(argument["float"]) if isinstance(argument, Mapping) and "float" in argument else None


def _widened_argument(argument: Argument) -> Argument:
    if isinstance(argument, Mapping) and "dtype" in argument:
        dtype = _dtype(argument["dtype"])
        return {"dtype": dtype_name(_WIDER.get(dtype, dtype))}
    return argument


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"``."""
    return str(dtype).removeprefix("torch.")


def read(file: Path) -> Trace:
    """Reads a trace.

    Raises:
        CaptureError: The file is missing, is no trace, or has another version.
    """
    return parse(load(file), str(file))


def load(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CaptureError: The file is missing, or no JSON.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(str(file), f"{type(error).__name__}: {error}") from error


def parse(content: Mapping[str, Any], origin: str) -> Trace:
    """A trace from its JSON. ``origin`` is for messages.

    Raises:
        CaptureError: It is no trace, or of another version.
    """
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise _unreadable(origin, f'JSON that does not state "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise _unreadable(origin, f"version {content.get('version')}")
    try:
        return Trace(
            name=str(content["name"]),
            environment=_environment(content["environment"]),
            values=tuple(map(_metadata, content["values"])),
            inputs=tuple(
                Input(one["value"], one["kind"], one["name"], bool(one.get("requires_grad")), bool(one.get("held")))
                for one in content["inputs"]
            ),
            ops=tuple(map(_op, content["ops"])),
            outputs=tuple(content["outputs"]),
            mutated=tuple(content["mutated"]),
            random=bool(content["random"]),
            output_grads=tuple(map(bool, content.get("output_grads", ()))),
            held_outputs=tuple(map(bool, content.get("held_outputs", ()))),
            free=tuple(Free(*one) for one in content.get("free", ())),
            symbols=tuple(content.get("symbols", ())),
            conditions=tuple(
                Condition(one["step"], one["relation"], one["left"], one["right"])
                for one in content.get("conditions", ())
            ),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(origin, f"{type(error).__name__}: {error}") from error


def _unreadable(origin: str, got: str) -> CaptureError:
    return CaptureError(
        message(
            f"{origin}: it cannot be read as a trace",
            expected=f"a trace of version {VERSION}",
            got=got,
            fix="record it with the version of torchcc that compiles it",
        )
    )


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype


def _environment(content: Mapping[str, Any]) -> Environment:
    return Environment(
        _dtype(content["default_dtype"]),
        bool(content["deterministic"]),
        bool(content["inference_mode"]),
        content.get("matmul_precision", "highest"),
    )


def _metadata(content: Mapping[str, Any]) -> Metadata:
    return Metadata(
        _dtype(content["dtype"]),
        tuple(content["sizes"]),
        tuple(content["strides"]),
        content.get("offset", 0),
        bool(content.get("requires_grad")),
        content.get("device", "cpu"),
    )


def _op(content: Mapping[str, Any]) -> Op:
    autocast, autocast_cuda = content.get("autocast"), content.get("autocast_cuda")
    return Op(
        content["op"],
        tuple(content["args"]),
        tuple(content["outputs"]),
        _dtype(autocast) if autocast else None,
        content.get("cache", True),
        bool(content.get("grad", True)),
        _dtype(autocast_cuda) if autocast_cuda else None,
    )


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


def _number_ids(arguments: Iterable[Argument]) -> Iterator[int]:
    """Value ids of numbers in arguments."""
    for argument in arguments:
        if isinstance(argument, Mapping):
            if "number" in argument:
                yield argument["number"]
            yield from _number_ids(argument.get("list", ()))


def output_ids(outputs: Iterable[Output]) -> Iterator[int]:
    """Value ids among what an operator returned."""
    for output in outputs:
        if isinstance(output, list):
            yield from output_ids(output)
        elif isinstance(output, int) and not isinstance(output, bool):
            yield output
