"""The benchmarks run and write what they should. Times are not looked at: they are the benchmarks' own business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CALLS = [
    "torchcc, typed function",
    "torchcc::Function",
    "torchcc, typed function into a given output",
    "AOTIModelPackageLoader::run, unchecked",
    "AOTInductorModelContainerRun, unchecked",
    "AOTInductorModelContainerRunSingleThreaded, unchecked",
    "eager LibTorch",
    "Python, torch.compile",
    "Python, aoti_load_package",
]

PROMISED = {
    "torchcc's typed function over AOTIModelPackageLoader::run": 0.8,
    "torchcc's typed function over AOTInductorModelContainerRun": 1.3,
    "throughput of 2 threads over 1, at least": 1.7,
    "wrong results in 8 x 10,000 calls from 8 threads": 0,
}


def run(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_names_are_listed() -> None:
    assert run().startswith("call_overhead ")


def test_an_unknown_name_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "nothing"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "call_overhead" in ran.stderr


def test_call_overhead(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    table = run("call_overhead", "--quick", "--json", file)
    cases = {case["case"]: case for case in json.loads(file.read_text())["cases"]}
    for case in cases.values():
        assert set(case) == {"case", "value", "limit", "unit", "holds"}
        assert case["case"] in table
        assert case["holds"] or case["limit"] is not None
    assert [name.removeprefix("call: ") for name in cases if name.startswith("call: ")] == CALLS
    assert all(cases[f"call: {name}"]["unit"] == "ns" and cases[f"call: {name}"]["value"] > 0 for name in CALLS)
    assert [name for name in cases if name.startswith("threads: ")] == [
        "threads: a call on one thread",
        *(f"threads: throughput of {count}" for count in (1, 2, 4, 8)),
    ]
    promised = {name: case["limit"] for name, case in cases.items() if case["limit"] is not None}
    two_cores = len(os.sched_getaffinity(0)) >= 2
    assert promised == {name: limit for name, limit in PROMISED.items() if two_cores or "threads over" not in name}
    assert cases["wrong results in 8 x 10,000 calls from 8 threads"]["value"] == 0
