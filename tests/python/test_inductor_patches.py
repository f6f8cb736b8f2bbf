"""What is changed in Inductor: that it still looks where we change it."""

from __future__ import annotations

from unittest import mock

import torch
from torch._inductor.runtime.benchmarking import benchmarker

from torchcc._torch.inductor_patches import measured_apart_from_launches


def test_kernels_are_measured_behind_a_long_write() -> None:
    """A GPU that has 256 MiB to clear first does not wait for the launch. The CPU stands for one here."""
    with measured_apart_from_launches(), mock.patch.object(torch, "empty", wraps=torch.empty) as made:
        once = dict.fromkeys(("estimation_iters", "memory_warmup_iters", "benchmark_iters"), 1)
        benchmarker.benchmark_gpu(lambda: None, device_type="cpu", **once)
    assert made.call_args.args[0] * made.call_args.kwargs["dtype"].itemsize == 256 * 1024 * 1024
