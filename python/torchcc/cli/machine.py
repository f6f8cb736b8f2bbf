"""Commands that show whether torchcc works on a machine, and what it does there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from torchcc.cli import console


def demo(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the measurements to this file.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the losses of training into this PNG file.")
    ] = None,
) -> None:
    """Builds and runs C++ programs that call, compile and train small networks."""
    from torchcc import demo, demo_report, loss_plot

    if plot_file:
        loss_plot.require(plot_file)
    with console.progress(verbose=False) as tell:
        report = demo.run(tell)
    demo_report.show(report)
    if plot_file:
        loss_plot.draw(plot_file, report.losses)
    if json_file:
        console.write_json(json_file, {"cases": [asdict(case) for case in report.cases]})
    if not report.holds:
        raise typer.Exit(1)


def doctor(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the findings to this file.")] = None,
) -> None:
    """Checks what torchcc needs on this machine, and says how to get what is missing."""
    from torchcc import doctor

    found = doctor.run()
    if json_file:
        console.write_json(json_file, {"findings": [asdict(finding) for finding in found]})
    if doctor.missing_names(found):
        raise typer.Exit(1)
