"""Steps of training a GPT on one GPU: compiled C++ against Python's torch.compile."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import torchcc
from benchmarks import gpt2, gpu, harness
from benchmarks.harness import Report

_TARGET = "cuda_training"

_BATCH = 8
_BATCHES = 8
_RATE = 1e-4

#: Steps whose losses are compared.
STEPS = 12

# Largest difference of a loss, which is about 10; bfloat16 has three digits.
_TOLERANCE = 0.1

Step = Callable[[], Tensor]

#: What the C++ program has, by the names that it knows.
_CPP = {
    "step": "C++, the whole step compiled",
    "loss": "C++, loss and optimiser compiled apart",
    "graphs": "C++, the same with CUDA graphs of the loss and its backward",
    "eager": "C++, eager",
}

#: What Python has: whether the loss is compiled, and how the optimiser runs.
_PYTHON = {
    "compile": (True, "compiled", "Python, torch.compile of loss and optimiser"),
    "fused": (True, "fused", "Python, torch.compile of the loss, fused optimiser"),
    "python": (False, "fused", "Python, eager, fused optimiser"),
}


class Layer(gpt2.Layer):
    """A layer of GPT-2 that sees whole texts; ``cpp/cuda_training.cpp`` has the same one."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.finish(x, functional.scaled_dot_product_attention(*self.split(x), is_causal=True))


class Gpt(gpt2.Network):
    """GPT-2 (124M) for 512 tokens; gives the loss of the next ones."""

    def __init__(self) -> None:
        super().__init__(Layer)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        x = self.words(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        scores = functional.linear(self.norm(x), self.words.weight)
        return functional.cross_entropy(scores.flatten(0, 1), targets.flatten())


def make() -> tuple[Gpt, Tensor]:
    """The network on the GPU, and tokens of all batches, the same ones each time."""
    torch.manual_seed(0)
    network = Gpt()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.02)
    return network.cuda(), torch.randint(gpt2.WORDS, (_BATCHES, _BATCH, gpt2.TOKENS + 1))


def make_step(compiled: bool, optimiser: str) -> Step:
    """A function that trains on the next batch and gives its loss."""
    network, text = make()
    text = text.cuda()
    batches = [(one[:, :-1].contiguous(), one[:, 1:].contiguous()) for one in text]
    adam = torch.optim.AdamW(network.parameters(), _RATE, fused=optimiser == "fused")
    done = 0

    def forward(tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return network(tokens, targets)  # type: ignore[no-any-return]

    loss_of = torch.compile(forward) if compiled else forward
    update: Any = torch.compile(lambda: adam.step()) if optimiser == "compiled" else adam.step

    def step() -> Tensor:
        nonlocal done
        tokens, targets = batches[done % len(batches)]
        done += 1
        adam.zero_grad()
        loss = loss_of(tokens, targets)
        loss.backward()
        update()
        return loss

    return step


def run(quick: bool = False) -> Report:
    """Trains the network in both languages, in turns.

    Args:
        quick: Measure too little to judge by.

    Raises:
        CompileError: There is no GPU, a program cannot be built, or failed, or a contender has other losses.
    """
    if not torch.cuda.is_available():
        raise torchcc.CompileError("this benchmark needs a GPU, and PyTorch with CUDA")
    rounds, calls = (3, 3) if quick else (20, 10)
    program_file = harness.build(_TARGET) / _TARGET
    with tempfile.TemporaryDirectory(prefix="torchcc-benchmark-") as folder:
        network, text = make()
        weights = {name: one.detach().cpu() for name, one in network.named_parameters()}
        torch.save({**weights, "text": text}, Path(folder) / "weights.pt")
        del network
        expected = _losses(make_step(False, "fused"))
        program = gpu.Program(program_file, Path(folder) / "weights.pt")
        notes = []
        for way in _CPP:
            start = time.monotonic()
            answer = program.ask(way, 0)
            _check(_CPP[way], answer["losses"], expected)
            notes.append(f"{_CPP[way]}: ready after {time.monotonic() - start:.0f} s\n{answer['stats']}".rstrip())
        steps = {}
        for name, (compiled, optimiser, title) in _PYTHON.items():
            steps[name] = make_step(compiled, optimiser)
            _check(title, _losses(steps[name]), expected)
        samples: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, step in steps.items():
                samples.setdefault(name, []).append(gpu.nanoseconds(step, calls))
            for way in _CPP:
                samples.setdefault(way, []).append(program.ask(way, calls)["total"])
        program.end()
    return _report(samples, rounds, calls, notes)


def _losses(step: Step) -> list[float]:
    return [float(step().detach()) for _ in range(STEPS)]


def _check(title: str, losses: list[float], expected: list[float]) -> None:
    difference = max(abs(one - other) for one, other in zip(losses, expected, strict=True))
    if not difference <= _TOLERANCE or math.isnan(sum(losses)):
        raise torchcc.CompileError(f"{title}: other losses than eager, by {difference:.3g}: {losses}, {expected}")


def _report(samples: dict[str, list[float]], rounds: int, calls: int, notes: list[str]) -> Report:
    title = "GPT-2, 124M, 8 x 512 tokens, bfloat16 by autocast, AdamW"
    titles = {**_CPP, **{name: text for name, (_, _, text) in _PYTHON.items()}}
    cases = [
        harness.case(f"{title}: {text}", [one / 1e6 for one in samples[name]], "ms") for name, text in titles.items()
    ]
    for way in [one for one in _CPP if one != "eager"]:
        for other, limit in (("compile", 1.0), ("fused", None)):
            ratios = harness.ratios(samples[way], samples[other])
            limit_of = limit if way == "loss" else None
            cases.append(harness.case(f"{title}: {titles[way]}, over {titles[other]}", ratios, "ratio", limit_of))
    return Report(
        cases,
        [
            f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {rounds} rounds of {calls} steps each in turn",
            f"the losses of {STEPS} steps agree with eager Python's within {_TOLERANCE}",
            *notes,
        ],
    )
