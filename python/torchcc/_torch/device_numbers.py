"""Numbers that a call brings, as tensors of rank 0 on the device of the operators, so that the host reads none.

Tensors of rank 0 promote otherwise than numbers of Python (float32 of rank 0 times float64 is float64), so everything
here states the dtype that an operator computes in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten

_READS = (aten.item.default, aten._local_scalar_dense.default)

# Python's operators on numbers, and what does the same to tensors of float64.
_MATHS: Mapping[Any, Any] = {
    operator.add: aten.add.Tensor,
    operator.sub: aten.sub.Tensor,
    operator.mul: aten.mul.Tensor,
    operator.truediv: aten.div.Tensor,
    operator.pow: aten.pow.Tensor_Tensor,
    operator.neg: aten.neg.default,
    torch.sym_sqrt: aten.sqrt.default,
}

# Operators on tensors and a number, and those that do the same where the number is a tensor.
_ARITHMETIC: Mapping[Any, Any] = {
    **{one: one for one in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)},
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
    aten.pow.Tensor_Scalar: aten.pow.Tensor_Tensor,
    aten.pow.Scalar: aten.pow.Tensor_Tensor,
}
_COMPARISONS: Mapping[Any, Any] = {
    aten.eq.Scalar: aten.eq.Tensor,
    aten.ne.Scalar: aten.ne.Tensor,
    aten.lt.Scalar: aten.lt.Tensor,
    aten.le.Scalar: aten.le.Tensor,
    aten.gt.Scalar: aten.gt.Tensor,
    aten.ge.Scalar: aten.ge.Tensor,
}

# ``x + value * (y op z)``.
_SUMS: Mapping[Any, Any] = {
    aten.addcmul.default: aten.mul.Tensor,
    aten.addcdiv.default: aten.div.Tensor,
}

# Kernels compute with these in float32.
_NARROW = (torch.float16, torch.bfloat16)


class NeededOnHostError(Exception):
    """An operator that takes a number in a way in which it cannot be a tensor; ``str()`` is its name."""


def keep_on_device(graph: Graph) -> None:
    """Puts tensors in place of all numbers that a graph of ATen's operators reads from its inputs.

    For graphs as Inductor has them after decomposition, before it looks for patterns.

    Raises:
        NeededOnHostError: An operator has to know a number. The graph is then of no use.
    """
    _OnDevice(graph).run()


class _OnDevice:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._tensors: dict[Node, Node] = {}  # by number
        self._casts: dict[tuple[Node, torch.dtype], Node] = {}

    def run(self) -> None:
        for node in list(self._graph.nodes):
            if node.target in _READS:
                self._tensors[node] = node.args[0]
            elif any(one in self._tensors for one in node.all_input_nodes):
                with self._graph.inserting_before(node):
                    self._replace(node)
        for number in reversed(self._tensors):
            self._graph.erase_node(number)

    def _replace(self, node: Any) -> None:
        target = node.target
        has_usual_form = not node.kwargs or dict(node.kwargs) == {"alpha": 1}
        if target in _MATHS and not node.kwargs:
            self._tensors[node] = self._call(_MATHS[target], *(self._as_double(one, node) for one in node.args))
            return
        result = node.meta.get("val")
        if target is aten.full.default and node.args[1] in self._tensors and result.dtype.is_floating_point:
            ones = self._call(target, node.args[0], 1, **node.kwargs)
            made = self._call(aten.mul.Tensor, ones, self._cast(self._tensors[node.args[1]], result.dtype))
        elif target in _ARITHMETIC and len(node.args) == 2 and has_usual_form and result.dtype.is_floating_point:
            made = self._call(_ARITHMETIC[target], *self._operands(node.args, result.dtype))
            made = self._cast(made, result.dtype)
        elif target in _SUMS and set(node.kwargs) == {"value"} and result.dtype.is_floating_point:
            *terms, factor = self._operands((*node.args, node.kwargs["value"]), result.dtype)
            product = self._call(aten.mul.Tensor, self._call(_SUMS[target], *terms[1:]), factor)
            made = self._cast(self._call(aten.add.Tensor, terms[0], product), result.dtype)
        elif target in _COMPARISONS and len(node.args) == 2:
            tensor = node.args[0].meta["val"]
            dtype = torch.result_type(torch.empty((1,), dtype=tensor.dtype), 1.0)
            if not dtype.is_floating_point:
                raise _needed_by(node)
            made = self._call(_COMPARISONS[target], *(self._cast(self._tensor(one), dtype) for one in node.args))
        else:
            raise _needed_by(node)
        got = made.meta["val"]
        if (got.dtype, tuple(got.shape), got.device) != (result.dtype, tuple(result.shape), result.device):
            raise _needed_by(node)
        made.meta = {**node.meta, "val": got}
        node.replace_all_uses_with(made)
        self._graph.erase_node(node)

    def _operands(self, arguments: Iterable[Any], dtype: torch.dtype) -> list[Node]:
        """Tensors in the dtype that kernels compute in for results of ``dtype``."""
        computed = torch.float32 if dtype in _NARROW else dtype
        return [self._cast(self._tensor(one), computed) for one in arguments]

    def _tensor(self, one: Any) -> Node:
        """A tensor, or the one that is in a number's place."""
        tensor = self._tensors.get(one, one)
        assert isinstance(tensor, Node)
        return tensor

    def _as_double(self, one: Any, user: Node) -> Node:
        if one in self._tensors:
            return self._tensors[one]
        if not isinstance(one, int | float):
            raise _needed_by(user)
        device = next(iter(self._tensors.values())).meta["val"].device
        return self._call(aten.full.default, [], float(one), dtype=torch.float64, device=device)

    def _cast(self, tensor: Node, dtype: torch.dtype) -> Node:
        if tensor.meta["val"].dtype == dtype:
            return tensor
        cast = self._casts.get((tensor, dtype))
        if cast is None:
            cast = self._call(torch.ops.prims.convert_element_type.default, tensor, dtype)
            self._casts[tensor, dtype] = cast
        return cast

    def _call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        node = self._graph.call_function(target, args, kwargs)
        values = torch.fx.map_arg((args, kwargs), lambda one: one.meta["val"])
        with self._mode():
            node.meta["val"] = target(*values[0], **values[1])
        return node

    def _mode(self) -> Any:
        return next(iter(self._tensors.values())).meta["val"].fake_mode


def _needed_by(node: Node) -> NeededOnHostError:
    target: Any = node.target
    return NeededOnHostError(target.name() if hasattr(target, "_schema") else str(target))
