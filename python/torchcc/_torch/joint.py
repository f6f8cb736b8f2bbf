"""Forward and backward of a function as graphs: AOTAutograd's joint graph, split by its partitioner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from torchcc._torch.inductor_patches import mended_decompositions, without_guards_on_numbers
from torchcc._torch.programs import flatten
from torchcc._torch.saved_sizes import Sizes, take_only_tensors

#: Where a tensor comes from that backward needs: ``"input"``, ``"output"`` or ``"extra"``, and its position there.
Saved: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Halves:
    """A function that can be differentiated, as two graphs.

    Attributes:
        forward: Takes the inputs; gives the outputs, then the extra tensors that only backward needs. It writes into
            inputs as the function does.
        backward: Takes the saved tensors, then gradients of outputs; gives gradients of inputs.
        saved: Where backward's first inputs come from.
        extras: How many extra tensors there are.
        strides: Of the saved tensors, as backward takes them.
        tangents: Outputs whose gradients backward takes, with the strides that it takes them in; ``None``: contiguous,
            with sizes that are symbolic.
        gradients: Inputs whose gradients backward gives.
        copied: Positions in ``gradients`` that need memory of their own, with their strides: where backward passes on
            what it takes, or gives one tensor twice, Inductor's code would free it twice.
    """

    forward: Any
    backward: Any
    saved: Sequence[Saved]
    extras: int
    strides: Sequence[tuple[int, ...]]
    tangents: Sequence[tuple[int, tuple[int, ...] | None]]
    gradients: Sequence[int]
    copied: Mapping[int, tuple[int, ...]]


def halves(
    function: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[torch.Tensor],
    output_grads: Sequence[bool],
    mutated: Sequence[int],
    held: tuple[Sequence[bool], Sequence[bool]],
    adapt: Callable[[Any, Sequence[Any]], tuple[Any, Sequence[Any]]],
    options: Mapping[str, Any],
    prefer_general: bool = False,
) -> Halves:
    """Differentiates ``function`` for inputs that require grad as given.

    Leans on ``torch._functorch.aot_autograd.aot_export_joint_simple``, ``torch._inductor.compile_fx.partition_fn``
    (Inductor's passes over joint graphs, then the min-cut partitioner, which computes again in backward what costs less
    than to keep) and ``torch._inductor.decomposition``.

    Args:
        function: Takes ``inputs``, which it must not write into; gives its outputs, then new contents for the inputs
            ``mutated``. What it gives may not share memory.
        inputs: Example inputs.
        output_grads: Which outputs require grad.
        mutated: Positions of inputs.
        held: Which inputs, and which outputs, may be kept for backward, for which they must not be written into; of all
            others copies are kept.
        adapt: Takes an operator and its arguments, and gives a call of the same meaning in which complex tensors stand
            for complex numbers, which Inductor cannot write.
        options: Inductor's options.
        prefer_general: As :func:`torchcc._torch.export` takes it, for fake inputs with symbolic sizes.
    """
    from torch._functorch.aot_autograd import aot_export_joint_simple
    from torch._inductor import config
    from torch._inductor.compile_fx import partition_fn
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V
    from torch.fx.experimental import _config as fx_config

    count = len(output_grads) + len(mutated)
    with (
        torch.enable_grad(),
        mended_decompositions(),
        config.patch(dict(options)),
        fx_config.patch(backed_size_oblivious=prefer_general),  # type: ignore[attr-defined]
    ):

        def split(patches: Mapping[str, Any]) -> tuple[Any, Any]:
            joint: Any = aot_export_joint_simple(
                function, tuple(inputs), trace_joint=True, decompositions=select_decomp_table()
            )
            _take_tokens_out(joint)
            fakes = [node.meta["val"] for node in joint.graph.nodes if node.op == "placeholder"]
            with V.set_fake_mode(fakes[0].fake_mode), config.patch(dict(patches)):
                made: tuple[Any, Any] = partition_fn(joint, fakes, num_fwd_outputs=count)
            return made

        forward, backward = without_guards_on_numbers(split)
    _check_once(forward, backward)
    fake_mode = next(node.meta["val"].fake_mode for node in forward.graph.nodes if node.op == "placeholder")
    for half in (forward, backward):
        _replace_complex_numbers(half.graph, fake_mode, adapt)
    take_only_tensors(forward, backward, count)
    return _tidy(forward, backward, output_grads, mutated, held)


def _take_tokens_out(joint: Any) -> None:
    """Lets a joint graph call operators with effects (checks of matrices for errors) as they are.

    AOTAutograd keeps their order by tokens, inputs and outputs of the graph that the program does not have, and does so
    again where a half is compiled. Leans on ``torch.ops.higher_order.with_effects``.
    """
    graph = joint.graph
    tokens = set()
    for node in [node for node in graph.nodes if node.target is torch.ops.higher_order.with_effects]:
        token, operator, *args = node.args
        with graph.inserting_before(node):
            called = graph.call_function(operator, tuple(args), dict(node.kwargs))
            called.meta = {**node.meta, "val": node.meta["val"][1]}
            for user in list(node.users):
                position = user.args[1]
                if position == 0:
                    tokens.add(user)
                    continue
                is_single = len(operator._schema.returns) == 1
                part = called if is_single else graph.call_function(user.target, (called, position - 1))
                part.meta = dict(user.meta)
                user.replace_all_uses_with(part)
                graph.erase_node(user)
        if token.op == "placeholder":
            tokens.add(token)
        node.args = (None, *node.args[1:])
    if not tokens:
        return
    output = _output(joint)
    with_effects = [token.args[0] for token in tokens if token.op != "placeholder"]
    output.args = (tuple(one for one in flatten(output.args[0]) if one not in tokens),)
    for node in [*tokens, *with_effects]:
        graph.erase_node(node)
    graph.set_codegen(torch.fx.graph.CodeGen())  # the old one counts inputs and outputs
    graph.lint()
    joint.recompile()


def _check_once(forward: Any, backward: Any) -> None:
    """Leaves out of backward what has effects and was done in forward, and what only that needs."""
    from torch._library.utils import is_impure

    done = {(node.name, node.target) for node in forward.graph.nodes}
    for node in list(backward.graph.nodes):
        if (
            node.op == "call_function"
            and not node.users
            and (node.name, node.target) in done
            and is_impure(node.target)
        ):
            backward.graph.erase_node(node)
    backward.graph.eliminate_dead_code()
    backward.recompile()


def _replace_complex_numbers(
    graph: Any, fake_mode: Any, adapt: Callable[[Any, Sequence[Any]], tuple[Any, Sequence[Any]]]
) -> None:
    """Those in autograd's formulas, and those that Inductor's passes made of other constants."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is torch.ops.aten.full.default and node.meta["val"].is_complex():
            with graph.inserting_before(node):
                made = _complex_tensor(graph, complex(node.args[1]), node.meta["val"])
            node.replace_all_uses_with(made)
            graph.erase_node(node)
            continue
        values = [one.meta.get("val") if isinstance(one, torch.fx.Node) else one for one in node.args]
        with fake_mode:
            operator, adapted = adapt(node.target, values)
        if operator is node.target and all(old is new for old, new in zip(values, adapted, strict=True)):
            continue
        args = []
        for old, new in zip(node.args, adapted, strict=True):
            if isinstance(old, torch.fx.Node):
                args.append(old)
            elif isinstance(new, torch.Tensor):
                with graph.inserting_before(node):
                    args.append(_complex_tensor(graph, complex(old), new))
            else:
                args.append(new)
        node.target = operator
        node.args = tuple(args)


def _complex_tensor(graph: Any, number: complex, fake: Any) -> Any:
    """A tensor like ``fake`` full of a number; of operators that Inductor does not fold into one number again."""
    aten = torch.ops.aten

    def add(operator: Any, *args: Any, **kwargs: Any) -> Any:
        node = graph.call_function(operator, args, kwargs)
        with fake.fake_mode:
            node.meta["val"] = operator(*torch.fx.node.map_arg(args, lambda one: one.meta["val"]), **kwargs)
        return node

    # Three different numbers, or it would see that they are all the same.
    parts = (number.real, number.imag, number.real + 1)
    parted = add(aten.cat.default, [add(aten.full.default, [1], part, dtype=fake.dtype.to_real()) for part in parts])
    made = add(aten.complex.default, *(add(aten.select.int, parted, 0, position) for position in range(2)))
    return add(aten.expand.default, made, list(fake.shape)) if fake.dim() else made


def _tidy(
    forward: Any,
    backward: Any,
    output_grads: Sequence[bool],
    mutated: Sequence[int],
    held: tuple[Sequence[bool], Sequence[bool]],
) -> Halves:
    count = len(output_grads)
    placeholders = [node for node in forward.graph.nodes if node.op == "placeholder"]
    results = flatten(_output(forward).args[0])
    kept = results[count + len(mutated) :]
    taken = [node for node in backward.graph.nodes if node.op == "placeholder"]
    tangents = taken[len(kept) :]
    _move_views(forward, backward, kept, taken)
    # Nodes of views have become other nodes: what they are views of.
    inputs = {node: i for i, node in enumerate(placeholders) if held[0][i] and i not in mutated}
    outputs = {node: i for i, node in enumerate(results[:count]) if held[1][i]}
    programs_own = {*placeholders, *results[:count]}
    saved: list[Saved] = []
    extras: list[Any] = []
    positions: dict[Any, int] = {}
    strides: list[tuple[int, ...]] = []
    for position, node in enumerate(kept):
        if node in positions:  # backward gets it once
            taken[position].replace_all_uses_with(taken[positions[node]])
            backward.graph.erase_node(taken[position])
            continue
        positions[node] = position
        strides.append(tuple(taken[position].meta["val"].stride()))
        if node in inputs:
            saved.append(("input", inputs[node]))
        elif node in outputs:
            saved.append(("output", outputs[node]))
        else:
            saved.append(("extra", len(extras)))
            extras.append(_copy(forward, node) if node in programs_own else node)
    _end(
        forward, [*results[:count], *extras], zip((placeholders[one] for one in mutated), results[count:], strict=False)
    )
    gradients = flatten(_output(backward).args[0])
    given = [position for position, node in enumerate(gradients) if node is not None]
    _end(backward, [gradients[position] for position in given], ())
    copied = {}
    seen = {node for node in backward.graph.nodes if node.op == "placeholder"}
    for number, position in enumerate(given):
        node = gradients[position]
        while _is_view(node):
            node = node.args[0]
        if node in seen:
            copied[number] = tuple(gradients[position].meta["val"].stride())
        seen.add(node)
    differentiable = [position for position, needed in enumerate(output_grads) if needed]
    return Halves(
        forward=forward,
        backward=backward,
        saved=saved,
        extras=len(extras),
        strides=strides,
        tangents=[
            (position, _tangent_strides(position, node.meta["val"]))
            for position, node in zip(differentiable, tangents, strict=True)
        ],
        gradients=given,
        copied=copied,
    )


def _tangent_strides(position: int, fake: torch.Tensor) -> tuple[int, ...] | None:
    strides = tuple(fake.stride())
    if not any(isinstance(stride, torch.SymInt) for stride in strides):
        return strides
    if not fake.is_contiguous():
        raise ValueError(f"the gradient of output {position} has strides that follow from sizes: {list(strides)}")
    return None


def _output(module: Any) -> Any:
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    return output


def _is_view(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return (
        node.op == "call_function"
        and schema is not None
        and len(schema.returns) == 1
        and schema.returns[0].alias_info is not None
        and not schema.returns[0].alias_info.is_write
    )


def _move_views(forward: Any, backward: Any, kept: list[Any], taken: Sequence[Any]) -> None:
    """Lets backward make views itself, of tensors that are kept in their place.

    A view that is kept would share memory, but no version counter, with a tensor of the program. Changes ``kept``, and
    what backward's placeholders ``taken`` are.
    """
    first = next(node for node in backward.graph.nodes if node.op != "placeholder")
    moved = []
    for position, node in enumerate(kept):
        chain = []
        while _is_view(node) and all(
            not isinstance(one, torch.fx.Node) or one is node.args[0] or isinstance(one.meta["val"], torch.SymInt)
            for one in flatten((node.args, node.kwargs))
        ):
            chain.append(node)
            node = node.args[0]
        if not chain:
            continue
        kept[position] = node
        placeholder = taken[position]
        moved.append((placeholder, chain[::-1], list(placeholder.users)))
        placeholder.meta = dict(node.meta)
    sizes = Sizes(backward.graph, first)
    for placeholder, chain, users in moved:
        view = placeholder
        for one in chain:
            args, kwargs = torch.fx.node.map_arg((one.args[1:], one.kwargs), lambda size: sizes.node(size.meta["val"]))
            with backward.graph.inserting_before(first):
                view = backward.graph.call_function(one.target, (view, *args), kwargs)
            view.meta = dict(one.meta)
        for user in users:
            user.replace_input_with(placeholder, view)


def _copy(module: Any, node: Any) -> Any:
    with module.graph.inserting_before(_output(module)):
        copy = module.graph.call_function(torch.ops.aten.clone.default, (node,))
    copy.meta["val"] = node.meta["val"]
    return copy


def _end(module: Any, results: Sequence[Any], written: Any) -> None:
    """Lets a graph return ``results``, after it has copied new contents into placeholders."""
    output = _output(module)
    with module.graph.inserting_before(output):
        for placeholder, content in written:
            module.graph.call_function(torch.ops.aten.copy_.default, (placeholder, content))
    output.args = (tuple(results),)
    module.graph.lint()
    module.recompile()
