"""AOTInductor: from programs to compiled code, with what has to be changed in it to be right."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from torchcc import toolchain
from torchcc._torch.device_numbers import NeededOnHostError, keep_on_device
from torchcc._torch.programs import device_of, flatten, outputs, weight_inputs
from torchcc._torch.symbols import number_dtype
from torchcc.errors import ArgumentError, message

# Functions of torch's cpp_prefix.h that report a zero divisor through one pointer per process; code that calls them
# must not run beside other compiled code. See Library::run in the runtime.
INTEGER_DIVISION = re.compile(r"\b(floor_divide_integral|remainder_integral|mod)\(")


SIMD_BITS = {"avx2": 256, "avx512": 512, "scalar": 0}


# Up to this many elements, a loop is not worth a second thread; twice Inductor's own cpp.min_chunk_size.
_SMALL = 8192


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


# The first GPUs (Hopper) for which Triton writes PTX that no later ones can run: "sm_90a".
_OWN_PTX = 9


def target(device: str, isa: str = "", options: Mapping[str, Any] | None = None) -> tuple[str, tuple[str, ...]]:
    """What compiled code for this machine is called, and the CPU features that it needs.

    Args:
        device: ``"cpu"``, or ``"cuda"``: this machine's current GPU.
        isa: As :func:`cpu_target` takes it.
        options: Inductor's. ``aot_inductor.emit_multi_arch_kernel`` makes code for this GPU and later ones, which is
            called ``cuda-sm80+``, where Triton's PTX is not for one architecture alone.
    """
    name, _, features = cpu_target(isa)
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        is_for_later = bool((options or {}).get("aot_inductor.emit_multi_arch_kernel")) and major < _OWN_PTX
        name = f"cuda-sm{major}{minor}{'+' if is_for_later else ''}"
    return name, features


@functools.cache
def cpu_target(isa: str = "") -> tuple[str, str | None, tuple[str, ...]]:
    """What compiled code for this CPU is called, the ``-march`` value for it, and the CPU features that it needs.

    With ``isa``, ``"avx2"`` or ``"avx512"``, the same for this instruction set, as far as Inductor would use it here;
    with ``"scalar"``, for code without vectors of its own, which any machine can compile.

    Leans on ``torch._inductor.cpu_vec_isa``. Inductor's default is ``-march=native``, which needs whatever this machine
    happens to have; a named level runs on more machines. Before torch 2.13 there is no choice (``None``).
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if isa == "scalar":
        return "cpu-any", None, ()
    machine = platform.machine()
    if machine != "x86_64":
        return f"cpu-{machine}", None, ()
    with config.patch({"cpp.simdlen": SIMD_BITS[isa]} if isa else {}):
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


@contextlib.contextmanager
def inductor_writes() -> Iterator[None]:
    """What has to hold while Inductor writes C++. Leans on ``torch._export.utils._compiling_state_context``."""
    from torch._export.utils import _compiling_state_context

    with _compiling_state_context(), mended_decompositions(), _numbers_as_doubles(), _small_loops(), _numbers_of_gpus():
        yield


def without_guards_on_numbers(run: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Runs Inductor, without its patterns where one of them would have to know a number that only a call has.

    One looks at the sign of ``scale`` in ``softmax(x * scale)`` (torch 2.13). Leans on
    ``torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode``.

    Args:
        run: Takes patches of Inductor's configuration; may be called twice.
    """
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    try:
        return run({})
    except GuardOnDataDependentSymNode:
        pass
    except Exception as error:
        if not isinstance(getattr(error, "inner_exception", error.__cause__), GuardOnDataDependentSymNode):
            raise
    return run({"pattern_matcher": False})


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


@contextlib.contextmanager
def mended_decompositions() -> Iterator[None]:
    """Changes to Inductor's decompositions, for the body, without which its code would be wrong, slow or none."""
    with _alpha_as_product(), _normal_as_randn(), _bias_apart():
        yield


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
def _numbers_of_gpus() -> Iterator[None]:
    """Hands run-time floats to kernels of GPUs as ``double``. Leans on ``DeferredTritonCallWrapper.generate``.

    Inductor declares them ``int64_t`` in the function that launches a kernel, which makes 0 of 0.3.
    """
    from torch._inductor.codecache import CudaKernelParamCache
    from torch._inductor.codegen.cpp_wrapper_gpu import DeferredTritonCallWrapper

    original = DeferredTritonCallWrapper.generate
    declared = re.compile(r"^float (?=\w+,?$)")

    def generate(self: Any, wrapper: Any) -> Any:
        params = CudaKernelParamCache.get(self.kernel_name)
        if params is None:
            return original(self, wrapper)
        signature = params["triton_meta"]["signature"]
        floats = [str(signature.get(name)).startswith("fp") for name in params["def_args"]]
        for position, (kind, is_float) in enumerate(zip(self.arg_types, floats, strict=False)):
            if is_float and isinstance(kind, type) and issubclass(kind, sympy.Expr):
                self.arg_types[position] = float
        # Where it says float, what comes is a double.
        names = [name for name in ("writeline", "writeline_jit", "writeline_aot") if hasattr(wrapper.prefix, name)]
        for name in names:
            write = getattr(wrapper.prefix, name)
            setattr(wrapper.prefix, name, lambda line, write=write: write(_replaced(declared, "double ", line)))
        try:
            return original(self, wrapper)
        finally:
            for name in names:
                delattr(wrapper.prefix, name)

    DeferredTritonCallWrapper.generate = generate  # type: ignore[method-assign]
    try:
        yield
    finally:
        DeferredTritonCallWrapper.generate = original  # type: ignore[method-assign]


def _replaced(pattern: re.Pattern[str], by: str, line: Any) -> Any:
    """A line of code, or what stands for one, with a replacement."""
    return pattern.sub(by, line) if isinstance(line, str) else line


@contextlib.contextmanager
def _alpha_as_product() -> Iterator[None]:
    """Lets Inductor see ``add(x, y, alpha=a)`` as ``x + a * y``. Leans on ``torch._inductor.decomposition``.

    It forgets ``alpha`` when it fuses an addition with a matmul, and cannot write it for complex numbers.
    """
    from torch._inductor import decomposition

    aten = torch.ops.aten
    originals = {operator: decomposition.decompositions[operator] for operator in (aten.add.Tensor, aten.add.Scalar)}

    def add(x: Any, y: Any, *, alpha: Any = 1) -> Any:
        if _is_one(alpha):
            return originals[aten.add.Tensor](x, y)
        dtype = torch.result_type(x, y)
        return aten.add.Tensor(x, aten.mul.Scalar(y.to(dtype), float(alpha) if dtype.is_complex else alpha))

    def add_number(x: Any, y: Any, alpha: Any = 1) -> Any:
        return originals[aten.add.Scalar](x, y) if _is_one(alpha) else aten.add.Scalar(x, y * alpha)

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
def _bias_apart() -> Iterator[None]:
    """Lets Inductor see a product with one row and a bias as PyTorch's own decomposition: a product, and a sum.

    With ``coordinate_descent_tuning``, it has kernels for such products on GPUs that read the matrix as fast as memory
    allows, but not where there is a bias. Leans on ``torch._decomp`` and ``torch._inductor.decomposition``.
    """
    from torch._decomp import decompositions
    from torch._inductor import config, decomposition

    operator = torch.ops.aten.addmm.default
    original = decomposition.decompositions[operator]

    def addmm(bias: Any, one: Any, other: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        has_one_row = isinstance(one.shape[0], int) and one.shape[0] == 1
        if config.coordinate_descent_tuning and has_one_row and one.device.type == "cuda":
            return decompositions.addmm(bias, one, other, beta, alpha)
        return original(bias, one, other, beta=beta, alpha=alpha)

    tables = (decomposition.decompositions, decomposition.fast_random_decomps())
    for table in tables:
        table[operator] = addmm
    try:
        yield
    finally:
        for table in tables:
            table[operator] = original


def _is_one(number: Any) -> bool:
    """Whether it certainly is, and not a number that only a call knows."""
    return number is None or (not isinstance(number, torch.SymFloat) and bool(number == 1))


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
            if not count.is_finite or count > _SMALL:
                return False
    return True


def _upper_bound(size: torch.SymInt) -> sympy.Expr:
    bound = size.node.shape_env.bound_sympy(size.node.expr).upper
    return bound if bound.is_Integer else sympy.oo
