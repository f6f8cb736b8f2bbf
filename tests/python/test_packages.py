"""The commands for packages of whole models, and `torchcc.load`. Two small models are compiled, once."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from typer.testing import CliRunner

import torchcc
from torchcc import _torch, cli, deployment, package, package_reader, package_writer
from torchcc.errors import ArgumentError, CompileError, Error, PackageError
from torchcc.signature import Signature, Symbol, Value

MODEL = '''
"""Models for test_packages.py."""
import torch

import torchcc


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, ids, *, state, mask=None):
        x = self.encode(ids) + state["bias"]
        return {"scores": self.head(x), "parts": (x.sum(0), mask.sum())}

    def encode(self, ids):
        return self.embed(ids).mean(1)


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x):
        self.total += x.sum(0)
        return self.total * 2


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        return torch.relu(self.linear(x)) * 2


class Noise(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def net():
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (2, 7))
    keywords = {"state": {"bias": torch.randn(16)}, "mask": torch.ones(2, 7)}
    sizes = {0: "batch", 1: "length"}
    return {
        "module": Net().eval(),
        "methods": {
            "forward": torchcc.Method((ids,), keywords, {"ids": sizes, "mask": sizes}),
            "encode": torchcc.Method((ids,), dynamic={"ids": sizes}),
        },
        "ranges": {"length": (1, 64)},
    }


def counter():
    return Counter(), (torch.randn(2, 3),)


def layer():
    torch.manual_seed(1)
    return {"module": Layer().eval(), "args": (torch.randn(3, 8),), "dynamic": {"x": {0: "n"}}}


def noise():
    return Noise(), (torch.randn(2, 3),), {}


def one():
    return (1,)


def unknown():
    return {"module": Counter(), "dynamics": 3}


def no_tuple():
    return Counter(), torch.ones(2, 3)


def no_module():
    return torch.relu, (torch.ones(2),)


def fails():
    return 1 / 0


VALUE = 3
'''


@pytest.fixture(scope="module")
def folder(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``model.py``, the portable packages made of it, and two that are compiled for this machine."""
    made = tmp_path_factory.mktemp("packages")
    (made / "model.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.path", list(sys.path))
        for name in ("net", "counter", "noise"):
            run("export", f"{made / 'model.py'}:{name}", "-o", made / f"{name}.pt2", "--target", "portable")
        checked = run("export", f"{made / 'model.py'}:layer", "-o", made / "layer.pt2")
        assert "forward, cpu-" in checked and "equal to the graph on 5 sets of sizes" in checked
        run("compile", made / "layer.pt2", "-o", made / "both.pt2", "--updatable", "--option", "max_autotune=false")
        yield made


def run(*arguments: object, code: int = 0) -> str:
    """What a command prints."""
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def refuse(kind: type[Error], text: str, *arguments: object) -> None:
    """Checks that a command ends with an error that says what is wrong and what to do."""
    with pytest.raises(kind) as raised:
        run(*arguments)
    assert text in str(raised.value), raised.value
    assert "\n  fix:" in str(raised.value)


def outcomes(file: Path, code: int = 0) -> list[tuple[str, str, str]]:
    found = json.loads(run("verify", file, "--json", code=code))
    assert found["good"] == (code == 0)
    return [(one["function"], one["subject"].partition(",")[2].strip(), one["outcome"]) for one in found["checks"]]


def change(file: Path, out: Path, work: Path, **attributes: Any) -> Path:
    """The same package with other attributes of its variants."""
    functions = [
        dataclasses.replace(one, variants=[dataclasses.replace(variant, **attributes) for variant in one.variants])
        for one in package_reader.read(file, work)
    ]
    package_writer.write(out, functions)
    return out


def test_signatures_survive_json() -> None:
    signature = Signature(
        "step",
        (Value("x", "float32", ("n", ["*", 2, "n"], 3), mutated=True), Value("k", "int64", number=True, minimum=0)),
        (Value("out", "bool", (None,)),),
        (Symbol("n", 1, 9), Symbol("m")),
    )
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


def test_reading_gives_what_was_written(folder: Path, tmp_path: Path) -> None:
    forward, encode = package_reader.read(folder / "net.pt2", tmp_path / "net")
    assert [value.name for value in forward.signature.inputs] == ["ids", "state.bias", "mask"]
    assert forward.signature.symbols == (Symbol("batch", 1), Symbol("length", 1, 64))
    assert forward.group == encode.group == "model"
    assert forward.variants == encode.variants == []
    (function,) = package_reader.read(folder / "both.pt2", tmp_path / "both")
    updatable, frozen = function.variants
    assert (updatable.weights, frozen.weights) == (("linear.weight", "linear.bias"), ())
    for variant in function.variants:
        assert (variant.target, _torch.cpu_target()[2]) == (_torch.cpu_target()[0], variant.cpu_features)
        assert variant.torch == _torch.tree_version() and not variant.files_out and not package.misfit(variant)
        assert all(Path(file).is_relative_to(tmp_path / "both") and Path(file).is_file() for file in variant.files)
    package_writer.write(tmp_path / "again.pt2", [function])
    first, again = (
        json.loads(run("inspect", file, "--json")) for file in (folder / "both.pt2", tmp_path / "again.pt2")
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


def test_inspect(folder: Path) -> None:
    text = run("inspect", folder / "net.pt2")
    assert "state.bias: float32[16]" in text and "1 <= length <= 64" in text
    assert "  inputs: ids, state.bias, mask\n  outputs: scores, parts.0, parts.1" in text
    assert "weights: 3, 3.4 KiB, shared in the group 'model'" in text
    text = run("inspect", folder / "both.pt2")
    assert "    2 weights are inputs\n" in text and "    2 weights are burnt in\n" in text
    (function,) = json.loads(run("inspect", folder / "both.pt2", "--json"))["functions"]
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
    (counter,) = json.loads(run("inspect", folder / "counter.pt2", "--json"))["functions"]
    assert (counter["weights"], counter["weights_bytes"]) == (1, 12)


def test_merge(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.pt2"
    text = run(
        "merge",
        folder / "net.pt2",
        f"{folder}/both.pt2:forward=layer",
        f"{folder}/counter.pt2:forward=count",
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


def test_code_of_several_machines(folder: Path, tmp_path: Path) -> None:
    """Each machine has compiled a copy of one package."""
    portable, out = tmp_path / "portable.pt2", tmp_path / "all.pt2"
    functions = package_reader.read(folder / "both.pt2", tmp_path / "read")
    package_writer.write(portable, [dataclasses.replace(one, variants=()) for one in functions])
    elsewhere = tmp_path / "elsewhere.pt2"
    other = [
        dataclasses.replace(one, target="cpu-elsewhere", cpu_features=("abacus",)) for one in functions[0].variants
    ]
    package_writer.write(elsewhere, [dataclasses.replace(functions[0], variants=other)])
    run("merge", portable, elsewhere, folder / "layer.pt2", folder / "both.pt2", "-o", out)
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
def test_merges_that_make_no_sense(folder: Path, tmp_path: Path, sources: tuple[str, ...], text: str) -> None:
    out = tmp_path / "out.pt2"
    out.write_text("older")
    refuse(ArgumentError, text, "merge", *(folder / source for source in sources), "-o", out)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("out.pt2", "older")]


def test_a_plain_file_becomes_a_package(folder: Path, tmp_path: Path) -> None:
    (layer,) = package_reader.read(folder / "layer.pt2", tmp_path / "read")
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


def test_packages_of_compiled_code_alone(folder: Path, tmp_path: Path) -> None:
    (layer,) = package_reader.read(folder / "both.pt2", tmp_path / "read")
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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one", "it gives no model"),
        ("unknown", "it gives a dict with 'dynamics'"),
        ("no_tuple", "its 'args' is something else"),
        ("no_module", "its 'module' is something else"),
        ("fails", "ZeroDivisionError"),
        ("nothing", "it has no function 'nothing'"),
        ("VALUE", "it has no function 'VALUE'"),
    ],
)
def test_functions_that_give_no_model(folder: Path, tmp_path: Path, name: str, text: str) -> None:
    refuse(ArgumentError, text, "export", f"{folder / 'model.py'}:{name}", "-o", tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


def test_exports_that_make_no_sense(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.pt2"
    source = f"{folder / 'model.py'}:counter"
    refuse(ArgumentError, "no function is named", "export", folder / "model.py", "-o", out)
    refuse(ArgumentError, "no such file", "export", f"{folder / 'missing.py'}:build", "-o", out)
    refuse(ArgumentError, "not the name of a package", "export", source, "-o", tmp_path / "x.bin")
    refuse(ArgumentError, "unknown target 'gpu'", "export", source, "-o", out, "--target", "gpu")
    refuse(ArgumentError, "--option max: not understood", "export", source, "-o", out, "--option", "max")
    refuse(ArgumentError, "no option 'maxautotune'", "export", source, "-o", out, "--option", "maxautotune=1")
    (tmp_path / "broken.py").write_text("1 / 0")
    refuse(ArgumentError, "cannot be imported", "export", f"{tmp_path / 'broken.py'}:build", "-o", out)
    (tmp_path / "file").write_text("")
    refuse(
        ArgumentError, "cannot be written", "export", source, "--target", "portable", "-o", tmp_path / "file" / "x.pt2"
    )
    assert sorted(one.name for one in tmp_path.iterdir() if one.name != "__pycache__") == ["broken.py", "file"]


def test_files_that_are_no_packages(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "layer.pt2").read_bytes())
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


def numpy_file(file: Path, tensor: torch.Tensor) -> Path:
    numpy.save(file, tensor.numpy())
    return file


def test_run(folder: Path, tmp_path: Path) -> None:
    ids = numpy_file(tmp_path / "ids.npy", torch.tensor([[1, 2, 3]]))
    bias = tmp_path / "bias.pt"
    torch.save(torch.ones(16), bias)
    mask = numpy_file(tmp_path / "mask.npy", torch.ones(1, 3))
    call = ("run", folder / "net.pt2", "-f", "forward", "-i", f"mask={mask}", "-i", ids, "-i", f"state.bias={bias}")
    text = run(*call, "--output", tmp_path / "results")
    assert "ran: portable" in text and "parts.1  float32[]" in text
    expected = torchcc.load(folder / "net.pt2")["forward"](
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
    assert f"ran: compiled {_torch.cpu_target()[0]}" in run("run", folder / "both.pt2", "-i", x)
    assert "ran: portable" in run("run", folder / "both.pt2", "-i", x, "--portable")
    refuse(ArgumentError, "cannot be written", *call, "--output", ids)


def test_inputs_that_make_no_sense(folder: Path, tmp_path: Path) -> None:
    x = numpy_file(tmp_path / "x.npy", torch.ones(2, 8))
    wide = numpy_file(tmp_path / "wide.npy", torch.ones(2, 8, dtype=torch.float64))
    (tmp_path / "text.npy").write_text("nothing")
    (tmp_path / "x.csv").write_text("1, 2")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    file = folder / "layer.pt2"
    refuse(ArgumentError, "nothing for 'x'", "run", file)
    refuse(ArgumentError, "2 inputs", "run", file, "-i", x, "-i", x)
    refuse(ArgumentError, "'x' twice", "run", file, "-i", x, "-i", f"x={x}")
    refuse(ArgumentError, "one named 'y'", "run", file, "-i", f"y={x}")
    for name in ("text.npy", "x.csv", "list.pt", "missing.npy"):
        refuse(ArgumentError, "it cannot be read", "run", file, "-i", tmp_path / name)
    refuse(ArgumentError, "wrong dtype", "run", file, "-i", wide)  # C++ says so
    refuse(ArgumentError, "it has several functions", "run", folder / "net.pt2", "-i", x)
    refuse(ArgumentError, "there is no function 'decode'", "run", folder / "net.pt2", "-f", "decode", "-i", x)
    refuse(ArgumentError, "missing.so: it cannot be loaded", "verify", file, "--operators", tmp_path / "missing.so")
    refuse(ArgumentError, "no such file", "verify", file, "--import", tmp_path / "missing.py")


def test_verify(folder: Path, tmp_path: Path) -> None:
    assert outcomes(folder / "both.pt2") == [
        ("forward", f"torch {_torch.tree_version()}, weights as inputs", "equal"),
        ("forward", f"torch {_torch.tree_version()}", "equal"),
        ("forward", "portable", "equal"),
        ("forward", "compiled", "equal"),
    ]
    assert outcomes(folder / "counter.pt2") == [("forward", "portable", "equal")]
    text = run("verify", folder / "noise.pt2")
    assert "shapes only: it draws random numbers" in " ".join(text.split())
    other = change(folder / "layer.pt2", tmp_path / "other.pt2", tmp_path / "work", cpu_features=("avx9",))
    assert outcomes(other) == [
        ("forward", f"torch {_torch.tree_version()}", "skipped"),
        ("forward", "portable", "equal"),
    ]
    assert "this CPU lacks avx9" in run("verify", other)


def test_verify_finds_differences(folder: Path, tmp_path: Path) -> None:
    (layer,) = package_reader.read(folder / "layer.pt2", tmp_path / "work")
    assert layer.program is not None
    layer.program.state_dict["linear.bias"].data += 1
    package_writer.write(tmp_path / "wrong.pt2", [layer])
    assert [one[2] for one in outcomes(tmp_path / "wrong.pt2", code=1)] == ["differs", "equal", "differs"]
    text = " ".join(run("verify", tmp_path / "wrong.pt2", code=1).split())
    assert "differs from the graph in output 'out'" in text and "largest difference" in text


def test_bench(folder: Path) -> None:
    timings = json.loads(run("bench", folder / "both.pt2", "--seconds", "0.05", "--threads", "1", "--json"))["timings"]
    assert [(one["backend"], one["target"], one["threads"], one["reasons"]) for one in timings] == [
        ("compiled", _torch.cpu_target()[0], 1, []),
        ("portable", "", 1, []),
    ]
    assert all(0 < one["nanoseconds"] < 1e9 and 0 < one["load_seconds"] < 60 for one in timings)
    text = run("bench", folder / "net.pt2", "--seconds", "0.01")
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [["forward", "portable"], ["encode", "portable"]]
    refuse(ArgumentError, "nothing to measure", "bench", folder / "net.pt2", "--seconds", "0")
    refuse(ArgumentError, "nothing to measure", "bench", folder / "net.pt2", "--threads", "0")
    refuse(ArgumentError, "there is no function 'decode'", "bench", folder / "net.pt2", "--function", "decode")


def test_load(folder: Path, tmp_path: Path) -> None:
    loaded = torchcc.load(folder / "both.pt2")
    assert loaded.names == list(loaded) == ["forward"] and len(loaded) == 1
    function = loaded["forward"]
    assert (function.backend, function.target, function.reasons) == ("compiled", _torch.cpu_target()[0], [])
    graph = torchcc.load(folder / "both.pt2", compiled=False)["forward"]
    assert (graph.backend, graph.target, len(graph.reasons)) == ("portable", "", 2)
    assert "portable>" in repr(graph)
    for x in (torch.randn(5, 8), torch.randn(8, 1).t(), torch.randn(8, 4).t()):
        torch.testing.assert_close(function(x), graph(x=x))
    other = change(folder / "both.pt2", tmp_path / "other.pt2", tmp_path / "work", torch="2.0")
    refused = torchcc.load(other)["forward"]
    assert refused.backend == "portable"
    assert refused.reasons[0].endswith(f"compiled with torch 2.0, this is torch {_torch.tree_version()}")
    count = torchcc.load(folder / "counter.pt2")["forward"]
    assert count(torch.ones(2, 3)).tolist() == [4, 4, 4]
    assert count(torch.ones(2, 3)).tolist() == [8, 8, 8]


def test_functions_share_weights_in_python(folder: Path) -> None:
    loaded = torchcc.load(folder / "net.pt2")
    programs = [loaded[name]._function.program for name in loaded.names]
    one, other = (program.state_dict["embed.weight"] for program in programs if program is not None)
    assert one is other


def test_calls_that_do_not_fit(folder: Path) -> None:
    forward = torchcc.load(folder / "net.pt2")["forward"]
    ids, bias, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(16), torch.ones(2, 3)
    outputs = forward(ids, bias, mask)
    assert outputs[0] is outputs["scores"] and [one.shape for one in outputs] == [(2, 4), (16,), ()]
    for args, kwargs, text in (
        ((ids, bias), {}, "nothing for 'mask'"),
        ((ids, bias, mask, mask), {}, "4 arguments"),
        ((ids, bias, mask), {"ids": ids}, "'ids' twice"),
        ((ids, bias), {"masks": mask}, "'masks', which it does not take"),
        ((ids.int(), bias, mask), {}, "int32[2, 3]"),
        ((ids, bias[0], mask), {}, "float32[]"),
        ((ids, bias[:3], mask), {}, "sizes [3]"),
        ((ids, bias, mask[:1]), {}, "argument 'mask' does not fit"),
        ((ids[:0], bias, mask[:0]), {}, "batch = 0"),
        ((ids.expand(2, 3).repeat(1, 30), bias, mask.repeat(1, 30)), {}, "length = 90"),
        ((ids, bias, 3), {}, "a int"),
    ):
        with pytest.raises(ArgumentError) as raised:
            forward(*args, **kwargs)
        assert text in str(raised.value)
    with pytest.raises(ArgumentError, match="no result 'score'"):
        outputs["score"]
    with pytest.raises(ArgumentError, match="no function 'decode'"):
        torchcc.load(folder / "net.pt2")["decode"]


def test_numbers_in_calls(tmp_path: Path) -> None:
    class Scale(torch.nn.Module):
        def forward(self, x: torch.Tensor, k: int) -> torch.Tensor:
            return x * k

    program = torch.export.export(
        Scale(), (torch.ones(3), 4), dynamic_shapes={"x": None, "k": torch.export.Dim.DYNAMIC}
    )
    _torch.save(program, tmp_path / "plain.pt2")
    run("compile", tmp_path / "plain.pt2", "-o", tmp_path / "scale.pt2", "--target", "portable")
    function = torchcc.load(tmp_path / "scale.pt2")["forward"]
    assert function(torch.ones(3), 5).tolist() == function(torch.ones(3), torch.tensor(5)).tolist() == [5, 5, 5]
    for number in (2.5, True):
        with pytest.raises(ArgumentError, match="'k' does not fit"):
            function(torch.ones(3), number)
    x = numpy_file(tmp_path / "x.npy", torch.ones(3))
    called = json.loads(run("run", tmp_path / "scale.pt2", "-i", x, "-i", "k=7", "--json"))
    assert called["outputs"][0]["values"] == [7, 7, 7]
    refuse(ArgumentError, "not understood", "run", tmp_path / "scale.pt2", "-i", x, "-i", "k=2.5")


def test_a_program_that_crashes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchcc.native.runner", lambda: Path("/bin/false"))
    with pytest.raises(CompileError, match="ended with status 1"):
        deployment.bench(folder / "counter.pt2", None, 0.01)


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
