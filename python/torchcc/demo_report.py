"""What the programs of ``torchcc demo`` measured, with limits, and how it is printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Case:
    """One thing that was measured; it holds when it keeps its limit, if it has one."""

    case: str
    value: float
    limit: float | None
    unit: str
    holds: bool


@dataclass(frozen=True)
class Part:
    """What came of one of the programs.

    Attributes:
        title: What it shows.
        cases: What was measured.
        facts: What the program printed, by name.
        program: The C++ program.
        notes: Further lines about it.
    """

    title: str
    cases: tuple[Case, ...]
    facts: Mapping[str, str]
    program: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What came of a run.

    Attributes:
        parts: One per program.
        seconds: How long the build took; ``None`` when it was there from an earlier run.
    """

    parts: tuple[Part, ...]
    seconds: float | None

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases of all parts."""
        return tuple(case for part in self.parts for case in part.cases)

    @property
    def losses(self) -> dict[str, list[float]]:
        """The loss of each step of training, by what ran."""
        return losses(self.parts[-1].facts)

    @property
    def holds(self) -> bool:
        """Whether every case holds."""
        return all(case.holds for case in self.cases)


# Sums in another order differ in the seventh digit, Adam makes differences of small gradients large, and each step
# begins where the one before ended: initial weights that differ in the last digit change losses by up to 5e-4 within
# 126 steps.
_LOSS_LIMIT = 5e-3


def _at_most(case: str, value: float, limit: float | None, unit: str) -> Case:
    return Case(case, value, limit, unit, limit is None or value <= limit)


def _at_least(case: str, value: float, limit: float | None, unit: str) -> Case:
    return Case(case, value, limit, unit, limit is None or value >= limit)


def _no_python(facts: Mapping[str, str], prefix: str) -> Case:
    return _at_most(f"{prefix}Python libraries in the process", int(facts["python_files"]), 0, "files")


def _common_cases(facts: Mapping[str, str], prefix: str) -> list[Case]:
    return [
        _at_least(f"{prefix}accuracy on held-out images", float(facts["accuracy"]), 0.96, "fraction"),
        # Logits reach about 50; float32 sums in another order differ in the seventh digit.
        _at_most(
            f"{prefix}largest difference of a logit from eager", float(facts["logit_difference"]), 1e-3, "absolute"
        ),
        _no_python(facts, prefix),
    ]


def _times(facts: Mapping[str, str], prefix: str) -> list[Case]:
    cases = []
    for batch, count in (("1", "1"), ("all", facts["held_out"])):
        compiled, eager = float(facts[f"compiled_{batch}_us"]), float(facts[f"eager_{batch}_us"])
        title = f"{prefix}batch of {count}"
        cases.append(_at_most(f"{title}: compiled, one call", compiled, None, "us"))
        cases.append(_at_most(f"{title}: eager LibTorch, one call", eager, None, "us"))
        # Without a limit: a machine that is busy with other things is no reason for the demo to fail.
        cases.append(_at_most(f"{title}: compiled / eager", compiled / eager, None, "ratio"))
    return cases


def region_cases(facts: Mapping[str, str]) -> tuple[Case, ...]:
    """Cases of the program with the Python network."""
    load = _at_most("time to load the package", float(facts["load_us"]), None, "us")
    return (*_common_cases(facts, ""), load, *_times(facts, ""))


def network_cases(facts: Mapping[str, str], again: Mapping[str, str]) -> tuple[Case, ...]:
    """Cases of the program with the C++ network; ``again`` is its second run, without a compiler."""
    prefix = "C++ network: "
    return (
        *_common_cases(facts, prefix),
        _at_least(f"{prefix}calls that ran compiled code", int(facts["replayed"]), 1, "calls"),
        _at_least(f"{prefix}compiled calls at a second start, no compiler", int(again["replayed"]), 1, "calls"),
        _at_most(f"{prefix}training in C++, eager", float(facts["training_us"]) / 1e6, None, "s"),
        _at_most(f"{prefix}time in the compiler", float(facts["compile_seconds"]), None, "s"),
        *_times(facts, prefix),
    )


#: Names of the two trainings, by their keys in the program's output; the eager one comes first.
_TRAININGS = {"eager": "eager LibTorch", "compiled": "torchcc::compile, whole step"}


def losses(facts: Mapping[str, str]) -> dict[str, list[float]]:
    """The loss of each step of training, by what ran."""
    return {name: [float(loss) for loss in facts[f"{key}_losses"].split()] for key, name in _TRAININGS.items()}


def training_cases(facts: Mapping[str, str], again: Mapping[str, str]) -> tuple[Case, ...]:
    """Cases of the program that trains; ``again`` is its second run, without a compiler."""
    prefix = "C++ training: "
    eager, compiled = losses(facts).values()
    # A NaN is neither smaller nor larger than another number: it must not be what max() passes over.
    differences = [abs(one - other) for one, other in zip(eager, compiled, strict=True)]
    difference = max(differences) if not any(map(math.isnan, differences)) else math.nan
    seconds = {key: float(facts[f"{key}_epoch_s"]) for key in _TRAININGS}
    return (
        _at_least(f"{prefix}accuracy on held-out images", float(facts["accuracy"]), 0.96, "fraction"),
        _at_least(f"{prefix}accuracy, trained eagerly", float(facts["eager_accuracy"]), 0.96, "fraction"),
        _at_most(f"{prefix}largest difference of a step's loss from eager", difference, _LOSS_LIMIT, "absolute"),
        _at_most(f"{prefix}loss of the first step", compiled[0], None, "absolute"),
        _at_most(f"{prefix}loss of the last step", compiled[-1], None, "absolute"),
        _no_python(facts, prefix),
        _at_least(f"{prefix}operators that ran in compiled code", int(facts["compiled_ops"]), 1, "operators"),
        _at_least(f"{prefix}the same at a second start, no compiler", int(again["compiled_ops"]), 1, "operators"),
        _at_most(f"{prefix}time in the compiler", float(facts["compile_seconds"]), None, "s"),
        _at_most(f"{prefix}an epoch: compiled", seconds["compiled"], None, "s"),
        _at_most(f"{prefix}an epoch: eager LibTorch", seconds["eager"], None, "s"),
        _at_most(f"{prefix}an epoch: compiled / eager", seconds["compiled"] / seconds["eager"], None, "ratio"),
    )


def training_notes(facts: Mapping[str, str]) -> tuple[str, ...]:
    """Both losses after each epoch, and what ran."""
    eager, compiled = losses(facts).values()
    epochs = int(facts["epochs"])
    ends = [len(eager) * (epoch + 1) // epochs - 1 for epoch in range(epochs)]
    notes = [f"loss      step {end + 1}: eager {eager[end]:.5f}, compiled {compiled[end]:.5f}" for end in (0, *ends)]
    ran = (
        f"ran       {facts['compiled_ops']} operators in compiled code, {facts['eager_ops']} beside it one by one; "
        f"{facts['eager_steps']} steps as they are"
    )
    return (*notes, ran if int(facts["compiled_ops"]) else f"{ran}: {facts['reason']}")


def show(report: Report) -> None:
    """Prints a report to standard output."""
    facts = report.parts[0].facts
    # Wide enough for every row: a narrow terminal may wrap a line, but no verdict is cut off.
    console = Console(highlight=False, soft_wrap=True, markup=False, width=110)
    built = "reused from an earlier run" if report.seconds is None else f"built in {report.seconds:.0f} s"
    threads = "1 thread" if facts["threads"] == "1" else f"{facts['threads']} threads"
    console.print(f"torch {torch.__version__}, {facts['target']}, {threads}; program {built}")
    for part in report.parts:
        console.print(f"\nHandwritten digits: {part.title}", style="bold")
        table = Table(box=None, pad_edge=False, header_style="", padding=(0, 3, 0, 0))
        for title, justify in (("", "left"), ("measured", "right"), ("limit", "right"), ("", "left")):
            table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for case in part.cases:
            limit, verdict = "", Text()
            if case.limit is not None:
                limit = f"{'>=' if case.unit in _AT_LEAST else '<='} {_amount(case.limit, case.unit)}"
                verdict = Text("ok", "green") if case.holds else Text("DOES NOT HOLD", "red")
            name = case.case.removeprefix("C++ network: ").removeprefix("C++ training: ")
            table.add_row(name, _amount(case.value, case.unit), limit, verdict)
        console.print(table)
        for note in part.notes:
            console.print(note)
        console.print(f"program   {part.program}")
    console.print(f"\nsources   {report.parts[0].program.parent / 'source'}")
    console.print("times     medians of single calls, compiled and eager in turns, in one process per table")


_AT_LEAST = ("fraction", "calls", "operators")


def _amount(value: float, unit: str) -> str:
    if unit == "fraction":
        return f"{100 * value:.3g} %"
    if unit in ("calls", "files", "operators"):
        return f"{value:.0f}"
    if unit == "s":
        return f"{value:.1f} s" if value >= 1 else f"{value:.2g} s"
    return f"{value:.3g} us" if unit == "us" and value < 100 else f"{value:.0f} us" if unit == "us" else f"{value:.2g}"
