"""Writes the classifier of the digits example for ExecuTorch: ``python export.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import torchcc
from torchcc.examples.digits import digits

IMAGES = 512  # at once, at most: ExecuTorch plans memory ahead


def main(folder: Path) -> None:
    """Writes ``digits.pte``, once ExecuTorch gives what PyTorch gives."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = torchcc.export(
        folder / "digits.pt2",
        digits.load(),
        (torch.zeros(8, 8, 8, dtype=torch.uint8),),
        dynamic={"images": {0: "n"}},
        ranges={"n": (1, IMAGES)},
        targets=["mobile"],
    )
    for function, checked in exported.checks.items():
        print(f"{function}: equal to PyTorch on {checked}")
    print(exported.mobile)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
