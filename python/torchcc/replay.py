"""Runs traces again: as PyTorch modules, which torch.export takes."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchcc import _torch, operators, trace_arguments
from torchcc.errors import CaptureError, message
from torchcc.trace import Metadata, Op, Trace, Values
from torchcc.trace_arguments import Output


class Replay(torch.nn.Module):
    """Runs a trace's operators, as ``torch.export`` wants it.

    ``forward`` takes the inputs that are not fixed, in order, and returns the outputs. Fixed inputs are buffers and
    parameters, which the compiler may fold and pack.
    """

    def __init__(
        self,
        recorded: Trace,
        fixed: Mapping[int, torch.Tensor] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """``fixed`` gives the values of inputs, by position, that become constants, and ``names`` their names."""
        super().__init__()
        self._trace = recorded
        self._fixed = {position: (names or {}).get(position, f"input{position}") for position in fixed or {}}
        for position, name in self._fixed.items():
            _register(self, name, (fixed or {})[position])

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs that are not fixed, in order; gives the outputs."""
        given = iter(inputs)
        values: Values = {}
        for position, one in enumerate(self._trace.inputs):
            name = self._fixed.get(position)
            values[one.value] = next(given) if name is None else operator.attrgetter(name)(self)
        _unite(self._trace, values)
        for position, op in enumerate(self._trace.ops):
            _promise(self._trace, position, values)
            if op.only_reads_metadata():
                continue
            try:
                if self._trace.free and operators.needs_recorded_sizes(operators.find(op.name)):
                    raise ValueError("it resizes a tensor, which needs sizes as they were recorded")
                with _autocast(op), _autocast_cuda(op), _grad_mode(op, self._trace):
                    run_op(op if self._trace.trains else _with_views(op), values, self._trace.values)
                if self._trace.trains:
                    _check_requires_grad(op, values, self._trace.values)
            except Exception as error:
                raise CaptureError(
                    message(
                        f"operator {position} of {self._trace.name}, {op.name}, cannot be run again",
                        got=f"{type(error).__name__}: {error}",
                    )
                ) from error
        _promise(self._trace, len(self._trace.ops), values)
        return tuple(values[value] for value in self._trace.outputs)


def _unite(recorded: Trace, values: Values) -> None:
    """Tells torch.export which sizes are the same in all calls."""
    first: dict[int, Any] = {}
    for one in recorded.free:
        size = values[recorded.inputs[one.input].value].shape[one.dim]
        _torch.check(size == first.setdefault(one.symbol, size))


_RELATIONS = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le}


def _promise(recorded: Trace, step: int, values: Values) -> None:
    """Tells torch.export what the program has found to be so of sizes by this operator."""
    for one in recorded.conditions:
        if one.step == step:
            left, right = (trace_arguments.decode(side, values) for side in (one.left, one.right))
            _torch.check(_RELATIONS[one.relation](left, right))


# Parts of one memory that autograd takes for tensors of their own, as torch.export does: it would lose what is written
# into them.
_VIEWS = {
    "aten::unsafe_chunk": "aten::chunk",
    "aten::unsafe_split.Tensor": "aten::split.Tensor",
    "aten::unsafe_split_with_sizes": "aten::split_with_sizes",
}


def _with_views(op: Op) -> Op:
    """The operator, or the one of the same arguments that gives views of the same memory."""
    return dataclasses.replace(op, name=_VIEWS[op.name]) if op.name in _VIEWS else op


def _register(root: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Adds a tensor under a name with dots, as a parameter if it is one."""
    *path, last = name.split(".")
    for part in path:
        if not isinstance(getattr(root, part, None), torch.nn.Module):
            root.add_module(part, torch.nn.Module())
        root = getattr(root, part)
    if isinstance(tensor, torch.nn.Parameter):
        root.register_parameter(last, tensor)
    else:
        root.register_buffer(last, tensor)


def _autocast(op: Op) -> contextlib.AbstractContextManager[Any]:
    if op.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=op.autocast, cache_enabled=op.cache)


def _autocast_cuda(op: Op) -> contextlib.AbstractContextManager[Any]:
    if op.autocast_cuda is None:
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=op.autocast_cuda, cache_enabled=op.cache)


def _grad_mode(op: Op, recorded: Trace) -> contextlib.AbstractContextManager[Any]:
    return torch.set_grad_enabled(op.grad) if recorded.trains else contextlib.nullcontext()


def _check_requires_grad(op: Op, values: Values, metadata: Sequence[Metadata]) -> None:
    known = {value for argument in op.args for value in trace_arguments.tensor_ids(argument)}
    for value in trace_arguments.output_ids(op.outputs):
        if value not in known and values[value].requires_grad != metadata[value].requires_grad:
            recorded = "requires" if metadata[value].requires_grad else "does not require"
            raise ValueError(f"its result {recorded} grad in the recorded call, and here it is the other way round")


def run_op(op: Op, values: Values, metadata: Sequence[Metadata]) -> None:
    """Runs one operator and adds what it returns to ``values``.

    An operator that changes the sizes of a tensor in place, or that writes into a given ``out``, runs in its ordinary
    form: torch.export takes neither.
    """
    operator = operators.find(op.name)
    args = [trace_arguments.decode(argument, values) for argument in op.args]
    if form := operators.out_form(operator):
        results = _run_out_form(op, form, args, metadata)
    elif wide := operators.wide_attention(operator, args):
        results = [_laid_out(one, output, metadata) for output, one in zip(op.outputs, wide, strict=True)]
    elif operators.changes_form(operator):
        results = [_run_out_of_place(operator, args, metadata[op.outputs[0]])]
    else:
        returned = operators.call(*operators.for_complex(operator, args))
        results = list(returned) if len(op.outputs) > 1 and isinstance(returned, (tuple, list)) else [returned]
    known = {value for argument in op.args for value in trace_arguments.tensor_ids(argument)}
    for output, result in zip(op.outputs, results, strict=False):
        _bind(output, result, values, known)


def _bind(output: Output, result: Any, values: Values, known: set[int]) -> None:
    if isinstance(output, list):
        for one, tensor in zip(output, result, strict=True):
            _bind(one, tensor, values, known)
    # An operator that returned its argument: the id means the same memory, whatever the operator made while tracing.
    elif isinstance(output, int) and not isinstance(output, bool) and output not in known:
        if not isinstance(result, torch.Tensor):
            raise ValueError(f"it returned {type(result).__name__} where a tensor was recorded")
        values[output] = result


def _run_out_form(
    op: Op, form: operators.OutForm, args: Sequence[Any], metadata: Sequence[Metadata]
) -> list[torch.Tensor]:
    """Computes what ``op`` writes into its ``out`` arguments, then copies it there, or replaces them if they grew."""
    outs = [args[position] for position in form.outs]
    computed = form.call(args, [out.dtype for out in outs])
    results = []
    for out, tensor, output in zip(outs, computed, op.outputs, strict=True):
        grown = metadata[output].sizes != tuple(out.shape)
        results.append(tensor.to(out.dtype) if grown else out.copy_(tensor))
    return results


def _laid_out(tensor: torch.Tensor, output: Output, metadata: Sequence[Metadata]) -> torch.Tensor:
    """The tensor with the strides that were recorded, since what follows may be views that only these have."""
    if not isinstance(output, int) or metadata[output].sizes != tuple(tensor.shape):
        return tensor
    return torch.empty_strided(tensor.shape, metadata[output].strides, dtype=tensor.dtype, device=tensor.device).copy_(
        tensor
    )


def _run_out_of_place(operator: Any, args: Sequence[Any], result: Metadata) -> Any:
    if operator.name() in operators.RESIZING:
        return _resized(args[0], result)
    return operators.call(operators.out_of_place(operator), args)


def _resized(tensor: torch.Tensor, result: Metadata) -> torch.Tensor:
    """``resize_``: a view of the same elements where they suffice, else new memory that begins with them."""
    needed = _extent(result.sizes, result.strides)
    if needed <= tensor.numel() and tensor.is_contiguous():
        return tensor.as_strided(result.sizes, result.strides, tensor.storage_offset())
    grown = tensor.new_empty((needed,))
    if tensor.numel():
        grown[: tensor.numel()].copy_(tensor.contiguous().view(-1))
    return grown.as_strided(result.sizes, result.strides, 0)


def _extent(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Elements between the first and the last, inclusive."""
    if 0 in sizes:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with memory of its own, of the same strides and offset, even where elements overlap."""
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        return tensor.clone()
    length = tensor.storage_offset() + _extent(tensor.shape, tensor.stride())
    memory = tensor.as_strided((length,), (1,), 0).clone()
    # Of its own for autograd too: where grad mode is off, a view requires grad if what it is a view of does.
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).detach()
