"""Files of whole models: what is written is read again, and what is damaged or foreign is refused or understood."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import numpy_file, outcomes, refuse, run

import torchcc
from torchcc import _torch, package, package_reader, package_writer
from torchcc.errors import ArgumentError, PackageError
from torchcc.signature import Signature, Symbol, Value


def test_signatures_survive_json() -> None:
    signature = Signature(
        "step",
        (Value("x", "float32", ("n", ["*", 2, "n"], 3), mutated=True), Value("k", "int64", number=True, minimum=0)),
        (Value("out", "bool", (None,)),),
        (Symbol("n", 1, 9), Symbol("m")),
    )
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


def test_reading_gives_what_was_written(packages: Path, tmp_path: Path) -> None:
    forward, encode = package_reader.read(packages / "net.pt2", tmp_path / "net")
    assert [value.name for value in forward.signature.inputs] == ["ids", "state.bias", "mask"]
    assert forward.signature.symbols == (Symbol("batch", 1), Symbol("length", 1, 64))
    assert forward.group == encode.group == "model"
    assert forward.variants == encode.variants == []
    (function,) = package_reader.read(packages / "both.pt2", tmp_path / "both")
    updatable, frozen = function.variants
    assert (updatable.weights, frozen.weights) == (("linear.weight", "linear.bias"), ())
    for variant in function.variants:
        assert (variant.target, _torch.cpu_target()[2]) == (_torch.cpu_target()[0], variant.cpu_features)
        assert variant.torch == _torch.tree_version() and not variant.files_out and not package.misfit(variant)
        assert all(Path(file).is_relative_to(tmp_path / "both") and Path(file).is_file() for file in variant.files)
    package_writer.write(tmp_path / "again.pt2", [function])
    first, again = (
        json.loads(run("inspect", file, "--json")) for file in (packages / "both.pt2", tmp_path / "again.pt2")
    )
    assert first["functions"] == again["functions"]


def test_names_in_the_archive_do_not_clash(tmp_path: Path) -> None:
    code = tmp_path / "code.so"
    code.write_bytes(b"code")
    variants = [package.Variant([str(code)], [str(code)], target=one) for one in ("a", "b")]
    training = [package.Training([str(code)], [str(code)], {}, target=one) for one in ("a", "b")]
    names = ("f", "model", "model__1", "g", "g__1", "h__out", "h", "g__training0", "h__training1__backward")
    functions = [package.Function(Signature(name, (), ()), None, variants, training=training) for name in names]
    package_writer.write(tmp_path / "names.pt2", functions)
    read = package_reader.read(tmp_path / "names.pt2", tmp_path / "read")
    assert [one.signature.name for one in read] == list(names)
    assert all(len(one.files) == len(one.files_out) == 1 for function in read for one in function.variants)
    assert all(len(one.files) == len(one.files_backward) == 1 for function in read for one in function.training)


def test_inspect(packages: Path) -> None:
    text = run("inspect", packages / "net.pt2")
    assert "state.bias: float32[16]" in text and "1 <= length <= 64" in text
    assert "  inputs: ids, state.bias, mask\n  outputs: scores, parts.0, parts.1" in text
    assert "weights: 3, 3.4 KiB, shared in the group 'model'" in text
    text = run("inspect", packages / "both.pt2")
    assert "    2 weights are inputs\n" in text and "    2 weights are burnt in\n" in text
    (function,) = json.loads(run("inspect", packages / "both.pt2", "--json"))["functions"]
    assert list(function) == [
        *(
            "name",
            "signature",
            "inputs",
            "outputs",
            "mutated",
            "graph",
            "group",
            "weights",
            "weights_bytes",
            "variants",
        ),
        "training",
    ]
    assert list(function["variants"][0]) == [
        *("target", "torch", "cpu_features", "code_bytes", "into_outputs", "weights_as_inputs", "weights_burnt_in")
    ]
    assert [(one["weights_as_inputs"], one["weights_burnt_in"]) for one in function["variants"]] == [(2, 0), (0, 2)]
    assert function["inputs"] == [{"name": "x", "type": "float32[n, 8]", "mutated": False}]
    (counter,) = json.loads(run("inspect", packages / "counter.pt2", "--json"))["functions"]
    assert (counter["weights"], counter["weights_bytes"]) == (1, 12)


def test_a_plain_file_becomes_a_package(packages: Path, tmp_path: Path) -> None:
    (layer,) = package_reader.read(packages / "layer.pt2", tmp_path / "read")
    assert layer.program is not None
    plain = tmp_path / "plain.pt2"
    _torch.save(layer.program, plain)
    refuse(PackageError, "`torchcc compile` makes one", "run", plain, "--input", "x.npy")
    run("compile", plain, "-o", tmp_path / "package.pt2", "--target", "portable")
    assert outcomes(tmp_path / "package.pt2") == [("forward", "portable", "equal")]
    x = torch.randn(4, 8)
    assert torch.equal(torchcc.load(plain)["forward"](x), torchcc.load(tmp_path / "package.pt2")["forward"](x))
    # Compiled code by others beside a program is left out, without a program nothing can be done with it.
    code = tmp_path / "model.so"
    code.write_bytes(b"code")
    for name, programs in (("with.pt2", {"model": layer.program, "other": layer.program}), ("without.pt2", {})):
        _torch.write_archive(tmp_path / name, programs, {"model": [str(code)]}, {})
    functions = package_reader.read(tmp_path / "with.pt2", tmp_path / "with")
    assert [(one.signature.name, one.group, list(one.variants)) for one in functions] == [
        ("forward", "model", []),
        ("other", "other", []),
    ]
    refuse(PackageError, "compiled code alone", "compile", tmp_path / "without.pt2", "-o", tmp_path / "x.pt2")


def test_packages_of_compiled_code_alone(packages: Path, tmp_path: Path) -> None:
    (layer,) = package_reader.read(packages / "both.pt2", tmp_path / "read")
    package_writer.write(tmp_path / "code.pt2", [dataclasses.replace(layer, program=None, variants=layer.variants[1:])])
    refuse(ArgumentError, "no graph to compile", "compile", tmp_path / "code.pt2", "-o", tmp_path / "x.pt2")
    refuse(ArgumentError, "no example inputs", "bench", tmp_path / "code.pt2")
    assert outcomes(tmp_path / "code.pt2") == [("forward", "", "skipped")]
    assert torchcc.load(tmp_path / "code.pt2")["forward"].backend == "compiled"
    with pytest.raises(PackageError, match="cannot run here"):
        torchcc.load(tmp_path / "code.pt2", compiled=False)
    package_writer.write(tmp_path / "half.pt2", [dataclasses.replace(layer, program=None, variants=layer.variants[:1])])
    with pytest.raises(PackageError, match="it takes weights"):
        torchcc.load(tmp_path / "half.pt2")
    variant = dataclasses.replace(layer.variants[1], files_out=layer.variants[1].files)
    package_writer.write(tmp_path / "out.pt2", [dataclasses.replace(layer, variants=[variant])])
    refuse(ArgumentError, "form for given outputs", "compile", tmp_path / "out.pt2", "-o", tmp_path / "x.pt2")


def test_files_that_are_no_packages(packages: Path, tmp_path: Path) -> None:
    content = bytearray((packages / "layer.pt2").read_bytes())
    content[content.index(b"\x7fELF") + 5000] ^= 1
    (tmp_path / "damaged.pt2").write_bytes(content)
    (tmp_path / "text.pt2").write_text("nothing")
    for name in ("damaged.pt2", "text.pt2", "missing.pt2"):
        file = tmp_path / name
        for command in (("compile", file, "-o", tmp_path / "x.pt2"), ("merge", file, "-o", tmp_path / "x.pt2")):
            refuse(PackageError, "it cannot be read", *command)
        refuse(PackageError, "it cannot be read", "verify", file)
        refuse(PackageError, "it cannot be read", "bench", file)
        with pytest.raises(PackageError, match="it cannot be read"):
            torchcc.load(file)
    with pytest.raises(PackageError, match="damaged.pt2"):  # in C++
        run("run", tmp_path / "damaged.pt2", "--input", numpy_file(tmp_path / "x.npy", torch.ones(2, 8)))
    assert not (tmp_path / "x.pt2").exists()


def test_a_graph_of_unknown_classes_needs_the_file_that_defines_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "states.py").write_text(
        "from dataclasses import dataclass\nimport torch\n"
        "@dataclass\nclass State:\n    a: torch.Tensor\n"
        'torch.export.register_dataclass(State, serialized_type_name="states.State")\n'
        "class Model(torch.nn.Module):\n    def forward(self, state): return State(state.a * 2)\n"
        "def build(): return Model(), (State(torch.ones(2)),)\n"
    )
    file = tmp_path / "model.pt2"
    run("export", f"{tmp_path / 'states.py'}:build", "-o", file, "--target", "portable")
    assert "forward(state.a: float32[2]) -> float32[2]" in run("inspect", file)
    (tmp_path / "elsewhere").mkdir()

    def verify(*flags: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torchcc", "verify", str(file), *map(str, flags)]
        return subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False)

    failed = verify()
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith(f"PackageError: {file}: its graphs cannot be read\n"), failed.stderr
    assert "--import FILE" in failed.stderr
    verified = verify("--import", tmp_path / "states.py")
    assert verified.returncode == 0 and "equal" in verified.stdout, verified.stderr
