"""Runs a model in Python, timed on request: ``python -m benchmarks.contender compile|onnx MODEL FOLDER THREADS``.

Speaks the protocol of ``contest.py`` on its standard input and output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import models

_WARM_NANOSECONDS = 3_000_000  # as in cpp/contest.cpp


def _compiled(name: str, folder: Path) -> Callable[[], Any]:
    model, x = models.make(name)
    compiled = torch.compile(model)
    return lambda: compiled(x)


def _onnx(name: str, folder: Path, threads: int) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: models.make(name)[1].numpy()}
    return lambda: session.run(None, inputs)[0]


def _time(call: Callable[[], Any], count: int) -> float:
    """Nanoseconds a call, after a few untimed ones."""
    warm = time.perf_counter_ns() + _WARM_NANOSECONDS
    call()
    while time.perf_counter_ns() < warm:
        call()
    start = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - start) / count


def answer(call: Callable[[], Any]) -> None:
    """Reads numbers from standard input, makes that many timed calls, and prints the nanoseconds per call."""
    for line in sys.stdin:
        print(_time(call, int(line)), flush=True)


def main(kind: str, name: str, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    with torch.no_grad():
        call = _compiled(name, folder) if kind == "compile" else _onnx(name, folder, threads)
        expected = torch.load(folder / "weights.pt")["output"]
        difference = (torch.as_tensor(call()) - expected).abs().max().item()
        print(json.dumps({"difference": difference, "eager": ""}), flush=True)
        answer(call)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
