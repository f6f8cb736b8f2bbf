"""What has to be changed in Inductor while it works, so that its code is right, fast, or code at all."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import sympy
import torch

# Functions of torch's cpp_prefix.h that report a zero divisor through one pointer per process; code that calls them
# must not run beside other compiled code. See Library::run in the runtime.
INTEGER_DIVISION = re.compile(r"\b(floor_divide_integral|remainder_integral|mod)\(")

# Up to this many elements, a loop is not worth a second thread; twice Inductor's own cpp.min_chunk_size.
SMALL = 8192

# Bytes that a GPU clears in the time of a launch, with room: 85 us at 3 TB/s; more than its cache has. Triton's
# do_bench clears as many.
_CLEARED = 256 * 1024 * 1024


@contextlib.contextmanager
def inductor_writes() -> Iterator[None]:
    """What has to hold while Inductor writes C++. Leans on ``torch._export.utils._compiling_state_context``."""
    from torch._export.utils import _compiling_state_context

    with contextlib.ExitStack() as changes:
        changes.enter_context(_compiling_state_context())
        for change in (
            mended_decompositions,
            measured_apart_from_launches,
            _numbers_as_doubles,
            _small_loops,
            _zero_divisors,
            _numbers_of_gpus,
        ):
            changes.enter_context(change())
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


@contextlib.contextmanager
def mended_decompositions() -> Iterator[None]:
    """Changes to Inductor's decompositions, for the body, without which its code would be wrong, slow or none."""
    with _alpha_as_product(), _normal_as_randn(), _bias_apart():
        yield


@contextlib.contextmanager
def measured_apart_from_launches() -> Iterator[None]:
    """Lets Inductor measure kernels of GPUs alone, in the body, and not how fast this machine launches them.

    Before each launch it clears memory of the size of the GPU's cache, which takes an H100 20 us. Where a launch from
    Python takes longer, the GPU waits, all kernels take the same time, and which is chosen is chance. Leans on
    ``InductorBenchmarker``, which keeps that size as ``L2_cache_size``; see pytorch/pytorch#179236.
    """
    from torch._inductor.runtime.benchmarking import benchmarker

    with mock.patch.dict(vars(benchmarker), L2_cache_size=_CLEARED):
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

    with mock.patch.object(KernelArgs, "cpp_argdefs", cpp_argdefs):
        yield


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

    with mock.patch.object(DeferredTritonCallWrapper, "generate", generate):
        yield


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

    with mock.patch.object(prims, "normal", normal):
        yield


@contextlib.contextmanager
def _zero_divisors() -> Iterator[None]:
    """Lets those kernels alone look for zero divisors that divide integers. Leans on ``KernelGroup.codegen_group``.

    Inductor lets each kernel set and clear the pointer that all of a process share, which is a race between calls.
    """
    from torch._inductor.codegen.cpp import KernelGroup

    original = KernelGroup.codegen_group
    found = re.compile(r"^ *(std::atomic<int> )?inductor_cpu_(\w*_)?integer_div_error\w*\b.*;\n", re.MULTILINE)

    def codegen_group(self: Any, *args: Any, **options: Any) -> str:
        code: str = original(self, *args, **options)
        return code if INTEGER_DIVISION.search(code) else found.sub("", code)

    with mock.patch.object(KernelGroup, "codegen_group", codegen_group):
        yield


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
        if work.is_Integer and work <= SMALL:
            return ParallelDepth(parallel_depth=0, start_depth=deepest.start_depth)
        return original(self, deepest, threads)

    with mock.patch.object(CppKernel, "decide_parallel_depth", decide):
        yield
