"""Exported programs: how they are made, what they take and give, and how they run."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warning about a class that it copies and pickles itself (``torch.utils._pytree.LeafSpec``)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    dynamic_shapes: Any,
    prefer_general: bool,
    kwargs: Mapping[str, Any] | None = None,
) -> ExportedProgram:
    """``torch.export.export``, non-strict.

    Args:
        module: What to capture.
        args: Example inputs.
        dynamic_shapes: As torch.export takes them.
        prefer_general: Do not assume that symbolic sizes are at least 2, so that the code is right for 0 and 1 too.
            Leans on ``torch.fx.experimental._config.backed_size_oblivious``.
        kwargs: Example keyword arguments.
    """
    from torch.fx.experimental import _config as fx_config

    with quiet(), fx_config.patch(backed_size_oblivious=prefer_general):  # type: ignore[attr-defined]
        return torch.export.export(
            module, args, dict(kwargs) if kwargs else None, dynamic_shapes=dynamic_shapes, strict=False
        )


def save(program: ExportedProgram, file: Path) -> None:
    """``torch.export.save``."""
    with quiet():
        torch.export.save(program, file)


def without_own_containers(program: ExportedProgram) -> ExportedProgram:
    """A program that a process without the user's classes can load: flat where it takes or gives such containers.

    Dataclasses and named tuples are stored by the names of their classes, which are often in ``__main__``. Leans on
    ``ModuleCallEntry`` of ``torch.export``, and on fields of ``ExportedProgram``.
    """
    pytree = torch.utils._pytree
    specs = [program.call_spec.in_spec, program.call_spec.out_spec]
    known = {tuple, list, dict, None}
    if None in specs or all(spec.type in known for outer in specs for spec in _all_specs(outer)):
        return program
    count_in, count_out = (spec.num_leaves for spec in specs if spec is not None)
    call = program.module_call_graph[0].signature
    assert call is not None
    made = copy.copy(program)
    made._module_call_graph = [
        torch.export.ModuleCallEntry(
            "",
            torch.export.ModuleCallSignature(
                call.inputs,
                call.outputs,
                in_spec=pytree.tree_structure(((0,) * count_in, {})),
                out_spec=pytree.tree_structure((0,) * count_out),
            ),
        )
    ]
    made._example_inputs = (tuple(examples(program)), {}) if program.example_inputs is not None else None
    made._guards_code = []  # they name the inputs as they were
    return made


def _all_specs(spec: Any) -> list[Any]:
    return [spec, *(inner for child in spec.children() for inner in _all_specs(child))]


def load(file: str) -> ExportedProgram:
    """``torch.export.load``."""
    with quiet():
        return torch.export.load(file)


def load_operators(library: Path) -> None:
    """Loads a shared library that registers operators. ``torch.ops.load_library``, which does it once."""
    torch.ops.load_library(str(library.resolve()))  # type: ignore[no-untyped-call]


def storable(program: ExportedProgram) -> ExportedProgram:
    """A program that ``torch.export.save`` takes: it fails without outputs.

    In the form without mutation, what is written into the inputs is an output.
    """
    if program.graph_signature.output_specs:
        return program
    with quiet():
        functional: ExportedProgram = program.run_decompositions({})
    return functional


def schema(operator: Any) -> Any:
    """An operator's schema: ``arguments`` and ``returns``. Leans on ``OpOverload._schema``."""
    return operator._schema


def check(condition: Any) -> None:
    """Promises the compiler something about a run-time number. ``torch._check``."""
    torch._check(condition)  # type: ignore[no-untyped-call]


def flatten(tree: Any) -> list[Any]:
    """Leaves of nested tuples, lists and dicts. Leans on ``torch.utils._pytree``."""
    return torch.utils._pytree.tree_leaves(tree)


def placeholders(program: ExportedProgram) -> list[Any]:
    """Fake values of the user's inputs, in order."""
    names = set(program.graph_signature.user_inputs)
    return [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def outputs(program: ExportedProgram) -> list[Any]:
    """Fake values of the user's outputs, in order; a constant output is itself."""
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    skip = len(program.graph_signature.output_specs) - len(program.graph_signature.user_outputs)
    return [node.meta["val"] if isinstance(node, torch.fx.Node) else node for node in list(output.args[0])[skip:]]


def leaf_names(program: ExportedProgram) -> tuple[list[str], list[str]]:
    """Names of the leaves of the inputs and of the outputs, with dots for what is nested: ``"state.0"``.

    An output that is one tensor is ``"out"``, those of a tuple are ``"out0"``, ``"out1"``. Leans on ``TreeSpec`` and
    ``tree_flatten_with_path`` of ``torch.utils._pytree``, and on ``module_call_graph``.
    """
    pytree = torch.utils._pytree
    call = program.module_call_graph[0].signature
    spec = program.call_spec.in_spec
    if spec is None or call is None:
        raise ValueError("the program does not say how it is called")
    arguments, keywords = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    positional = list(call.forward_arg_names or [])[: len(arguments)]
    positional += [f"arg{position}" for position in range(len(positional), len(arguments))]
    tree = {**dict(zip(positional, arguments, strict=True)), **keywords}
    inputs = [""] * spec.num_leaves
    for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
        inputs[leaf] = ".".join(map(_key_name, path))
    out = program.call_spec.out_spec
    if out is None:
        raise ValueError("the program does not say what it gives")
    results = pytree.tree_unflatten(list(range(out.num_leaves)), out)
    outputs = []
    for path, _ in pytree.tree_flatten_with_path(results)[0]:
        parts = [_key_name(key) for key in path]
        if not path:
            parts = ["out"]
        elif isinstance(path[0], pytree.SequenceKey):
            parts[0] = f"out{parts[0]}" if out.num_leaves > 1 else "out"
        outputs.append(".".join(parts))
    return inputs, outputs


def _key_name(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))


def _leaf_nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    held = {*weight_inputs(program), *program.graph_signature.inputs_to_lifted_custom_objs}
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name not in held]


def positions(program: ExportedProgram, names: Iterable[str]) -> list[int]:
    """Positions among the leaves of the inputs, of inputs by their names in the graph."""
    wanted = set(names)
    return [position for position, node in enumerate(_leaf_nodes(program)) if node.name in wanted]


def input_leaves(program: ExportedProgram) -> list[Any]:
    """Fake values of all leaves of the inputs, in order: also of those that are burnt in, which are themselves."""
    return [node.meta.get("val") for node in _leaf_nodes(program)]


def contiguous(tree: Any) -> Any:
    """The same with contiguous tensors in place of others."""
    return torch.utils._pytree.tree_map(
        lambda one: one.contiguous() if isinstance(one, torch.Tensor) and one.layout == torch.strided else one, tree
    )


def named_arguments(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names that ``forward`` has for them. Leans on ``torch.export.dynamic_shapes._combine_args``."""
    from torch.export.dynamic_shapes import _combine_args

    combined: dict[str, Any] = _combine_args(module.forward, args, dict(kwargs))
    return combined


def with_forward(
    module: torch.nn.Module, forward: Callable[..., Any], arguments: Sequence[str] | None = None
) -> torch.nn.Module:
    """A shallow copy of a module with another ``forward``: it keeps its class's behaviour and its weights' names.

    Args:
        module: What to copy.
        forward: Called with the copy and the arguments.
        arguments: Names of positional arguments, after which torch.export names the graph's inputs; by default those of
            ``forward``.
    """
    if arguments is not None:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in ("self", *arguments)]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    made = copy.copy(module)
    original = type(module)
    made.__class__ = type(original.__name__, (original,), {"forward": forward})
    return made


def parts(tree: Any) -> list[Any] | None:
    """What a registered container that is none of Python's own holds, a dataclass for instance; ``None`` for others.

    For such a container torch.export takes a list as dynamic shapes. Leans on ``BUILTIN_TYPES`` and ``SUPPORTED_NODES``
    of ``torch.utils._pytree``.
    """
    pytree = torch.utils._pytree
    kind = pytree._get_node_type(tree)
    if kind in pytree.BUILTIN_TYPES or kind not in pytree.SUPPORTED_NODES:
        return None
    held, _ = pytree.SUPPORTED_NODES[kind].flatten_fn(tree)
    return list(held)


def dynamic_leaves(arguments: Mapping[str, Any], dynamic_shapes: Any) -> dict[str, Any]:
    """What ``dynamic_shapes`` says about each leaf of some arguments, by the names of :func:`leaf_names`.

    Leans on ``torch.export.dynamic_shapes._tree_map_with_path``.
    """
    from torch.export.dynamic_shapes import _tree_map_with_path

    tree: Any = arguments
    if isinstance(dynamic_shapes, tuple | list):
        tree = type(dynamic_shapes)(arguments.values())
    found: dict[str, Any] = {}
    names = list(arguments)

    def note(path: Any, leaf: Any, dimensions: Any) -> None:
        first, *rest = (_key_name(key) for key in path)
        found[".".join([first if first in arguments else names[int(first)], *rest])] = dimensions

    _tree_map_with_path(note, tree, dynamic_shapes, tree_name="inputs")
    return found


def examples(program: ExportedProgram) -> list[Any]:
    """Leaves of the example arguments, in order; empty when the program has none."""
    if program.example_inputs is None:
        return []
    return list(torch.utils._pytree.tree_leaves(program.example_inputs, is_leaf=lambda one: one is None))


def _arguments(program: ExportedProgram, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from their leaves."""
    assert program.call_spec.in_spec is not None
    args, kwargs = torch.utils._pytree.tree_unflatten(list(leaves), program.call_spec.in_spec)
    return tuple(args), kwargs


def _results(module: Any, program: ExportedProgram, leaves: Sequence[Any]) -> list[Any]:
    """Leaves of what a call gives, ``None`` among them."""
    args, kwargs = _arguments(program, leaves)
    with torch.no_grad():
        results = module(*args, **kwargs)
    return list(torch.utils._pytree.tree_leaves(results, is_leaf=lambda one: one is None))


def as_function(program: ExportedProgram) -> Callable[[Sequence[Any]], list[Any]]:
    """A program as a function of the leaves of its inputs. It uses, and writes into, the program's own weights."""
    with quiet():
        module = program.module()
    return lambda leaves: _results(module, program, leaves)


def as_pure_function(
    program: ExportedProgram,
) -> Callable[[Sequence[Any]], tuple[list[Any], dict[str, torch.Tensor]]]:
    """The same, but each call begins with the program's buffers as they are, on copies of them.

    Returns:
        A function that gives leaves of the outputs, and the buffers after the call.
    """
    with quiet():
        module = program.module()
    shared = {id(parameter): parameter for parameter in module.parameters()}

    def run(leaves: Sequence[Any]) -> tuple[list[Any], dict[str, torch.Tensor]]:
        with quiet():
            own = copy.deepcopy(module, dict(shared))
        return _results(own, program, leaves), dict(own.named_buffers())

    return run


def weights(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Parameters, buffers and constants by name."""
    return {
        name: one for name, one in {**program.constants, **program.state_dict}.items() if isinstance(one, torch.Tensor)
    }


def device_of(program: ExportedProgram | torch.nn.Module) -> str:
    """``"cuda"`` where some tensor of a graph is on a GPU, else ``"cpu"``."""
    graph: Any = program.graph
    on_gpu = any(fake.device.type == "cuda" for node in graph.nodes for fake in _fakes(node))
    return "cuda" if on_gpu else "cpu"


def gpus(program: ExportedProgram) -> set[str]:
    """The GPUs on which a graph's tensors are."""
    return {str(fake.device) for node in program.graph.nodes for fake in _fakes(node) if fake.device.type == "cuda"}


def _fakes(node: torch.fx.Node) -> list[torch.Tensor]:
    return [one for one in flatten(node.meta.get("val")) if isinstance(one, torch.Tensor)]


def uncapturable(*programs: ExportedProgram | torch.nn.Module, numbers: Sequence[int] = ()) -> str:
    """Why no CUDA graph can be made of programs: the first operator that the host has to run. Empty without one.

    There is nothing to say of those on the CPU.

    Args:
        programs: The programs.
        numbers: Positions of inputs whose values the code does not read on the host, though the graphs do.
    """
    if not any(device_of(program) == "cuda" for program in programs):
        return ""
    graphs: list[Any] = [program.graph for program in programs]
    known = {symbol for graph in graphs for symbol in _symbols_of(graph, numbers)}
    for node in itertools.chain.from_iterable(graph.nodes for graph in graphs):
        if node.op != "call_function":
            continue
        values = flatten(node.meta.get("val"))
        if any(
            isinstance(one, torch.SymInt | torch.SymFloat | torch.SymBool) and _is_read(one, known) for one in values
        ):
            return f"{node.target} reads a number from the GPU"
        if any(isinstance(one, torch.Tensor) and any(map(_is_read, one.shape)) for one in values):
            return f"{node.target} gives a size that only the data decides"
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return f"{node.target} branches on the host"
        if any(isinstance(one, torch.Tensor) and one.device.type == "cpu" for one in values):
            return f"{node.target} computes on the CPU"
    return ""


def _is_read(number: Any, known: Collection[Any] = ()) -> bool:
    """Whether only the data decides a number, beside the symbols ``known``.

    Leans on ``torch.fx.experimental.symbolic_shapes``.
    """
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return any(symbol not in known for symbol in free_unbacked_symbols(number))


def _symbols_of(graph: Any, positions: Sequence[int]) -> Iterator[Any]:
    """The symbols of numbers that a graph reads from some of its inputs, which are of rank 0."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    if not positions:
        return
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for user in (user for position in positions for user in inputs[position].users):
        yield from (symbol for one in flatten(user.meta.get("val")) for symbol in free_unbacked_symbols(one))


def weight_inputs(program: ExportedProgram) -> dict[str, str]:
    """Names of the parameters, buffers and constants, by the names of the graph's inputs that stand for them."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def weight_names(program: ExportedProgram) -> list[str]:
    """Names of the parameters, buffers and constants that the graph uses, in its order."""
    names = weight_inputs(program)
    used = (node for node in program.graph.nodes if node.op == "placeholder" and node.name in names and node.users)
    return list(dict.fromkeys(names[node.name] for node in used))


def output_containers(program: ExportedProgram) -> set[type]:
    """Types of the containers that hold the outputs; empty for a single tensor. Leans on ``TreeSpec``."""
    found: set[type] = set()
    specs = [program.call_spec.out_spec]
    while specs:
        spec = specs.pop()
        if spec is not None and spec.type is not None:
            found.add(spec.type)
            specs.extend(spec.children())
    return found


def mutations(program: ExportedProgram) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the user's inputs, and of the module's buffers, that the program writes into."""
    if program not in _MUTATIONS:
        with quiet():
            signature = program.run_decompositions({}).graph_signature
        _MUTATIONS[program] = (
            frozenset(signature.user_inputs_to_mutate.values()),
            frozenset(signature.buffers_to_mutate.values()),
        )
    return _MUTATIONS[program]


# It takes seconds to find out.
_MUTATIONS: weakref.WeakKeyDictionary[ExportedProgram, tuple[frozenset[str], frozenset[str]]] = (
    weakref.WeakKeyDictionary()
)


def _nodes(program: ExportedProgram) -> Iterator[torch.fx.Node]:
    """All nodes, those of branches and bodies of loops too."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from module.graph.nodes


def uses_custom_operators(program: ExportedProgram) -> bool:
    """Whether there may be operators that a process does not know until it loads what defines them."""
    return any(getattr(node.target, "namespace", "aten") not in _BUILT_IN for node in _nodes(program))


_BUILT_IN = ("aten", "prim", "prims", "higher_order")


def draws_random_numbers(program: ExportedProgram) -> bool:
    """Whether two runs on the same inputs may differ."""
    return any(
        torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _is_off(node)
        for node in _nodes(program)
    )


def _is_off(node: torch.fx.Node) -> bool:
    """Whether an operator with dropout in it drops nothing: in evaluation, or with a probability of zero."""
    arguments = schema(node.target).arguments
    given = {one.name: value for one, value in zip(arguments, node.args, strict=False)} | node.kwargs
    values = {
        one.name: given.get(one.name, one.default_value if one.has_default_value() else None) for one in arguments
    }
    return any(
        values.get(name) in (0, False)
        for name in ("p", "dropout_p", "dropout", "train", "training")
        if values.get(name) is not None
    )


def broken_guard(program: ExportedProgram, module: torch.nn.Module, leaves: Sequence[Any]) -> str:
    """What the program assumes about its inputs that is not so for these leaves; empty when all is.

    torch.export refuses most such code, but not all, where sizes below 2 are allowed. Leans on
    ``ExportedProgram._guards_code``.
    """
    guards = getattr(program, "_guards_code", None) or []
    args, kwargs = _arguments(program, leaves)
    names = {"L": named_arguments(module, args, kwargs), "math": math, "torch": torch}
    for guard in guards:
        try:
            holds = bool(eval(guard, names))
        except Exception:
            continue  # of something that is no input
        if not holds:
            return str(guard)
    return ""
