"""Draws the losses of two trainings, for ``torchcc demo --plot``. Needs matplotlib, which nothing else does."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchcc.errors import ArgumentError, Error, message


def require(file: Path) -> None:
    """Checks that ``draw(file, ...)`` can work, before anything that takes minutes.

    Raises:
        ArgumentError: There is no folder for the file.
        Error: matplotlib is missing.
    """
    found = None
    with contextlib.suppress(ValueError):  # a module that is blocked has no specification
        found = importlib.util.find_spec("matplotlib")
    if found is None:
        raise Error(
            message(
                f"--plot {file}: the picture cannot be drawn",
                expected="matplotlib",
                got="no such package in this Python",
                fix="pip install 'torchcc[plot]', or pip install matplotlib",
            )
        )
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise ArgumentError(
            message(
                f"--plot {file}: cannot be written",
                expected="a file's name in a folder that exists",
                got="a folder" if file.is_dir() else f"no folder {file.absolute().parent}",
                fix="check the path",
            )
        )


def draw(file: Path, losses: Mapping[str, Sequence[float]]) -> None:
    """Writes a PNG with one curve for each training.

    Args:
        file: The file to write.
        losses: The loss of each step, by what ran.

    Raises:
        ArgumentError: The file cannot be written.
    """
    # Without pyplot, which looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Equal curves hide each other, so each is thinner than the one below it.
    for number, (name, values) in enumerate(losses.items()):
        axes.plot(range(1, len(values) + 1), values, label=name, linewidth=4 / (1 + 2 * number))
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="Handwritten digits: training in C++")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(file, format="png", dpi=150)
    except OSError as error:
        raise ArgumentError(
            message(f"--plot {file}: cannot be written", got=str(error), fix="check the path")
        ) from error
