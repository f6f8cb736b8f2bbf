"""Traces: the operator calls that C++ recorded. trace_json.py reads them, replay.py runs them.

A trace is a list of dispatcher calls. Tensors are named by value ids; one id stands for one view of one storage, so an
operator that works in place gives back the id that it was given.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from torchcc.trace_arguments import Argument, Output, number, number_ids, output_ids

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
        numbers = {value for op in self.ops for value in number_ids(op.args)}
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
        dtype = dtype_named(argument["dtype"])
        return {"dtype": dtype_name(_WIDER.get(dtype, dtype))}
    return argument


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"``."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The dtype of such a name.

    Raises:
        AttributeError: torch has nothing of that name.
        TypeError: It has something else.
    """
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype
