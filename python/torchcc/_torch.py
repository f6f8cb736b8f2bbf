"""Every use of PyTorch's private modules; no other file of torchcc imports one.

Each function says which module it leans on, so that a new PyTorch release can be checked against this one file.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import hashlib
import inspect
import json
import logging
import math
import os
import platform
import re
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from torchcc import sizes, toolchain
from torchcc.errors import ArgumentError, message

#: Archive folders, as in ``torch.export.pt2_archive.constants``.
EXTRA_FOLDER = "extra/"
LIBRARY_FOLDER = "data/aotinductor/"

# Functions of torch's cpp_prefix.h that report a zero divisor through one pointer per process; code that calls them
# must not run beside other compiled code. See Library::run in the runtime.
_INTEGER_DIVISION = re.compile(r"\b(floor_divide_integral|remainder_integral|mod)\(")

_SIMD_BITS = {"avx2": 256, "avx512": 512}

# Up to this many elements, a loop is not worth a second thread; twice Inductor's own cpp.min_chunk_size.
_SMALL = 8192


@dataclass(frozen=True)
class Compiled:
    """What one run of AOTInductor left behind: its files, and whether the code must run alone (integer division)."""

    files: tuple[str, ...]
    exclusive: bool


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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

    with _quiet(), fx_config.patch(backed_size_oblivious=prefer_general):  # type: ignore[attr-defined]
        return torch.export.export(
            module, args, dict(kwargs) if kwargs else None, dynamic_shapes=dynamic_shapes, strict=False
        )


def save(program: ExportedProgram, file: Path) -> None:
    """``torch.export.save``."""
    with _quiet():
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
    with _quiet():
        return torch.export.load(file)


def load_operators(library: Path) -> None:
    """Loads a shared library that registers operators. ``torch.ops.load_library``, which does it once."""
    torch.ops.load_library(str(library.resolve()))  # type: ignore[no-untyped-call]


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ArgumentError for options that Inductor does not have. Leans on ``torch._inductor.config``."""
    from torch._inductor import config

    known = config.get_config_copy()
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            raise ArgumentError(
                message(
                    f"Inductor has no option '{name}'",
                    expected=f"for instance {', '.join(close)}" if close else "an option of torch._inductor.config",
                    got=name,
                    fix="correct the name",
                )
            )


def storable(program: ExportedProgram) -> ExportedProgram:
    """A program that ``torch.export.save`` takes: it fails without outputs.

    In the form without mutation, what is written into the inputs is an output.
    """
    if program.graph_signature.output_specs:
        return program
    with _quiet():
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
    held = {*_weight_inputs(program), *program.graph_signature.inputs_to_lifted_custom_objs}
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


def plain_symbol(size: Any) -> sympy.Symbol | None:
    """The symbol that a size is; ``None`` when it is a number or an expression."""
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    return expression if expression is not None and expression.is_Symbol else None


def number_range(number: Any) -> tuple[int | None, int | None]:
    """Allowed values of an input that is a number."""
    if not isinstance(number, torch.SymInt):
        return None, None
    bounds = number.node.shape_env.bound_sympy(number.node.expr)
    low, high = (int(bound) if bound.is_Integer else None for bound in (bounds.lower, bounds.upper))
    return low, high


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
    with _quiet():
        module = program.module()
    return lambda leaves: _results(module, program, leaves)


def as_pure_function(
    program: ExportedProgram,
) -> Callable[[Sequence[Any]], tuple[list[Any], dict[str, torch.Tensor]]]:
    """The same, but each call begins with the program's buffers as they are, on copies of them.

    Returns:
        A function that gives leaves of the outputs, and the buffers after the call.
    """
    with _quiet():
        module = program.module()
    shared = {id(parameter): parameter for parameter in module.parameters()}

    def run(leaves: Sequence[Any]) -> tuple[list[Any], dict[str, torch.Tensor]]:
        with _quiet():
            own = copy.deepcopy(module, dict(shared))
        return _results(own, program, leaves), dict(own.named_buffers())

    return run


def weights(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Parameters, buffers and constants by name."""
    return {
        name: one for name, one in {**program.constants, **program.state_dict}.items() if isinstance(one, torch.Tensor)
    }


def size_ranges(program: ExportedProgram) -> dict[sympy.Symbol, tuple[int, int | None]]:
    """Allowed values of the program's symbols."""

    def number(bound: Any) -> int | None:
        return int(bound) if bound.is_Integer else None

    return {
        symbol: (max(0, number(one.lower) or 0), number(one.upper)) for symbol, one in program.range_constraints.items()
    }


def _weight_inputs(program: ExportedProgram) -> dict[str, str]:
    """Names of the parameters, buffers and constants, by the names of the graph's inputs that stand for them."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def weight_names(program: ExportedProgram) -> list[str]:
    """Names of the parameters, buffers and constants that the graph uses, in its order."""
    names = _weight_inputs(program)
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


def symbol_names(value: torch.Tensor, declared: Sequence[sizes.Size]) -> dict[sympy.Symbol, str]:
    """The user's names of the symbols that stand alone in a fake tensor's sizes."""
    names: dict[sympy.Symbol, str] = {}
    for size, declared_size in zip(value.shape, declared, strict=True):
        if isinstance(size, torch.SymInt) and isinstance(declared_size, str) and size.node.expr.is_Symbol:
            names[size.node.expr] = declared_size
    return names


def read_size(size: int | torch.SymInt, names: Mapping[sympy.Symbol, str]) -> sizes.Size:
    """A size of a fake tensor in the manifest's form; ``None`` when only the data decides it."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    return _read_expression(size.node.expr, names)


def _read_expression(expression: sympy.Expr, names: Mapping[sympy.Symbol, str]) -> sizes.Size:
    from torch.utils._sympy import functions

    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        return names.get(expression)
    operators: dict[type, str] = {
        sympy.Add: "+",
        sympy.Mul: "*",
        sympy.Pow: "**",
        sympy.Max: "max",
        sympy.Min: "min",
        functions.FloorDiv: "//",
        functions.CleanDiv: "//",
        functions.PythonMod: "%",
        functions.Mod: "%",
        functions.Max: "max",
        functions.Min: "min",
        functions.PowByNatural: "**",
    }
    operator = operators.get(type(expression))
    operands = [_read_expression(operand, names) for operand in expression.args]
    if operator is None or any(operand is None for operand in operands):
        return None
    if operator == "**" and not (isinstance(operands[1], int) and operands[1] >= 0):
        return None
    # Numbers after symbols in sums ("n + 1"), before them in products ("2*n").
    if operator == "+":
        operands.sort(key=lambda operand: isinstance(operand, int))
    return [operator, *operands]


def mutations(program: ExportedProgram) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the user's inputs, and of the module's buffers, that the program writes into."""
    if program not in _MUTATIONS:
        with _quiet():
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


@functools.cache
def cpu_target(isa: str = "") -> tuple[str, str | None, tuple[str, ...]]:
    """What compiled code for this CPU is called, the ``-march`` value for it, and the CPU features that it needs.

    With ``isa``, ``"avx2"`` or ``"avx512"``, the same for this instruction set, as far as Inductor would use it here.

    Leans on ``torch._inductor.cpu_vec_isa``. Inductor's default is ``-march=native``, which needs whatever this machine
    happens to have; a named level runs on more machines. Before torch 2.13 there is no choice (``None``).
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    machine = platform.machine()
    if machine != "x86_64":
        return f"cpu-{machine}", None, ()
    with config.patch({"cpp.simdlen": _SIMD_BITS[isa]} if isa else {}):
        isa = str(pick_vec_isa())
    if not hasattr(config.cpp, "march"):
        name = next((level for level in ("avx512", "avx2") if isa.startswith(level)), "native")
        return f"cpu-x86_64-{name}", None, toolchain.native_features(toolchain.cxx())
    level3 = ("avx2", "fma", "bmi", "bmi2", "popcnt")
    level4 = (*level3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
    if isa.startswith("avx512"):
        extras = tuple(feature for feature in ("avx512vnni", "avx512bf16") if feature in isa.replace("_", ""))
        amx = ("amx-tile", "amx-int8", "amx-bf16") if "amx" in isa else ()
        return "cpu-x86_64-avx512", "x86-64-v4", (*level4, *extras, *amx)
    if isa.startswith("avx2"):
        return "cpu-x86_64-avx2", "x86-64-v3", level3
    return "cpu-x86_64", "x86-64", ()


def compile(
    program: ExportedProgram,
    options: Mapping[str, Any],
    into_outputs: bool,
    folder: Path | None = None,
    copied: Mapping[int, Sequence[int]] | None = None,
    weights: Sequence[str] = (),
    isa: str = "",
) -> Compiled:
    """Compiles with AOTInductor for this machine.

    Leans on ``torch._inductor.compile_fx.compile_fx_aot``, on the options named below, and on what
    ``torch._inductor.aot_compile`` does before it calls the former (which cannot take symbolic sizes as they are).

    Args:
        program: What to compile.
        options: Options of Inductor that win over torchcc's own.
        into_outputs: Compile the form that takes the outputs as further inputs, writes into them, and returns nothing.
        folder: Where to leave the files; by default in Inductor's cache.
        copied: Positions of outputs that get memory of their own, whatever Inductor would do, and their strides.
        weights: Parameters and buffers that become inputs, behind the program's own; all others are burnt in.
        isa: As in :func:`cpu_target`.
    """
    from torch._export.utils import _compiling_state_context
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_aot

    module: Any = program.module()
    for guards in [node for node in module.graph.nodes if node.target == "_guards_fn"]:
        module.graph.erase_node(guards)  # the runtime checks the inputs
    in_spec, out_spec = (torch.utils._pytree.treespec_dumps(spec) for spec in (module._in_spec, module._out_spec))
    if _take_only_tensors(module) | _take_weights_as_inputs(module, program, weights):
        in_spec = out_spec = ""
    if into_outputs:
        _take_outputs_as_inputs(module)
        in_spec = out_spec = ""
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    fakes = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    _, march, _ = cpu_target(isa)
    settings: dict[str, Any] = {
        "aot_inductor.package": True,
        **({"aot_inductor.output_path": str(folder)} if folder else {}),
        "aot_inductor.serialized_in_spec": in_spec,
        "aot_inductor.serialized_out_spec": out_spec,
        # With a fixed count, code that runs with more threads than it was compiled for writes past its buffers.
        # Two at least: for one, Inductor writes no parallel regions, where a loop outside of them would run in each
        # thread.
        **(
            {"cpp.threads": 1}
            if _is_small(module)
            else {"cpp.dynamic_threads": True, "cpp.threads": max(2, os.cpu_count() or 2)}
        ),
        **({"aot_inductor.enable_line_tables": False} if hasattr(config.aot_inductor, "enable_line_tables") else {}),
        **({"cpp.march": march} if march else {}),
        **({"cpp.simdlen": _SIMD_BITS[isa]} if isa else {}),
        **({"post_grad_custom_post_pass": _copying(len(outputs(program)), copied)} if copied else {}),
        **options,
    }
    with _compiling_state_context(), _numbers_as_doubles(), _alpha_as_product(), _normal_as_randn(), _small_loops():
        made: Any = compile_fx_aot(module, fakes, config_patches=settings)
    files = [str(file) for file in made if file]
    kernels = "".join(Path(file).read_text() for file in files if file.endswith(".cpp"))
    # The sources name folders of this machine, and no loader reads them.
    shipped = tuple(file for file in files if not file.endswith(".cpp"))
    return Compiled(shipped, bool(_INTEGER_DIVISION.search(kernels)))


def _copying(count: int, copied: Mapping[int, Sequence[int]]) -> Callable[[torch.fx.Graph], None]:
    """A pass over Inductor's graph that copies some of its ``count`` outputs; earlier, it would drop the copies.

    Leans on ``original_output_strides``, by which Inductor remembers the strides that outputs should have.
    """

    def copy(graph: torch.fx.Graph) -> None:
        output = graph.output_node()
        results: list[Any] = [*flatten(output.args)]
        first = len(results) - count  # before them are contents of changed inputs
        for position, strides in ((first + one, strides) for one, strides in copied.items()):
            source = results[position]
            with graph.inserting_before(output):
                results[position] = graph.call_function(torch.ops.aten.clone.default, (source,))
            fake = source.meta["val"]
            with fake.fake_mode:
                results[position].meta["val"] = torch.empty_strided(fake.shape, strides, dtype=fake.dtype)
            wanted = output.meta.get("original_output_strides")
            if wanted is not None:
                wanted[position] = tuple(strides)
        output.args = (tuple(results),)

    return copy


@contextlib.contextmanager
def _numbers_as_doubles() -> Iterator[None]:
    """Hands run-time floats to C++ kernels as ``double``. Leans on ``KernelArgs.cpp_argdefs``.

    Inductor declares them ``float``, which loses half of the digits of a number in a float64 kernel, and 1e300 whole.
    """
    from torch._inductor.codegen.common import KernelArgs

    original = KernelArgs.cpp_argdefs

    def cpp_argdefs(self: Any, *args: Any, **options: Any) -> Any:
        definitions, values, types = original(self, *args, **options)
        scalar = re.compile(r"^const float(?= \w+$|$)")
        return (
            [scalar.sub("const double", one) for one in definitions],
            values,
            [scalar.sub("const double", one) for one in types],
        )

    KernelArgs.cpp_argdefs = cpp_argdefs  # type: ignore[method-assign]
    try:
        yield
    finally:
        KernelArgs.cpp_argdefs = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _alpha_as_product() -> Iterator[None]:
    """Lets Inductor see ``add(x, y, alpha=a)`` as ``x + a * y``. Leans on ``torch._inductor.decomposition``.

    It forgets ``alpha`` when it fuses an addition with a matmul, and cannot write it for complex numbers.
    """
    from torch._inductor import decomposition

    aten = torch.ops.aten
    originals = {operator: decomposition.decompositions[operator] for operator in (aten.add.Tensor, aten.add.Scalar)}

    def add(x: Any, y: Any, *, alpha: Any = 1) -> Any:
        if alpha in (None, 1):
            return originals[aten.add.Tensor](x, y)
        dtype = torch.result_type(x, y)
        return aten.add.Tensor(x, aten.mul.Scalar(y.to(dtype), float(alpha) if dtype.is_complex else alpha))

    def add_number(x: Any, y: Any, alpha: Any = 1) -> Any:
        return originals[aten.add.Scalar](x, y) if alpha == 1 else aten.add.Scalar(x, y * alpha)

    tables = (decomposition.decompositions, decomposition.fast_random_decomps())
    replaced: dict[Any, Callable[..., Any]] = {aten.add.Tensor: add, aten.add.Scalar: add_number}
    for table in tables:
        table.update(replaced)
    try:
        yield
    finally:
        for table in tables:
            table.update(originals)


@contextlib.contextmanager
def _normal_as_randn() -> Iterator[None]:
    """Lets Inductor see ``normal`` as ``randn``. Leans on ``torch._prims``, through which it decomposes the former.

    It would call ``prims.normal``, which C++ does not have.
    """
    import torch._prims as prims

    original = prims.normal
    inside = False  # randn is itself made of it where only sizes are computed

    def normal(shape: Any, *, mean: Any, std: Any, dtype: Any, device: Any, generator: Any = None, **other: Any) -> Any:
        nonlocal inside
        if inside or generator is not None:
            return original(shape, mean=mean, std=std, dtype=dtype, device=device, generator=generator, **other)
        inside = True
        try:
            return torch.ops.aten.randn.default(shape, dtype=dtype, device=device) * std + mean
        finally:
            inside = False

    prims.normal = normal
    try:
        yield
    finally:
        prims.normal = original


@contextlib.contextmanager
def _small_loops() -> Iterator[None]:
    """Leaves loops over few elements to one thread. Leans on ``CppKernel.decide_parallel_depth``.

    With ``cpp.dynamic_threads``, Inductor starts threads for every loop.
    """
    from torch._inductor.codegen.cpp import CppKernel, ParallelDepth

    original: Any = CppKernel.decide_parallel_depth

    def decide(self: Any, deepest: Any, threads: int) -> Any:
        work = sympy.Integer(1)
        for size in self.call_ranges:
            work = work * size
        if work.is_Integer and work <= _SMALL:
            return ParallelDepth(parallel_depth=0, start_depth=deepest.start_depth)
        return original(self, deepest, threads)

    CppKernel.decide_parallel_depth = decide  # type: ignore[method-assign]
    try:
        yield
    finally:
        CppKernel.decide_parallel_depth = original  # type: ignore[method-assign]


def _take_outputs_as_inputs(module: Any) -> None:
    """Rewrites a graph ``f(x) -> y`` into ``f(x, y) -> ()`` that ends with ``y.copy_(f(x))``."""
    graph = module.graph
    (output,) = [node for node in graph.nodes if node.op == "output"]
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    results = flatten(output.args[0])
    for position, result in enumerate(results):
        fake = result.meta["val"]
        with graph.inserting_after(last):
            last = graph.placeholder(f"torchcc_out{position}")
        with fake.fake_mode:
            last.meta["val"] = torch.empty(fake.shape, dtype=fake.dtype, device=fake.device)
        with graph.inserting_before(output):
            graph.call_function(torch.ops.aten.copy_.default, (last, result))
    output.args = ((),)


def _take_only_tensors(module: Any) -> bool:
    """Leaves out inputs that are burnt in and outputs that are nothing, and makes tensors of outputs that are numbers.

    Returns:
        Whether there were any.
    """
    graph = module.graph
    changed = False
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool):
            node.replace_all_uses_with(value)
            graph.erase_node(node)
            changed = True
    (output,) = [node for node in graph.nodes if node.op == "output"]
    kept: list[Any] = []
    results = flatten(output.args[0])
    for result in results:
        value = result.meta["val"] if isinstance(result, torch.fx.Node) else result
        if value is None or isinstance(value, str):
            changed = True
        elif isinstance(value, torch.Tensor):
            kept.append(result)
        else:
            changed = True
            dtype = getattr(torch, number_dtype(value))
            with graph.inserting_before(output):
                kept.append(graph.call_function(torch.ops.aten.scalar_tensor.default, (result,), {"dtype": dtype}))
            kept[-1].meta["val"] = torch.empty((), dtype=dtype)
    if changed:
        output.args = (tuple(kept),)
    return changed


def number_dtype(number: Any) -> str:
    """The dtype that a number of Python, or a symbolic one, has as a tensor."""
    if isinstance(number, bool | torch.SymBool):
        return "bool"
    return "int64" if isinstance(number, int | torch.SymInt) else "float64"


def _take_weights_as_inputs(module: Any, program: ExportedProgram, weights: Sequence[str]) -> bool:
    """Makes inputs of parameters and buffers, in the given order, behind the others. Returns whether there were any."""
    graph = module.graph
    names = _weight_inputs(program)
    fakes = {
        names[node.name]: node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    }
    last = next((node for node in reversed(graph.nodes) if node.op == "placeholder"), None)
    for position, weight in enumerate(weights):
        anchor = graph.inserting_after(last) if last is not None else graph.inserting_before(next(iter(graph.nodes)))
        with anchor:
            last = graph.placeholder(f"torchcc_weight{position}")
        last.meta["val"] = fakes[weight]
        for node in [node for node in graph.nodes if node.op == "get_attr" and node.target == weight]:
            node.replace_all_uses_with(last)
            graph.erase_node(node)
    return bool(weights)


def _is_small(module: Any) -> bool:
    """Whether no tensor of the graph can have more than a few thousand elements."""
    for node in module.graph.nodes:
        for fake in flatten(node.meta.get("val")):
            if not isinstance(fake, torch.Tensor):
                continue
            count = sympy.Integer(1)
            for size in fake.shape:
                count = count * (_upper_bound(size) if isinstance(size, torch.SymInt) else size)
            if not count.is_finite or count > _SMALL:
                return False
    return True


def _upper_bound(size: torch.SymInt) -> sympy.Expr:
    bound = size.node.shape_env.bound_sympy(size.node.expr).upper
    return bound if bound.is_Integer else sympy.oo


def write_archive(
    file: Path,
    programs: Mapping[str, ExportedProgram],
    libraries: Mapping[str, Sequence[str]],
    extra_files: Mapping[str, str],
) -> None:
    """Writes a ``.pt2`` archive. Weights that several programs have under the same names are stored once.

    Leans on ``torch.export.pt2_archive._package.package_pt2``, and on the order in which it writes: the weights of a
    program, then the record that says which file is which.
    """
    from torch.export.pt2_archive import _package

    class Writer(_package.PT2ArchiveWriter):
        def __init__(self, target: Any) -> None:
            super().__init__(target)
            self._waiting: dict[str, bytes] = {}
            self._known: dict[tuple[str, ...], str] = {}
            self._count = 0

        def count_prefix(self, prefix: str) -> int:
            return self._count if _is_weight(prefix) else super().count_prefix(prefix)

        def write_bytes(self, name: str, data: bytes) -> None:
            if _is_weight(name):
                self._waiting[name] = data
            else:
                super().write_bytes(name, data)

        def write_string(self, name: str, data: str) -> None:
            if name.endswith("_config.json"):
                data = self._write_weights(name.rpartition("/")[0], json.loads(data))
            super().write_string(name, data)

        def _write_weights(self, folder: str, content: dict[str, Any]) -> str:
            owners: dict[str, list[str]] = {}
            for weight, entry in content["config"].items():
                owners.setdefault(entry["path_name"], []).append(weight)
            names = {}
            for path, weights in owners.items():
                data = self._waiting.pop(f"{folder}/{path}")
                key = (folder, *sorted(weights), hashlib.sha256(data).hexdigest())
                if key not in self._known:
                    self._known[key] = path
                    super().write_bytes(f"{folder}/{path}", data)
                names[path] = self._known[key]
                self._count += 1
            for entry in content["config"].values():
                entry["path_name"] = names[entry["path_name"]]
            return json.dumps(content)

    original = _package.PT2ArchiveWriter
    _package.PT2ArchiveWriter = Writer  # type: ignore[misc, assignment]
    try:
        with _quiet():
            _package.package_pt2(
                str(file),
                exported_programs=dict(programs),
                aoti_files={name: list(files) for name, files in libraries.items()},
                extra_files=dict(extra_files),
            )
    finally:
        _package.PT2ArchiveWriter = original  # type: ignore[misc]


def _is_weight(record: str) -> bool:
    return record.startswith(("data/weights/", "data/constants/")) and not record.endswith(".json")


def load_library(library: str) -> Callable[[Iterable[torch.Tensor]], list[torch.Tensor]]:
    """A compiled shared library as a function, on this machine's CPU. Leans on ``torch._C._aoti``."""
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1)

    def run(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(runner.run(list(tensors)))

    return run


def run_library(library: str, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Runs a compiled shared library once."""
    return load_library(library)(tensors)


def tree_version() -> str:
    """Major and minor version of torch, as the manifest states it."""
    return ".".join(torch.__version__.split(".")[:2])


def load_programs(file: Path) -> dict[str, ExportedProgram]:
    """All exported programs of an archive, by name; its compiled code is left alone.

    Leans on ``torch.export.pt2_archive._package._load_exported_programs``: ``load_pt2`` would load the code too.
    """
    from torch.export.pt2_archive import _package

    with _quiet(), _no_warnings_of("torch._export.serde.serialize"), _package.PT2ArchiveReader(str(file)) as reader:
        programs: dict[str, ExportedProgram] = _package._load_exported_programs(reader, reader.get_file_names(), None)
    return programs


@contextlib.contextmanager
def _no_warnings_of(logger: str) -> Iterator[None]:
    """Without a warning about example inputs that are no plain tensors, which would fail to be printed."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(level)


def share_weights(programs: Sequence[ExportedProgram]) -> None:
    """Lets programs hold the same tensors where their weights have the same names and contents."""
    known: dict[str, list[torch.Tensor]] = {}
    for program in programs:
        for held in (program.state_dict, program.constants):
            for name, tensor in held.items():
                if not isinstance(tensor, torch.Tensor):
                    continue
                same = [one for one in known.setdefault(name, []) if _same_content(one, tensor)]
                if same:
                    held[name] = same[0]
                else:
                    known[name].append(tensor)


def same_program(one: ExportedProgram, other: ExportedProgram) -> bool:
    """Whether two programs have the same graphs and weights."""
    code, other_code = (
        [module.code for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
        for program in (one, other)
    )
    held, other_held = weights(one), weights(other)
    return (
        code == other_code
        and held.keys() == other_held.keys()
        and all(_same_content(tensor, other_held[name]) for name, tensor in held.items())
    )


def _same_content(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
