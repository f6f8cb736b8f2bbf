"""`torchcc run`, `verify` and `bench`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from commands import change, numpy_file, outcomes, refuse, run

import torchcc
from torchcc import _torch, deployment, package_reader, package_writer
from torchcc.errors import ArgumentError, CompileError


def test_run(packages: Path, tmp_path: Path) -> None:
    ids = numpy_file(tmp_path / "ids.npy", torch.tensor([[1, 2, 3]]))
    bias = tmp_path / "bias.pt"
    torch.save(torch.ones(16), bias)
    mask = numpy_file(tmp_path / "mask.npy", torch.ones(1, 3))
    call = ("run", packages / "net.pt2", "-f", "forward", "-i", f"mask={mask}", "-i", ids, "-i", f"state.bias={bias}")
    text = run(*call, "--output", tmp_path / "results")
    assert "ran: portable" in text and "parts.1  float32[]" in text
    expected = torchcc.load(packages / "net.pt2")["forward"](
        torch.tensor([[1, 2, 3]]), mask=torch.ones(1, 3), **{"state.bias": torch.ones(16)}
    )
    assert sorted(file.name for file in (tmp_path / "results").iterdir()) == [
        "parts.0.npy",
        "parts.1.npy",
        "scores.npy",
    ]
    for name in expected.names:
        assert numpy.allclose(numpy.load(tmp_path / "results" / f"{name}.npy"), expected[name].numpy(), atol=1e-6)
    described = json.loads(run(*call, "--json"))
    assert [(one["name"], one["sizes"], one["file"]) for one in described["outputs"]] == [
        ("scores", [1, 4], None),
        ("parts.0", [16], None),
        ("parts.1", [], None),
    ]
    assert described["outputs"][2]["values"] == [3.0]
    x = numpy_file(tmp_path / "x.npy", torch.randn(3, 8))
    assert f"ran: compiled {_torch.cpu_target()[0]}" in run("run", packages / "both.pt2", "-i", x)
    assert "ran: portable" in run("run", packages / "both.pt2", "-i", x, "--portable")
    refuse(ArgumentError, "cannot be written", *call, "--output", ids)


def test_inputs_that_make_no_sense(packages: Path, tmp_path: Path) -> None:
    x = numpy_file(tmp_path / "x.npy", torch.ones(2, 8))
    wide = numpy_file(tmp_path / "wide.npy", torch.ones(2, 8, dtype=torch.float64))
    (tmp_path / "text.npy").write_text("nothing")
    (tmp_path / "x.csv").write_text("1, 2")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    file = packages / "layer.pt2"
    refuse(ArgumentError, "nothing for 'x'", "run", file)
    refuse(ArgumentError, "2 inputs", "run", file, "-i", x, "-i", x)
    refuse(ArgumentError, "'x' twice", "run", file, "-i", x, "-i", f"x={x}")
    refuse(ArgumentError, "one named 'y'", "run", file, "-i", f"y={x}")
    for name in ("text.npy", "x.csv", "list.pt", "missing.npy"):
        refuse(ArgumentError, "it cannot be read", "run", file, "-i", tmp_path / name)
    refuse(ArgumentError, "wrong dtype", "run", file, "-i", wide)  # C++ says so
    refuse(ArgumentError, "it has several functions", "run", packages / "net.pt2", "-i", x)
    refuse(ArgumentError, "there is no function 'decode'", "run", packages / "net.pt2", "-f", "decode", "-i", x)
    refuse(ArgumentError, "missing.so: it cannot be loaded", "verify", file, "--operators", tmp_path / "missing.so")
    refuse(ArgumentError, "no such file", "verify", file, "--import", tmp_path / "missing.py")


def test_verify(packages: Path, tmp_path: Path) -> None:
    assert outcomes(packages / "both.pt2") == [
        ("forward", f"torch {_torch.tree_version()}, weights as inputs", "equal"),
        ("forward", f"torch {_torch.tree_version()}", "equal"),
        ("forward", "portable", "equal"),
        ("forward", "compiled", "equal"),
    ]
    assert outcomes(packages / "counter.pt2") == [("forward", "portable", "equal")]
    text = run("verify", packages / "noise.pt2")
    assert "shapes only: it draws random numbers" in " ".join(text.split())
    other = change(packages / "layer.pt2", tmp_path / "other.pt2", tmp_path / "work", cpu_features=("avx9",))
    assert outcomes(other) == [
        ("forward", f"torch {_torch.tree_version()}", "skipped"),
        ("forward", "portable", "equal"),
    ]
    assert "this CPU lacks avx9" in run("verify", other)


def test_verify_finds_differences(packages: Path, tmp_path: Path) -> None:
    (layer,) = package_reader.read(packages / "layer.pt2", tmp_path / "work")
    assert layer.program is not None
    layer.program.state_dict["linear.bias"].data += 1
    package_writer.write(tmp_path / "wrong.pt2", [layer])
    assert [one[2] for one in outcomes(tmp_path / "wrong.pt2", code=1)] == ["differs", "equal", "differs"]
    text = " ".join(run("verify", tmp_path / "wrong.pt2", code=1).split())
    assert "differs from the graph in output 'out'" in text and "largest difference" in text


def test_bench(packages: Path) -> None:
    timings = json.loads(run("bench", packages / "both.pt2", "--seconds", "0.05", "--threads", "1", "--json"))[
        "timings"
    ]
    assert [(one["backend"], one["target"], one["threads"], one["reasons"]) for one in timings] == [
        ("compiled", _torch.cpu_target()[0], 1, []),
        ("portable", "", 1, []),
    ]
    assert all(0 < one["nanoseconds"] < 1e9 and 0 < one["load_seconds"] < 60 for one in timings)
    text = run("bench", packages / "net.pt2", "--seconds", "0.01")
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [["forward", "portable"], ["encode", "portable"]]
    refuse(ArgumentError, "nothing to measure", "bench", packages / "net.pt2", "--seconds", "0")
    refuse(ArgumentError, "nothing to measure", "bench", packages / "net.pt2", "--threads", "0")
    refuse(ArgumentError, "there is no function 'decode'", "bench", packages / "net.pt2", "--function", "decode")


def test_a_program_that_crashes(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchcc.native.runner", lambda: Path("/bin/false"))
    with pytest.raises(CompileError, match="ended with status 1"):
        deployment.bench(packages / "counter.pt2", None, 0.01)
