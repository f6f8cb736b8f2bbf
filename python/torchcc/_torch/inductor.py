"""AOTInductor: from programs to compiled code."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from torchcc._torch.device_numbers import NeededOnHostError, keep_on_device
from torchcc._torch.inductor_patches import INTEGER_DIVISION, SMALL, inductor_writes, without_guards_on_numbers
from torchcc._torch.inductor_targets import SIMD_BITS, cpu_target
from torchcc._torch.programs import device_of, flatten, outputs, weight_inputs
from torchcc._torch.symbols import number_dtype
from torchcc.errors import ArgumentError, message


@dataclass(frozen=True)
class Compiled:
    """What one run of AOTInductor left behind: its files, and whether the code must run alone (integer division)."""

    files: tuple[str, ...]
    exclusive: bool


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


def compile(
    program: ExportedProgram,
    options: Mapping[str, Any],
    into_outputs: bool,
    folder: Path | None = None,
    copied: Mapping[int, Sequence[int]] | None = None,
    weights: Sequence[str] = (),
    isa: str = "",
    numbers: Sequence[int] = (),
) -> Compiled:
    """Compiles with AOTInductor for this machine.

    Args:
        program: What to compile.
        options: Options of Inductor that win over torchcc's own.
        into_outputs: Compile the form that takes the outputs as further inputs, writes into them, and returns nothing.
        folder: Where to leave the files; by default in Inductor's cache.
        copied: Positions of outputs that get memory of their own, whatever Inductor would do, and their strides.
        weights: Parameters and buffers that become inputs, behind the program's own; all others are burnt in.
        isa: As in :func:`cpu_target`.
        numbers: Positions of inputs that are numbers, of float64 and rank 0, which the code is to take on the GPU.

    Raises:
        NeededOnHostError: The code cannot take the ``numbers`` there.
    """
    module, is_flat = flat(program, weights)
    in_spec, out_spec = (torch.utils._pytree.treespec_dumps(spec) for spec in (module._in_spec, module._out_spec))
    if is_flat:
        in_spec = out_spec = ""
    if into_outputs:
        _take_outputs_as_inputs(module)
        in_spec = out_spec = ""
    specs = {"aot_inductor.serialized_in_spec": in_spec, "aot_inductor.serialized_out_spec": out_spec}
    _take_on_gpu(module, numbers)
    return compile_graph(module, {**specs, **options}, len(outputs(program)), folder, copied, isa, bool(numbers))


def flat(program: ExportedProgram, weights: Sequence[str] = ()) -> tuple[Any, bool]:
    """A program's graph as a module of its own, whose ``forward`` takes and gives tensors and numbers alone.

    Args:
        program: The program, which stays as it is.
        weights: Parameters and buffers that become inputs, behind the program's own.

    Returns:
        The module, and whether it takes or gives something else than the program.
    """
    module: Any = program.module()
    for guards in [node for node in module.graph.nodes if node.target == "_guards_fn"]:
        module.graph.erase_node(guards)  # the runtime checks the inputs
    changed = _take_only_tensors(module) | _take_weights_as_inputs(module, program, weights)
    return module, changed


def compile_graph(
    module: Any,
    options: Mapping[str, Any],
    count: int,
    folder: Path | None = None,
    copied: Mapping[int, Sequence[int]] | None = None,
    isa: str = "",
    numbers_stay: bool = False,
) -> Compiled:
    """Compiles a graph of ATen's operators, whose inputs and ``count`` outputs are tensors.

    Leans on ``torch._inductor.compile_fx.compile_fx_aot``, on the options named below, and on what
    ``torch._inductor.aot_compile`` does before it calls the former (which cannot take symbolic sizes as they are). The
    other arguments are those of :func:`compile`. ``numbers_stay``: numbers that the graph reads from tensors of rank 0
    are to stay there.
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_aot

    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    fakes = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    _, march, _ = cpu_target(isa)
    refused: list[NeededOnHostError] = []  # Inductor raises exceptions of its own in place of a pass's

    def keep(graph: torch.fx.Graph) -> None:
        try:
            keep_on_device(graph)
        except NeededOnHostError as error:
            refused.append(error)
            raise

    settings: dict[str, Any] = {
        "aot_inductor.package": True,
        **({"aot_inductor.output_path": str(folder)} if folder else {}),
        # One file holds all, as on the CPU. By default, kernels would be files beside it.
        **({"aot_inductor.embed_kernel_binary": True} if device_of(module) == "cuda" else {}),
        # With a fixed count, code that runs with more threads than it was compiled for writes past its buffers.
        # Two at least: for one, Inductor writes no parallel regions, where a loop outside of them would run in each
        # thread.
        **(
            {"cpp.threads": 1}
            if is_small(module)
            else {"cpp.dynamic_threads": True, "cpp.threads": max(2, os.cpu_count() or 2)}
        ),
        **({"aot_inductor.enable_line_tables": False} if hasattr(config.aot_inductor, "enable_line_tables") else {}),
        **({"cpp.march": march} if march else {}),
        **({"cpp.simdlen": SIMD_BITS[isa]} if isa else {}),
        **({"post_grad_custom_pre_pass": keep} if numbers_stay else {}),
        **({"post_grad_custom_post_pass": _copying(count, copied)} if copied else {}),
        **options,
    }
    with inductor_writes():
        try:
            made: Any = without_guards_on_numbers(
                lambda patches: compile_fx_aot(module, fakes, config_patches={**settings, **patches})
            )
        except Exception:
            if refused:
                raise refused[0] from None
            raise
    files = [str(file) for file in made if file]
    kernels = "".join(Path(file).read_text() for file in files if file.endswith(".cpp"))
    # The sources name folders of this machine, and no loader reads them.
    shipped = tuple(file for file in files if not file.endswith(".cpp"))
    return Compiled(shipped, bool(INTEGER_DIVISION.search(kernels)))


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
                results[position].meta["val"] = torch.empty_strided(
                    fake.shape, strides, dtype=fake.dtype, device=fake.device
                )
            wanted = output.meta.get("original_output_strides")
            if wanted is not None:
                wanted[position] = tuple(strides)
        output.args = (tuple(results),)

    return copy


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


def _take_on_gpu(module: Any, positions: Sequence[int]) -> None:
    """Moves inputs to the GPU."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    for position in positions:
        fake = inputs[position].meta["val"]
        with fake.fake_mode:
            inputs[position].meta["val"] = torch.empty(fake.shape, dtype=fake.dtype, device="cuda")


def _take_weights_as_inputs(module: Any, program: ExportedProgram, weights: Sequence[str]) -> bool:
    """Makes inputs of parameters and buffers, in the given order, behind the others. Returns whether there were any."""
    graph = module.graph
    names = weight_inputs(program)
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


def is_small(module: Any) -> bool:
    """Whether no tensor of the graph can have more than a few thousand elements."""
    for node in module.graph.nodes:
        for fake in flatten(node.meta.get("val")):
            if not isinstance(fake, torch.Tensor):
                continue
            count = sympy.Integer(1)
            for size in fake.shape:
                count = count * (_upper_bound(size) if isinstance(size, torch.SymInt) else size)
            if not count.is_finite or count > SMALL:
                return False
    return True


def _upper_bound(size: torch.SymInt) -> sympy.Expr:
    bound = size.node.shape_env.bound_sympy(size.node.expr).upper
    return bound if bound.is_Integer else sympy.oo
