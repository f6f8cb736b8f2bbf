"""Trains a network in Python: ``python -m benchmarks.trainer prepare|eager|compile NAME FOLDER THREADS``.

``prepare`` writes ``weights.pt``: initial weights by name, all batches, and the losses of the first steps. The others
speak the protocol of ``contest.py`` on their standard input and output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from benchmarks import contender, trainings


def _prepare(name: str, folder: Path) -> None:
    step, network, batches = trainings.make_step(name, compiled=False)
    weights = {key: value.detach().clone() for key, value in network.named_parameters()}
    inputs, targets = (torch.stack(parts) for parts in zip(*batches, strict=True))
    losses = torch.stack([step().detach() for _ in range(trainings.STEPS)])
    torch.save({**weights, "inputs": inputs, "targets": targets, "losses": losses}, folder / "weights.pt")


def _contend(name: str, folder: Path, compiled: bool) -> None:
    step, _, _ = trainings.make_step(name, compiled)
    expected = torch.load(folder / "weights.pt")["losses"]
    losses = torch.stack([step().detach() for _ in range(trainings.STEPS)])
    print(json.dumps({"difference": (losses - expected).abs().max().item(), "eager": ""}), flush=True)
    contender.answer(step)


def main(kind: str, name: str, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    if kind == "prepare":
        _prepare(name, folder)
    else:
        _contend(name, folder, compiled=kind == "compile")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
