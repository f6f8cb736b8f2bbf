"""AOTInductor's sources for programs without libtorch."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from torchcc._torch.inductor import Compiled, flat, is_small
from torchcc._torch.inductor_patches import INTEGER_DIVISION, inductor_writes, without_guards_on_numbers
from torchcc._torch.inductor_targets import SIMD_BITS, cpu_target


def generate(
    program: ExportedProgram,
    options: Mapping[str, Any],
    folder: Path,
    weights: Sequence[str] = (),
    isa: str = "",
) -> Compiled:
    """Writes the C++ sources of a program, and compiles nothing. To be run in a process that does nothing else.

    Leans on Inductor's ``package_cpp_only``, on its GEMM template in C++ (``max_autotune_gemm_backends``), which with
    the flags below replaces libtorch's matrix products, and on ``torch.backends.mkldnn.flags``, without which Inductor
    would call oneDNN's kernels in libtorch.

    Args:
        program: What to compile.
        options: Options of Inductor that win over torchcc's own.
        folder: Where to leave the files.
        weights: Parameters and buffers that become inputs, behind the program's own; all others are burnt in.
        isa: As in :func:`cpu_target`.

    Returns:
        The files: the source (``.cpp``), the weights (``.blob``), and the list of operators that have no C entry point
        (``extern_kernel_nodes.json``), where there are any.
    """
    from torch._inductor.compile_fx import compile_fx_aot

    # Inductor asks the compiler once per process what vectors there are, and takes the answer for all that follows.
    cpu_target()
    module, _ = flat(program, weights)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    fakes = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    settings: dict[str, Any] = {
        "aot_inductor.package": True,
        "aot_inductor.package_cpp_only": True,
        "aot_inductor.package_constants_on_disk_format": "binary_blob",
        "aot_inductor.precompile_headers": False,
        "aot_inductor.output_path": str(folder),
        "max_autotune": True,
        "max_autotune_gemm_backends": "CPP",
        "freezing": True,
        **(
            {"cpp.threads": 1}
            if is_small(module)
            else {"cpp.dynamic_threads": True, "cpp.threads": max(2, os.cpu_count() or 2)}
        ),
        **({"cpp.simdlen": SIMD_BITS[isa]} if isa else {}),
        **options,
    }

    def compiled(patches: Mapping[str, Any]) -> Any:
        return without_guards_on_numbers(
            lambda others: compile_fx_aot(
                copy.deepcopy(module), fakes, config_patches={**settings, **patches, **others}
            )
        )

    with inductor_writes(), _only_matrix_products(), _products_of_any_size():
        try:
            made: Any = compiled({})
        except Exception as error:
            if "NoValidChoicesError" not in str(error):
                raise
            # A product that Inductor's template does not have: of libtorch, or of a library that the program links.
            made = compiled({"max_autotune_gemm_backends": "CPP,ATEN"})
    files = [str(file) for file in made if file]
    (source,) = [file for file in files if file.endswith(".wrapper.cpp")]
    kept = [file for file in files if file.endswith((".blob", "extern_kernel_nodes.json"))]
    return Compiled((source, *kept), bool(INTEGER_DIVISION.search(Path(source).read_text())))


@contextlib.contextmanager
def _products_of_any_size() -> Iterator[None]:
    """Takes batched products apart whose inner or last size varies, as attention's do where the length varies.

    The GEMM template has none of these, unless a library's products may be used. Inductor itself does the same where
    one of the two sizes is 1. Leans on ``torch._inductor.lowering`` and its table ``lowerings``.
    """
    from torch._inductor import config, lowering
    from torch._inductor.utils import has_free_symbols

    bmm = torch.ops.aten.bmm.default
    original = lowering.lowerings[bmm]

    def product(one: Any, other: Any, *args: Any, **options: Any) -> Any:
        if "ATEN" in config.max_autotune_gemm_backends or not has_free_symbols(
            (one.get_size()[2], other.get_size()[2])
        ):
            return original(one, other, *args, **options)
        for operand in (one, other):
            operand.realize()  # else each element of it would be computed for each of the product's that needs it
        elements = lowering.mul(lowering.unsqueeze(one, -1), lowering.unsqueeze(other, 1))
        return lowering.sum_(elements, axis=2)

    lowering.lowerings[bmm] = product
    try:
        yield
    finally:
        lowering.lowerings[bmm] = original


@contextlib.contextmanager
def _only_matrix_products() -> Iterator[None]:
    """Takes attention apart, and keeps oneDNN out, which libtorch alone has."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield
