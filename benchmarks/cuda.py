"""Compiled packages from C++ with CUDA graphs against Python's torch.compile, on one GPU."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import torchcc
from benchmarks import cuda_training, gpu, harness
from benchmarks.cuda_models import MODELS, Model, make
from benchmarks.harness import Report

_TARGET = "cuda"

Call = Callable[[], Tensor]


def run(quick: bool = False, name: str = "mlp") -> Report:
    """Exports a model, builds the program, and measures both languages in turns.

    Args:
        quick: Measure too little to judge by.
        name: One of :data:`MODELS`, or ``"training"``: see :mod:`benchmarks.cuda_training`.

    Raises:
        CompileError: There is no GPU; or a program or a model cannot be built, or failed.
    """
    if name == "training":
        return cuda_training.run(quick)
    if not torch.cuda.is_available():
        raise torchcc.CompileError("this benchmark needs a GPU, and PyTorch with CUDA")
    model = MODELS[name]
    rounds, calls = (3, 5) if quick else (30, model.calls)
    module, inputs = make(name)
    with tempfile.TemporaryDirectory(prefix="torchcc-benchmark-") as work, torch.no_grad():
        folder = Path(work)
        expected = module(*inputs)
        torch.save(tuple(one.cpu() for one in inputs), folder / f"{name}.pt")
        torch.save((expected.cpu(),), folder / f"{name}-expected.pt")
        start = time.monotonic()
        torchcc.export(folder / f"{name}.pt2", module, inputs, options=model.options)
        seconds = time.monotonic() - start
        program = gpu.Program(harness.build(_TARGET) / _TARGET, folder, name)
        contenders = _contenders(module, inputs, model, expected)
        samples: dict[str, list[float]] = {}
        host: list[float] = []
        for _ in range(rounds):
            for title, call in contenders.items():
                samples.setdefault(title, []).append(gpu.nanoseconds(call, calls))
            for kind in ("graph", "plain"):
                answer = program.ask(kind, calls)
                samples.setdefault(kind, []).append(answer["total"])
                if kind == "graph":
                    host.append(answer["host"])
        checked = program.ask("check", 1)
        program.end()
        launched = torchcc.load(folder / f"{name}.pt2")["forward"]
        kernels = gpu.kernels(lambda: launched(*inputs))  # last: what the profiler leaves behind makes launches slower
    copy = [_copy_bandwidth() for _ in range(5)]
    floor = sum(_bytes(one) for one in (*module.parameters(), *module.buffers())) / max(copy)
    return _report(model, samples, host, kernels, copy, floor, checked, seconds, rounds, calls)


def _contenders(module: torch.nn.Module, inputs: tuple[Tensor, ...], model: Model, expected: Tensor) -> dict[str, Call]:
    found: dict[str, Call] = {"eager": lambda: module(*inputs)}
    for mode in dict.fromkeys(("default", "reduce-overhead", model.mode)):
        compiled = torch.compile(module, mode=mode)

        def call(compiled: Callable[..., Tensor] = compiled) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*inputs)

        for _ in range(5):
            result = call()
        error = float((result - expected).abs().max() / expected.abs().max())
        if error > 0.05:
            raise torchcc.CompileError(f"{mode}: another result than eager, by {error:.3g}")
        found[mode] = call
    return found


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copy_bandwidth() -> float:
    """Bytes per nanosecond that a copy within the GPU's memory reads and writes."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e6)
    return 2 * _bytes(source) / sorted(times)[len(times) // 2]


def _report(
    model: Model,
    samples: dict[str, list[float]],
    host: list[float],
    kernels: gpu.Kernels,
    copy: list[float],
    floor: float,
    checked: dict[str, float],
    seconds: float,
    rounds: int,
    calls: int,
) -> Report:
    titles = {
        "graph": "C++, package with CUDA graphs",
        "plain": "C++, package without",
        "eager": "Python, eager",
        **{mode: f"Python, torch.compile {mode}" for mode in samples if mode not in ("graph", "plain", "eager")},
    }
    cases = [harness.case(f"{model.title}: {title}", samples[kind], "ns") for kind, title in titles.items()]
    cases += [
        harness.case(
            f"{model.title}: C++ with CUDA graphs over {model.mode}",
            harness.ratios(samples["graph"], samples[model.mode]),
            "ratio",
            model.limit,
        ),
        harness.case(f"{model.title}: host time of a replayed call", host, "ns", model.host_limit),
        harness.case(f"{model.title}: kernels of the package alone", [kernels.nanoseconds], "ns"),
        harness.case(f"{model.title}: reading its weights and buffers once, as fast as a copy", [floor], "ns"),
        harness.case(f"{model.title}: C++ over that", [one / floor for one in samples["graph"]], "ratio"),
    ]
    skips = int(torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])
    notes = [
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {rounds} rounds of {calls} calls each in turn",
        f"a copy within the GPU's memory moved {max(copy) / 1000:.2f} TB/s, reads and writes counted",
        f"the export took {seconds:.0f} s, with {dict(model.options) or 'no options'}",
        f"the package has {sum(kernels.counts.values()):.0f} kernels, the longest are\n{kernels.longest(6)}",
        f"C++ against eager Python: largest difference {checked['difference']:.2g} of the largest value; "
        f"graphs recorded {checked['captures']:.0f}, replayed {checked['replays']:.0f}",
        f"torch.compile left {skips} functions without CUDA graphs",
    ]
    return Report(cases, notes)


if __name__ == "__main__":
    sys.exit("run it as `python -m benchmarks cuda-mlp`")
