"""`torchcc merge`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from commands import outcomes, refuse, run

import torchcc
from torchcc import _torch, package_reader, package_writer
from torchcc.errors import ArgumentError


def test_merge(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.pt2"
    text = run(
        "merge",
        packages / "net.pt2",
        f"{packages}/both.pt2:forward=layer",
        f"{packages}/counter.pt2:forward=count",
        "-o",
        out,
    )
    assert "\nlayer(x: float32[n, 8]) -> float32[n, 8] with 1 <= n\n" in text
    described = json.loads(run("inspect", out, "--json"))["functions"]
    assert [(one["name"], one["group"], len(one["variants"])) for one in described] == [
        ("forward", "model", 0),
        ("encode", "model", 0),
        ("layer", "model_2", 2),
        ("count", "model_3", 0),
    ]
    package_reader.check(out)
    assert {one[2] for one in outcomes(out)} == {"equal"}
    assert torch.export.load(str(out)).graph_signature.user_inputs[0] == "ids"


def test_code_of_several_machines(packages: Path, tmp_path: Path) -> None:
    """Each machine has compiled a copy of one package."""
    portable, out = tmp_path / "portable.pt2", tmp_path / "all.pt2"
    functions = package_reader.read(packages / "both.pt2", tmp_path / "read")
    package_writer.write(portable, [dataclasses.replace(one, variants=()) for one in functions])
    elsewhere = tmp_path / "elsewhere.pt2"
    other = [
        dataclasses.replace(one, target="cpu-elsewhere", cpu_features=("abacus",)) for one in functions[0].variants
    ]
    package_writer.write(elsewhere, [dataclasses.replace(functions[0], variants=other)])
    run("merge", portable, elsewhere, packages / "layer.pt2", packages / "both.pt2", "-o", out)
    (function,) = package_reader.read(out, tmp_path / "again")
    here = _torch.cpu_target()[0]
    assert sorted((one.target, bool(one.weights)) for one in function.variants) == sorted(
        [(here, False), (here, True), ("cpu-elsewhere", False), ("cpu-elsewhere", True)]
    )
    loaded = torchcc.load(out)["forward"]
    assert loaded.backend == "compiled" and "abacus" in loaded.reasons[0]
    assert {one[2] for one in outcomes(out)} == {"equal", "skipped"}
    # Other weights: another function.
    program = functions[0].program
    assert program is not None
    program.state_dict["linear.bias"] = torch.nn.Parameter(program.state_dict["linear.bias"] + 1)
    package_writer.write(elsewhere, [dataclasses.replace(functions[0], variants=())])
    refuse(ArgumentError, "with other signatures, graphs or weights", "merge", portable, elsewhere, "-o", out)


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        (("net.pt2", "counter.pt2"), "two functions are named 'forward'"),
        (("net.pt2:encode=forward",), "two functions are named 'forward'"),
        (("net.pt2:decode=x",), "no function 'decode' to rename"),
        (("net.pt2:encode",), "not understood"),
        (("net.pt2:encode=a b",), "not understood"),
    ],
)
def test_merges_that_make_no_sense(packages: Path, tmp_path: Path, sources: tuple[str, ...], text: str) -> None:
    out = tmp_path / "out.pt2"
    out.write_text("older")
    refuse(ArgumentError, text, "merge", *(packages / source for source in sources), "-o", out)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("out.pt2", "older")]
