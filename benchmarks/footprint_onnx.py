"""A model in ONNX Runtime, for ``footprint``: ``python footprint_onnx.py FILE`` answers as cpp/footprint/serve.h does.

ONNX Runtime's wheel has no C++ headers, so Python is part of what is measured. Nothing else is imported.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy
import onnxruntime


def main(file: str) -> None:
    """Calls the model on zeros, and as often as standard input says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (form,) = session.get_inputs()
    kinds = {"tensor(float)": numpy.float32, "tensor(uint8)": numpy.uint8}
    inputs = {form.name: numpy.zeros(form.shape, kinds[form.type])}
    print(session.run(None, inputs)[0].flat[0], flush=True)
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), flush=True)
    for line in sys.stdin:
        start = time.perf_counter_ns()
        for _ in range(int(line)):
            session.run(None, inputs)
        print((time.perf_counter_ns() - start) / int(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
