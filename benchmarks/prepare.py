"""Writes what the contenders run: ``python -m benchmarks.prepare MODEL FOLDER THREADS``.

``weights.pt`` with the model's weights, input and output; packages for AOTInductor, TorchScript and ONNX Runtime. The
last one needs ``onnxruntime`` and ``onnxscript``; without them ``onnx.txt`` says what is missing.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import models


def main(name: str, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    model, x = models.make(name)
    with torch.no_grad():
        y = model(x)
        torch.save({**model.state_dict(), "input": x, "output": y}, folder / "weights.pt")
        program = torch.export.export(model, (x,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "aoti.pt2"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.freeze(torch.jit.trace(model, x)).save(folder / "script.pt")
        try:
            _write_onnx(model, x, folder / "model.onnx")
        except Exception as error:
            (folder / "onnx.txt").write_text(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")


def _write_onnx(model: nn.Module, x: Tensor, file: Path) -> None:
    import onnxruntime  # noqa: F401  # missing: say so before the export

    torch.onnx.export(model, (x,), file, dynamo=True, verbose=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
