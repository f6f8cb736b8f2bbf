"""Draws what ``footprint`` measured: ``python -m benchmarks footprint --plot FILE``. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Case

#: What is drawn: the middle of a case's name, and the title of its panel.
_PANELS = {
    "size": "size, MB",
    "start": "exec to first result, ms",
    "memory": "memory, MiB",
    "time of a call": "a call, us",
}


def draw(file: Path, cases: Sequence[Case]) -> None:
    """Writes a PNG: a panel for each quantity, in it bars for each model and runtime, and the limits.

    Raises:
        OSError: The file cannot be written.
    """
    # Without pyplot, which looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found: dict[str, dict[str, dict[str, Case]]] = {panel: {} for panel in _PANELS}
    for case in cases:
        model, _, rest = case.name.rpartition(": ")
        quantity, _, runtime = rest.partition(", ")
        if quantity in found and " over " not in runtime and case.value is not None:
            found[quantity].setdefault(model, {})[runtime] = case
    runtimes = list(dict.fromkeys(name for models in found.values() for rows in models.values() for name in rows))
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (quantity, title) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        models = list(found[quantity])
        width = 0.8 / len(runtimes)
        for position, runtime in enumerate(runtimes):
            places, heights = [], []
            for place, model in enumerate(models):
                case = found[quantity][model].get(runtime)
                if case is None or case.value is None:
                    continue
                places.append(place + (position - (len(runtimes) - 1) / 2) * width)
                heights.append(case.value / 1000 if case.unit == "ns" else case.value)
                if case.limit is not None:
                    axes.hlines(case.limit, place - 0.4, place + 0.4, colors="black", linestyles="dashed")
            bars = axes.bar(places, heights, width, label=runtime)
            axes.bar_label(
                bars, [f"{height:,.0f}" if height >= 100 else f"{height:.3g}" for height in heights], fontsize=7
            )
        axes.set_xticks(range(len(models)), [model.split(",")[0].split(" 1")[0] for model in models])
        axes.set(title=title, yscale="log")
        axes.grid(axis="y", alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runtimes))
    figure.suptitle("One thread; dashed: torchcc's limits for standalone programs")
    figure.savefig(file, format="png", dpi=120)
