"""Operators by the names that traces give them: how they are called, and forms of them that torch.export takes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchcc import _torch


@functools.cache
def find(name: str) -> Any:
    """The operator of a name such as ``"aten::add.Tensor"`` or ``"aten::linear"``.

    Raises:
        LookupError: There is none in this process.
    """
    namespace, _, rest = name.partition("::")
    packet_name, _, overload = rest.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet_name), overload or "default")
    except AttributeError as error:
        raise LookupError(f"no operator {name} in this torch") from error


def call(operator: Any, args: Sequence[Any]) -> Any:
    """Calls an operator with all arguments in the schema's order, those that are keyword-only included.

    Defaults are left out where Python code would leave them out, because that is what Inductor's patterns know.
    """
    positional: list[Any] = []
    keywords = {}
    needed = 0
    for argument, value in zip(_torch.schema(operator).arguments, args, strict=True):
        default = argument.has_default_value() and _same(value, argument.default_value)
        if not argument.kwarg_only:
            positional.append(value)
            needed = needed if default else len(positional)
        elif not default:
            keywords[argument.name] = value
    return operator(*positional[:needed], **keywords)


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and not isinstance(value, torch.Tensor) and bool(value == default)


@dataclass(frozen=True)
class Argument:
    """What a schema says about an argument."""

    name: str
    keyword_only: bool
    has_default: bool
    default: Any


@functools.cache
def arguments(name: str) -> tuple[Argument, ...] | None:
    """The arguments of an operator; ``None`` if this process does not know it."""
    try:
        schema = _torch.schema(find(name))
    except LookupError:
        return None
    return tuple(
        Argument(one.name, one.kwarg_only, one.has_default_value(), one.default_value) for one in schema.arguments
    )


@functools.cache
def changes_form(operator: Any) -> bool:
    """Whether it changes sizes or strides of its first argument in place (``t_``, ``unsqueeze_``, ``resize_``)."""
    return torch.Tag.inplace_view in operator.tags


@functools.cache
def out_of_place(operator: Any) -> Any:
    """``transpose`` for ``transpose_``.

    Raises:
        LookupError: There is no such form.
    """
    namespace, _, name = operator.name().partition(".")[0].partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    wanted = [str(argument.type) for argument in _torch.schema(operator).arguments]
    for overload in packet.overloads() if packet else ():
        candidate = getattr(packet, overload)
        if [str(argument.type) for argument in _torch.schema(candidate).arguments] == wanted:
            return candidate
    raise LookupError(f"no form of {operator.name()} that leaves its argument alone")


def for_complex(operator: Any, args: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """A call with complex values, as AOTInductor can write it into its code; other calls as they are.

    It calls PyTorch's own kernels for complex tensors, and then takes neither complex numbers nor, in many operators,
    real ones: they become tensors, or else floats.
    """
    tensors = [one for one in args if isinstance(one, torch.Tensor)]
    numbers = [one for one in args if isinstance(one, complex)]
    if not tensors or not (numbers or any(one.is_complex() for one in tensors)):
        return operator, args
    args = list(args)
    for position, argument in enumerate(_torch.schema(operator).arguments[: len(args)]):
        number = args[position]
        if str(argument.type) != "number" or not isinstance(number, (int, float, complex)):
            continue
        form = _taking_tensor(operator, position)
        if form is not None and (isinstance(number, complex) or "pow" not in operator.name()):
            args[position] = complex_tensor(number, torch.result_type(tensors[0], number))
            operator = form
        elif isinstance(number, int):
            args[position] = float(number)
    return operator, args


def complex_tensor(number: complex, dtype: torch.dtype) -> torch.Tensor:
    """A complex number as a tensor of rank 0, made of real ones."""
    parts = [torch.full((), part, dtype=dtype.to_real()) for part in (number.real, number.imag)]
    return torch.complex(*parts)


@functools.cache
def _taking_tensor(operator: Any, position: int) -> Any:
    """``mul.Tensor`` for ``mul.Scalar``: the overload that takes a tensor at ``position``, or ``None``."""
    namespace, _, name = operator.name().partition(".")[0].partition("::")
    packet = getattr(getattr(torch.ops, namespace), name)
    wanted = [(argument.name, str(argument.type)) for argument in _torch.schema(operator).arguments]
    wanted[position] = (wanted[position][0], "Tensor")
    for overload in packet.overloads():
        candidate = getattr(packet, overload)
        if [(one.name, str(one.type)) for one in _torch.schema(candidate).arguments] == wanted:
            return candidate
    return None


#: Attention as PyTorch has it for GPUs in 16 bits, and some of it in 32.
_FUSED_ATTENTION = ("flash_attention", "efficient_attention", "cudnn_attention")


def wide_attention(operator: Any, args: Sequence[Any]) -> list[torch.Tensor] | None:
    """What an operator for fused attention on a GPU, or for its gradients, gives for float64, where it has no kernel.

    PyTorch's attention computes it with other operators. Of what only its own backward needs, nothing is given.

    Returns:
        One tensor for each result, or ``None`` for other calls.
    """
    name = operator.name().partition(".")[0].removeprefix("aten::_scaled_dot_product_")
    if name.removesuffix("_backward") not in _FUSED_ATTENTION:
        return None
    schema = _torch.schema(operator)
    given = {argument.name: one for argument, one in zip(schema.arguments, args, strict=True)}
    inputs = [given[key] for key in ("query", "key", "value")]
    if inputs[0].dtype != torch.float64 or given["dropout_p"]:
        return None
    backward = name.endswith("_backward")
    with torch.set_grad_enabled(backward):
        query, key, value = leaves = [one.detach().requires_grad_(backward) for one in inputs]
        mask, causal, scale = given.get("attn_bias"), given["is_causal"], given["scale"]
        results = [
            torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=causal, scale=scale
            )
        ]
    if backward:
        gradient = given["grad_out_"] if "grad_out_" in given else given["grad_out"]
        results = list(torch.autograd.grad(results, leaves, gradient))
    return [*results, *(results[0].new_zeros(()) for _ in schema.returns[len(results) :])]


@dataclass(frozen=True)
class OutForm:
    """An operator that writes into ``out`` arguments, and the one that returns the same instead.

    Attributes:
        outs: Positions of the ``out`` arguments.
        functional: The operator that returns its results.
        order: For each argument of ``functional`` the position in the other's, or ``None`` for one that it lacks.
    """

    outs: tuple[int, ...]
    functional: Any
    order: tuple[int | None, ...]

    def call(self, args: Sequence[Any], dtypes: Sequence[torch.dtype]) -> list[torch.Tensor]:
        """What would be written. ``dtypes`` are those of the ``out`` arguments."""
        arguments = _torch.schema(self.functional).arguments
        given = []
        for argument, position in zip(arguments, self.order, strict=True):
            value = argument.default_value if position is None else args[position]
            given.append(dtypes[0] if argument.name == "dtype" and value is None else value)
        returned = call(self.functional, given)
        return [returned] if isinstance(returned, torch.Tensor) else list(returned)


@functools.cache
def out_form(operator: Any) -> OutForm | None:
    """How to compute what an ``out`` variant writes; ``None`` for other operators.

    Raises:
        LookupError: No operator returns it.
    """
    arguments = _torch.schema(operator).arguments
    outs = tuple(i for i, argument in enumerate(arguments) if argument.is_out)
    if not outs:
        return None
    rest = {argument.name: i for i, argument in enumerate(arguments) if i not in outs}
    namespace, _, base = operator.name().partition(".")[0].partition("::")
    for name in (base, base.removesuffix("_out")):
        packet = getattr(getattr(torch.ops, namespace), name, None)
        for overload in packet.overloads() if packet else ():
            candidate = getattr(packet, overload)
            order = _order(candidate, rest, [arguments[i] for i in rest.values()])
            if order is not None:
                return OutForm(outs, candidate, order)
    raise LookupError(f"no operator that returns what {operator.name()} writes")


def needs_recorded_sizes(operator: Any) -> bool:
    """Whether sizes of its result are the recorded ones: of ``out`` variants, which may grow, and of ``resize_``."""
    return operator.name() in RESIZING or any(argument.is_out for argument in _torch.schema(operator).arguments)


#: Operators that give a tensor other sizes, and other memory where that is too small.
RESIZING = ("aten::resize_", "aten::resize_as_")


def _order(candidate: Any, positions: dict[str, int], wanted: Sequence[Any]) -> tuple[int | None, ...] | None:
    """Where the arguments of ``candidate`` are found; ``None`` when it is not the same operator without ``out``."""
    own = _torch.schema(candidate).arguments
    types = {argument.name: str(argument.type) for argument in wanted}
    if any(argument.is_out or argument.is_write for argument in own) or not positions.keys() <= {a.name for a in own}:
        return None
    order: list[int | None] = []
    for argument in own:
        if argument.name in types:
            if types[argument.name] != str(argument.type):
                return None
        elif not argument.has_default_value():
            return None
        order.append(positions.get(argument.name))
    return tuple(order)
