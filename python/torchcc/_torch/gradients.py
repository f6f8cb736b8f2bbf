"""Exported programs that train: their forward and backward graphs, and what eager PyTorch does with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram

from torchcc._torch.inductor import flat
from torchcc._torch.joint import Halves, halves
from torchcc._torch.programs import draws_random_numbers, examples, flatten, mutations, weights
from torchcc._torch.symbols import size_ranges


@dataclass(frozen=True)
class Differentiated:
    """A program with its gradients.

    Attributes:
        halves: Both graphs; inputs are the program's tensors, then weights.
        covered: Per output, the outputs whose part of autograd's graph is in its own: after backward from it, these are
            freed too.
        reached: Per output, the inputs that get a gradient from it.
        is_random: Whether two runs on the same inputs may differ.
    """

    halves: Halves
    covered: Sequence[Sequence[int]]
    reached: Sequence[Sequence[int]]
    is_random: bool


def tensor_function(
    program: ExportedProgram, names: Sequence[str]
) -> Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]:
    """A program as a function of its tensors and of these weights, which autograd follows; it may write into them."""
    module, _ = flat(program, names)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    return lambda tensors: flatten(module.forward(*tensors))


def differentiable(program: ExportedProgram, names: Sequence[str], fakes: Sequence[Any]) -> list[bool]:
    """Which of a program's tensors and weights can have gradients: arguments and parameters that are no whole numbers.

    Args:
        program: The program.
        names: Of the weights.
        fakes: The program's tensors, then the weights.
    """
    parameters = set(program.graph_signature.parameters)
    own = len(fakes) - len(names)
    return [
        (one.is_floating_point() or one.is_complex()) and (position < own or names[position - own] in parameters)
        for position, one in enumerate(fakes)
    ]


def differentiate(
    program: ExportedProgram,
    names: Sequence[str],
    adapt: Callable[[Any, Sequence[Any]], tuple[Any, Sequence[Any]]],
    options: Mapping[str, Any],
    arguments: bool = True,
) -> Differentiated:
    """The two graphs of a program, for gradients of all its parameters, and of all its arguments.

    Args:
        program: With example inputs.
        names: All weights that the graph uses, which become inputs.
        adapt: As :func:`torchcc._torch.halves` takes it.
        options: Inductor's options.
        arguments: Whether arguments get gradients.

    Raises:
        ValueError: It has nothing that can be differentiated, takes numbers, or writes into its arguments.
        Exception: Whatever PyTorch raises for operators without a derivative.
    """
    module, _ = flat(program, names)
    fakes = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    written, written_weights = mutations(program)
    if written:
        raise ValueError("it writes into its arguments")
    if not all(isinstance(one, torch.Tensor) for one in fakes):
        raise ValueError("it takes numbers")
    own = len(fakes) - len(names)
    mutated = [own + position for position, name in enumerate(names) if name in written_weights]
    grads = [
        one and position not in mutated and (arguments or position >= own)
        for position, one in enumerate(differentiable(program, names, fakes))
    ]
    held = weights(program)
    given = [one for one in examples(program) if isinstance(one, torch.Tensor)]
    if len(given) != own:
        raise ValueError("it has no example arguments")
    run = tensor_function(program, names)
    eager = _Eager(run, [*given, *(held[name] for name in names)], grads)
    if not any(eager.output_grads):
        raise ValueError("no result has a gradient: it depends on no argument or parameter by differentiable operators")

    def function(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tensors = [one.clone() if position in mutated else one for position, one in enumerate(inputs)]
        outputs = [
            one.clone(memory_format=torch.contiguous_format) if position in eager.apart else one
            for position, one in enumerate(run(tensors))
        ]
        return (*outputs, *(tensors[position].detach() for position in mutated))

    with fakes[0].fake_mode:
        inputs = [
            torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device).requires_grad_(needed)
            for one, needed in zip(fakes, grads, strict=True)
        ]
    made = halves(
        function,
        inputs,
        eager.output_grads,
        mutated,
        (eager.held_inputs, eager.held_outputs),
        adapt,
        options,
        prefer_general=any(low < 2 for low, _ in size_ranges(program).values()),
    )
    return Differentiated(made, eager.covered, eager.reached, draws_random_numbers(program))


class _Eager:
    """What a run of a function shows about its gradients.

    Attributes:
        output_grads: Which outputs require grad.
        apart: Outputs that are views, share memory with other tensors of the call, or are not contiguous.
        held_inputs, held_outputs: Which of them autograd keeps for backward.
        covered, reached: See :class:`Differentiated`.
    """

    def __init__(
        self,
        run: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
        examples: Sequence[torch.Tensor],
        grads: Sequence[bool],
    ) -> None:
        inputs = [one.detach().clone().requires_grad_(needed) for one, needed in zip(examples, grads, strict=True)]
        saved: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(tensor)
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = run(inputs)
        kept = {_memory(one) for one in saved}
        memories = [_memory(one) for one in (*inputs, *outputs)]
        self.output_grads = [one.requires_grad for one in outputs]
        self.apart = {
            position
            for position, one in enumerate(outputs)
            if one._is_view() or memories.count(_memory(one)) > 1 or not one.is_contiguous()
        }
        self.held_inputs = [_memory(one) in kept for one in inputs]
        self.held_outputs = [_memory(one) in kept for one in outputs]
        parts = [_nodes(one) for one in outputs]
        self.covered = [
            [other for other, inner in enumerate(parts) if other == position or (inner and inner <= part)]
            for position, part in enumerate(parts)
        ]
        self.reached = [
            [
                position
                for position, one in enumerate(inputs)
                if one is output or any(getattr(node, "variable", None) is one for node in part)
            ]
            for output, part in zip(outputs, parts, strict=True)
        ]


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _nodes(output: torch.Tensor) -> set[Any]:
    """Autograd's graph of a tensor."""
    found: set[Any] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(one for one, _ in node.next_functions)
    return found
