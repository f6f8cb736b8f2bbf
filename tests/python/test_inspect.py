"""What `torchcc inspect` prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recorded import Recorder
from typer.testing import CliRunner

from torchcc import cli, inspection, package, package_writer
from torchcc.errors import ArgumentError, CaptureError, PackageError
from torchcc.signature import Signature, Symbol, Value


def recorded() -> tuple[Recorder, list[torch.Tensor]]:
    torch.manual_seed(0)
    r = Recorder("net")
    x = r.input(torch.randn(2, 3, 4, 4), name="x")
    weight = r.input(torch.randn(6, 3, 3, 3), "captured", "net.conv.weight")
    mean = r.input(torch.zeros(6), "captured", "net.bn.running_mean")
    variance = r.input(torch.ones(6), "captured", "net.bn.running_var")
    turned = r.input(torch.randn(2, 6).t(), name="turned")
    index = [r.input(torch.tensor([1]), "constant", "c") for _ in range(2)]
    y = r("conv2d", x, weight)
    y = r("batch_norm", y, None, None, mean, variance, True, 0.1, 1e-5, True)
    r("add_.Scalar", y, 1)
    r.autocast = torch.bfloat16
    z = r("matmul", turned, r("select.int", turned, 0, 0))
    r.autocast = None
    first, _ = r("split.Tensor", y, 1)
    made = r("full", [2], float("inf"), dtype=torch.float64)
    r("index_put_", made, [index[0]], r("scalar_tensor", 2.5, dtype=torch.float64))
    r("size.int", x, 1)
    r("dropout", index[1], 0.5, False)
    return r, [first, z, made]


EXPECTED = """\
net: 11 operators, draws random numbers
inputs
  argument  x                    float32[2, 3, 4, 4]
  captured  net.conv.weight      float32[6, 3, 3, 3]
  captured  net.bn.running_mean  float32[6]                         written to
  captured  net.bn.running_var   float32[6]                         written to
  argument  turned               float32[6, 2] with strides [1, 6]
  constant  c                    int64[1]
  constant  c                    int64[1]
operators
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    recorder, outputs = recorded()
    return recorder.write(tmp_path, outputs) / "trace.json"


def test_trace_as_lines(file: Path) -> None:
    text = inspection.text(inspection.describe(file))
    assert text.startswith(EXPECTED), text
    lines = [" ".join(line.split()) for line in text.removeprefix(EXPECTED).splitlines()]
    assert lines == [
        "%7 = aten::conv2d(x, net.conv.weight) float32[2, 6, 2, 2] # net.conv",
        "%8 = aten::batch_norm(%7, None, None, net.bn.running_mean, net.bn.running_var, True, 0.1, 1e-05, True) "
        "float32[2, 6, 2, 2] # net.bn",
        "%8 = aten::add_.Scalar(%8, 1) float32[2, 6, 2, 2]",
        "%9 = aten::select.int(turned, 0, 0) float32[2] with strides [6] autocast bfloat16",
        "%10 = aten::matmul(turned, %9) bfloat16[6] autocast bfloat16",
        "[%11, %12] = aten::split.Tensor(%8, 1) float32[1, 6, 2, 2], float32[1, 6, 2, 2]",
        "%13 = aten::full([2], inf, dtype=float64) float64[2]",
        "%14 = aten::scalar_tensor(2.5, dtype=float64) float64[]",
        "%13 = aten::index_put_(%13, [%5], %14) float64[2]",
        "3 = aten::size.int(x, 1)",
        "%6 = aten::dropout(%6, 0.5, False) int64[1]",
        "outputs",
        "%11 float32[1, 6, 2, 2]",
        "%10 bfloat16[6]",
        "%13 float64[2]",
    ]


def test_numbers_that_follow_from_sizes(file: Path) -> None:
    content = json.loads(file.read_text())
    expression = {
        "terms": [{"product": [[0, 1], [0, 2]], "times": 3}, {"product": [[0, 3]], "times": 1}],
        "plus": -1,
        "over": 2,
        "form": "inverse_root",
    }
    content["ops"][2]["args"][1] = {"size": expression}
    file.write_text(json.dumps(content))
    text = inspection.text(inspection.describe(file))
    assert "%8 = aten::add_.Scalar(%8, 1/sqrt((3*x.size(1)*x.size(2) + x.size(3) + -1)//2))" in text
    steps = [[0, 1], 2, "//", [0, 3], -1, "*", "+", 4, "max"]
    content["ops"][2]["args"][1] = {"size": {"steps": steps, "form": "whole"}}
    file.write_text(json.dumps(content))
    text = inspection.text(inspection.describe(file))
    assert "%8 = aten::add_.Scalar(%8, max(((x.size(1) // 2) + (x.size(3) * -1)), 4))" in text


def test_segments_of_lazy_mode(file: Path) -> None:
    told = {"state": "compiled", "reason": "", "recorded": 2, "replayed": 5, "eager": 1}
    ends = {"end": "aten::item", "where": "train.cpp:42", "next_ops": 7}
    segment = {**ends, **told, "trace": json.loads(file.read_text())}
    content = {"format": "torchcc-segments", "version": 1, "name": "step", "segments": [segment, segment]}
    file.write_text(json.dumps(content))
    text = inspection.text(inspection.describe(file))
    assert text.count("operators\n") == 2
    assert "ended by aten::item at train.cpp:42; without that, 7 more would be part of it" in text
    assert "compiled: 5 compiled runs, 2 recorded, 1 eager" in text


def test_operator_that_this_process_does_not_know(file: Path) -> None:
    content = json.loads(file.read_text())
    content["ops"][2]["op"] = "mine::add_.Scalar"
    file.write_text(json.dumps(content))
    assert "%8 = mine::add_.Scalar(%8, 1, 1)" in inspection.text(inspection.describe(file))


def test_package_as_lines(tmp_path: Path) -> None:
    code = tmp_path / "model.so"
    code.write_bytes(bytes(5000))
    signature = Signature(
        "step",
        (Value("x", "float32", ("n", 3), mutated=True), Value("k", "int64", number=True)),
        (Value("out0", "float32", (["*", 2, "n"],)), Value("out1", "bool")),
        (Symbol("n", 1, 9),),
    )
    function = package.Function(signature, None, [package.Variant([str(code)], [str(code)])])
    recorder, outputs = recorded()
    extras = {package.TRACE: json.dumps(recorder.trace(outputs))}
    package_writer.write(tmp_path / "step.pt2", [function], extras)

    described = inspection.describe(tmp_path / "step.pt2")
    (entry,) = described["functions"]
    assert entry["signature"] == str(signature)
    assert [variant["into_outputs"] for variant in entry["variants"]] == [True]
    text = inspection.text(described)
    assert "step(x: float32[n, 3], k: int64_t) -> (float32[2*n], bool[]) with 1 <= n <= 9\n  writes into: x\n" in text
    assert "4.9 KiB of code, also writes into given outputs" in text
    assert EXPECTED in text


def test_command(file: Path) -> None:
    result = CliRunner().invoke(cli.app, ["inspect", str(file)], catch_exceptions=False)
    assert result.output == inspection.text(inspection.describe(file)) + "\n"
    result = CliRunner().invoke(cli.app, ["inspect", "--json", str(file)], catch_exceptions=False)
    assert json.loads(result.output) == inspection.describe(file)


def test_other_files(tmp_path: Path) -> None:
    for name, content, kind in (
        ("a.txt", "", ArgumentError),
        ("a.json", "{}", CaptureError),
        ("b.json", "[1", CaptureError),
        ("c.json", '{"format": "torchcc-trace", "version": 2}', CaptureError),
        ("d.json", '{"format": "torchcc-trace", "version": 1, "name": "x"}', CaptureError),
        ("a.pt2", "", PackageError),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(kind):
            inspection.describe(tmp_path / name)
    for name in ("missing.json", "missing.pt2"):
        with pytest.raises((CaptureError, PackageError)):
            inspection.describe(tmp_path / name)
