"""Programs with libtorch and without: how large they are, how soon they answer, and what memory and time they take.

Beside them ExecuTorch, and ONNX Runtime in Python.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import torchcc
from benchmarks import harness, models
from benchmarks.footprint_plot import draw
from benchmarks.harness import Case, Report
from torchcc import mobile
from torchcc.examples.digits import digits

#: What the issue names: sizes in MB, times in ms, memory in MiB.
_LIMITS = {
    "classifier": {"size": 3.0, "start": 5.0, "memory": 8.0},
    "encoder": {"size": 4.0, "start": 20.0, "memory": None},
    "mlp": {"size": None, "start": None, "memory": None},
    "cnn": {"size": None, "start": None, "memory": None},
}
_TITLES = {
    "classifier": "digits classifier",
    "encoder": models.MODELS["encoder"].title,
    "mlp": models.MODELS["mlp_1"].title,
    "cnn": "CNN, 4 convolutions of width 32 with batch norm, 64 x 64 pixels",
}
_OWN, _EXECUTORCH, _ONNX = "standalone", "ExecuTorch", "ONNX Runtime in Python"

__all__ = ["draw", "run"]

#: Time of a call over the same model's with libtorch.
_RATIOS = {"classifier": None, "encoder": 1.1, "mlp": 0.6, "cnn": 1.1}
_CALLS = {"classifier": 2000, "encoder": 5, "mlp": 2000, "cnn": 10}


class _Cnn(nn.Module):
    """What oneDNN does, and batch norm, which is folded."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for position in range(4):
            layers += [nn.Conv2d(32 if position else 3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


def _models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    return {
        "classifier": (digits.load(), torch.zeros(1, 8, 8, dtype=torch.uint8)),
        "encoder": models.make("encoder"),
        "mlp": models.make("mlp_1"),
        "cnn": (_Cnn().eval(), torch.zeros(1, 3, 64, 64)),
    }


#: What each contender is measured by, and the units.
QUANTITIES = {"size": "MB", "start": "ms", "memory": "MiB", "time of a call": "ns"}


@dataclass(frozen=True)
class _Contender:
    """A program, and the bytes that have to be shipped with it."""

    command: Sequence[Path | str]
    size: int


def run(quick: bool = False) -> Report:
    """Exports the models, builds the programs, and measures them in turns.

    Args:
        quick: Measure too little to judge by.

    Raises:
        CompileError: A program or a model cannot be built, or failed.
    """
    with tempfile.TemporaryDirectory(prefix="torchcc-benchmark-") as work:
        missing = find_missing()
        built = prepare(Path(work), missing)
        return measure(Path(work), built, missing, quick)


def prepare(folder: Path, missing: Collection[str]) -> Path:
    """Exports the models into a folder, and builds the programs; gives the folder of these."""
    for name, (module, x) in _models().items():
        _export(folder, name, module, x, missing)
    definitions = [f"TORCHCC_BENCHMARK_MODELS={folder}", f"TORCHCC_BENCHMARK_EXECUTORCH={_executorch(missing)}"]
    return harness.build("all", "cpp/footprint", definitions)


def measure(folder: Path, built: Path, missing: Mapping[str, str], quick: bool) -> Report:
    """Measures what :func:`prepare` left."""
    starts, rounds = (3, 3) if quick else (30, 60)
    cases: list[Case] = []
    for name, title in _TITLES.items():
        cases += _cases(name, title, _contenders(folder, built, name, missing), starts, rounds)
        cases += [
            Case(f"{title}: {quantity}, {kind}", None, unit)
            for kind in missing
            for quantity, unit in QUANTITIES.items()
        ]
    notes = [
        f"start: from exec to the first result, {starts} times, files in the page cache; memory: VmHWM after it",
        "size: the stripped program, and the libraries that it loads, without the system's; of ONNX Runtime its own",
        "time of a call: one thread, in turns",
        "CNN: with oneDNN, whose library is loaded and counted",
        *(f"{kind} was not measured: {reason}" for kind, reason in missing.items()),
    ]
    return Report(cases, notes)


def find_missing() -> dict[str, str]:
    """Contenders that cannot be measured here, and why."""
    missing = {}
    try:
        mobile.require()
    except torchcc.CompileError as error:
        missing[_EXECUTORCH] = str(error).splitlines()[0]
    if absent := [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]:
        missing[_ONNX] = f"{' and '.join(absent)} not found: pip install -e '.[benchmark]'"
    return missing


def _export(folder: Path, name: str, module: nn.Module, x: torch.Tensor, missing: Collection[str]) -> None:
    torchcc.export(
        folder / f"{name}.pt2",
        module,
        (x,),
        targets=["native", "standalone", *([] if _EXECUTORCH in missing else ["mobile"])],
        weights="file" if name == "encoder" else "embedded",
        libraries=["onednn"],
    )
    if _ONNX not in missing:
        torch.onnx.export(module, (x,), folder / f"{name}.onnx", dynamo=True, verbose=False)


def _executorch(missing: Collection[str]) -> str:
    """The folder of ExecuTorch's package, or nothing."""
    found = None if _EXECUTORCH in missing else importlib.util.find_spec("executorch")
    return next(iter(found.submodule_search_locations or ()), "") if found else ""


def _contenders(folder: Path, built: Path, name: str, missing: Collection[str]) -> dict[str, _Contender]:
    own, libtorch = built / f"{name}_standalone", built / f"{name}_libtorch"
    found = {
        _OWN: _Contender((own, folder / f"{name}.standalone" / f"{name}.weights"), _size(own)),
        "libtorch": _Contender((libtorch, folder / f"{name}.pt2"), _size(libtorch)),
    }
    if _EXECUTORCH not in missing:
        program = built / "executorch_program"
        found[_EXECUTORCH] = _Contender((program, folder / f"{name}.pte"), _size(program))
    if _ONNX not in missing:
        spec = importlib.util.find_spec("onnxruntime")
        package = Path(spec.origin).parent if spec and spec.origin else Path()
        size = sum(file.stat().st_size for file in package.glob("capi/*.so*"))
        script = Path(__file__).with_name("footprint_onnx.py")
        found[_ONNX] = _Contender((sys.executable, script, folder / f"{name}.onnx"), size)
    return found


def _cases(name: str, title: str, contenders: dict[str, _Contender], starts: int, rounds: int) -> list[Case]:
    limits = _LIMITS[name]

    def limit(kind: str, quantity: str) -> float | None:
        return limits[quantity] if kind == _OWN else None

    cases = [
        Case(f"{title}: size, {kind}", one.size / 1e6, "MB", limit(kind, "size")) for kind, one in contenders.items()
    ]
    samples: dict[str, list[tuple[float, float]]] = {kind: [] for kind in contenders}
    for _ in range(starts):
        for kind, one in contenders.items():
            samples[kind].append(_start(one.command))
    for kind, values in samples.items():
        times, memory = [one for one, _ in values], [one for _, one in values]
        cases.append(harness.case(f"{title}: start, {kind}", times, "ms", limit(kind, "start")))
        cases.append(harness.case(f"{title}: memory, {kind}", memory, "MiB", limit(kind, "memory")))
    calls = _calls({kind: one.command for kind, one in contenders.items()}, _CALLS[name], rounds)
    cases += [harness.case(f"{title}: time of a call, {kind}", values, "ns") for kind, values in calls.items()]
    cases.append(
        harness.case(
            f"{title}: time of a call, standalone over libtorch",
            harness.ratios(calls[_OWN], calls["libtorch"]),
            "ratio",
            _RATIOS[name],
        )
    )
    return cases


def _environment() -> dict[str, str]:
    return {**os.environ, **harness.ONE_THREAD}


def _size(program: Path) -> int:
    """Bytes of the stripped program, and of the libraries that are not the system's."""
    with tempfile.NamedTemporaryFile() as stripped:
        subprocess.run(["strip", "-o", stripped.name, str(program)], check=True)
        size = Path(stripped.name).stat().st_size
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        path = next((word for word in line.split() if word.startswith("/")), "")
        if path and not path.startswith(("/lib", "/usr/lib")):
            size += Path(path).stat().st_size
    return size


def _start(command: Sequence[Path | str]) -> tuple[float, float]:
    """Milliseconds from exec to the first result, and MiB of memory at most until then."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [*map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=_environment()
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        elapsed = time.perf_counter() - begin
        peak = process.stdout.readline()
    if process.returncode != 0 or not first:
        raise torchcc.CompileError(f"{' '.join(map(str, command))}: it ended with status {process.returncode}")
    return elapsed * 1e3, int(peak) / 1024


def _calls(commands: Mapping[str, Sequence[Path | str]], calls: int, rounds: int) -> dict[str, Sequence[float]]:
    """Nanoseconds a call, one value for each round, of programs that wait for their turn."""
    processes = {
        kind: subprocess.Popen(
            [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        for kind, command in commands.items()
    }
    times: dict[str, list[float]] = {kind: [] for kind in commands}
    try:
        for process in processes.values():
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.readline()
        for round_ in range(-2, rounds):
            for kind, process in processes.items():
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(f"{calls}\n")
                process.stdin.flush()
                value = float(process.stdout.readline())
                if round_ >= 0:
                    times[kind].append(value)
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    return {**times}
