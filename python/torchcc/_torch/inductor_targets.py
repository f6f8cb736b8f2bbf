"""What Inductor compiles for: names of machines, and what their CPUs need to have."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from typing import Any

import torch

from torchcc import toolchain

#: Bits of the vectors of an instruction set.
SIMD_BITS = {"avx2": 256, "avx512": 512, "scalar": 0}

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
