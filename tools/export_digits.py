"""Made python/torchcc/data/digits.bin, once, from scikit-learn's copy of the handwritten digits.

A test checks that the file still equals scikit-learn's data, so that torchcc itself does not need scikit-learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

FILE = Path(__file__).resolve().parents[1] / "python" / "torchcc" / "data" / "digits.bin"


def records() -> np.ndarray:
    """The images and labels as uint8 ``[1797, 65]``: 64 pixels from 0 to 16, row by row, then the digit."""
    digits = load_digits()
    return np.column_stack([digits.data, digits.target]).astype(np.uint8)


if __name__ == "__main__":
    FILE.write_bytes(records().tobytes())
    print(f"{FILE}: {FILE.stat().st_size} bytes")
