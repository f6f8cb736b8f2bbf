"""Sizes and numbers that a backward graph takes from the forward one: it computes them again from its tensors."""

from __future__ import annotations

from typing import Any

import torch


class Sizes:
    """Gives nodes of a graph that compute symbolic sizes from its tensor inputs.

    Leans on ``torch.utils._sympy.interp.sympy_interp``, by which PyTorch itself writes expressions into graphs.
    """

    def __init__(self, graph: Any, before: Any) -> None:
        """Nodes are added in front of ``before``, which comes after all inputs."""
        self._graph = graph
        self._before = before

    def node(self, size: Any) -> Any:
        """A node that has this value; the value itself where it is known.

        Raises:
            ValueError: No input tells.
        """
        from torch.utils._sympy.interp import sympy_interp
        from torch.utils._sympy.reference import PythonReferenceAnalysis

        expression = size.node.expr
        if expression.is_number:
            return int(expression) if isinstance(size, torch.SymInt) else float(expression)
        with self._graph.inserting_before(self._before):
            tracer = torch.fx.proxy.GraphAppendingTracer(self._graph)
            symbols = {one: torch.fx.Proxy(self._symbol(one), tracer) for one in expression.free_symbols}
            node = sympy_interp(PythonReferenceAnalysis, symbols, expression).node
        node.meta.setdefault("val", size)
        return node

    def _symbol(self, symbol: Any) -> Any:
        for node in self._graph.nodes:
            value = node.meta.get("val") if node.op == "placeholder" else None
            for dimension, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if isinstance(size, torch.SymInt) and size.node.expr == symbol:
                    made = self._graph.call_function(torch.ops.aten.sym_size.int, (node, dimension))
                    made.meta["val"] = size
                    return made
        raise ValueError(f"backward needs the size {symbol}, which no tensor has that it takes")


def take_only_tensors(forward: Any, backward: Any, count: int) -> None:
    """Leaves out the sizes and numbers that backward takes from forward, as compiled code takes tensors only.

    The partitioner puts them behind all else that forward gives, and in front of all else that backward takes. Backward
    reads numbers again from the tensors that they came from.

    Args:
        forward: Gives the program's results, then what backward needs.
        backward: Takes what forward gives it, then gradients.
        count: How many results the program has.
    """
    (output,) = [node for node in forward.graph.nodes if node.op == "output"]
    results = list(output.args[0])
    taken = [node for node in backward.graph.nodes if node.op == "placeholder"]
    symbolic = [node for node in taken if not isinstance(node.meta["val"], torch.Tensor)]
    first = next(node for node in backward.graph.nodes if node.op != "placeholder")
    tensors = results[count : len(results) - len(symbolic)]
    sources = results[len(results) - len(symbolic) :] if symbolic else []
    numbers = [(node, source) for node, source in zip(symbolic, sources, strict=True) if _is_read(source)]
    for node, source in numbers:
        origin = source.args[0]
        if origin not in tensors:
            tensors.append(origin)
            anchor = next((one for one in taken if one not in symbolic), first)
            # In front of the gradients, behind the other saved tensors.
            saved = [one for one in taken if one not in symbolic][len(tensors) - 2 : len(tensors) - 1]
            with backward.graph.inserting_after(saved[0]) if saved else backward.graph.inserting_before(anchor):
                placeholder = backward.graph.placeholder(f"number_{origin.name}")
            placeholder.meta = dict(origin.meta)
            taken.insert(taken.index(saved[0]) + 1 if saved else taken.index(anchor), placeholder)
        else:
            placeholder = [one for one in taken if one not in symbolic][tensors.index(origin)]
        with backward.graph.inserting_before(first):
            read = backward.graph.call_function(source.target, (placeholder,))
        read.meta = dict(source.meta)
        node.replace_all_uses_with(read)
    known = {node for node, _ in numbers}
    for node in symbolic:
        if node not in known:
            node.replace_all_uses_with(Sizes(backward.graph, first).node(node.meta["val"]))
        backward.graph.erase_node(node)
    output.args = ((*results[:count], *tensors),)
    for module in (forward, backward):
        module.graph.lint()
        module.recompile()


def _is_read(node: Any) -> bool:
    """Whether this is a number that was read from an input."""
    return node.target is torch.ops.aten._local_scalar_dense.default and node.args[0].op == "placeholder"
